"""`harness train --report` and `harness report` on several trainings, as a user runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from plugin_support import Cli, Done, make_data

from harness.results.training import read_training

RECIPE: dict[str, Any] = {
    "recipe": "tiny", "detector": "blades-oc", "options": {"encoder": "tiny", "image_size": 32}, "step": "joint",
    "settings": {"tasks": ["face_coarse", "face_fine"], "work_size": 32, "manipulations": [0, 1, 3]}, "epochs": 1,
    "batch_size": 8, "lr": 1e-3, "seed": 1,
}  # fmt: skip
FIXED = ("--device", "cpu", "--threads", "1", "--tracking-uri", "off")


class Bench:
    """The command line in a folder, with a recipe and photographs."""

    def __init__(self, folder: Path) -> None:
        self.data = make_data(folder / "data", train=48, test=12, made=4)
        self.recipe = folder / "tiny.yaml"
        self.recipe.write_text(yaml.safe_dump(RECIPE))
        self.cli = Cli(folder / "work", ())

    def train(self, *words: object) -> Done:
        return self.cli("train", self.recipe, "--data-root", self.data, *FIXED, *words)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Two seeds trained and reported on."""
    made = Bench(tmp_path_factory.mktemp("report"))
    for seed in (1, 2):
        done = made.train("--set", f"seed={seed}", "--report", "--json")
        assert done.code == 0, done.text
    return made


def folders(bench: Bench) -> list[Path]:
    return sorted((bench.cli.folder / "runs" / "train-tiny").iterdir())


def test_a_report_is_in_the_answer_and_in_the_folder_and_a_second_call_computes_nothing(bench: Bench) -> None:
    answer = bench.train("--report", "--json").document  # seed 1 once more, without a change: the same key
    rows = {(r["task"], r["metric"]): r for r in answer["report"]}
    assert rows["face_coarse", "accuracy"]["images"] == 12
    assert all(r["low"] <= r["value"] <= r["high"] for r in rows.values())
    read = read_training(bench.cli.folder / answer["folder"])
    assert read.report["value"].tolist() == [r["value"] for r in answer["report"]]
    assert len(read.record.reported_on) == 2
    assert read.record.reported_on[0] not in read.record.inputs
    again = bench.train("--report")
    assert "report on tiny" not in again.err
    assert "face_coarse accuracy" in again.out
    assert "[" in again.out
    assert (bench.cli.folder / answer["folder"] / "figures" / "report.png").is_file()


def test_report_photographs_without_the_flag_are_not_decoded(bench: Bench, tmp_path: Path) -> None:
    other = Bench(tmp_path)
    unread = tmp_path / "data" / "celeba-face" / "imgs" / "00052.jpg"
    assert unread.is_file()
    unread.write_bytes(unread.read_bytes()[:-40])  # header and size can be read, the picture cannot
    plain = other.train("--json")
    assert plain.code == 0, plain.text
    assert "report" not in plain.document
    assert not (other.cli.folder / plain.document["folder"] / "report.csv").exists()
    asked = other.train("--report")
    assert asked.code == 2, asked.text
    assert "00052.jpg" in asked.err
    assert "Traceback" not in asked.err


def test_several_trainings_are_one_table(bench: Bench, tmp_path: Path) -> None:
    done = bench.cli("report", *folders(bench), "--out", tmp_path / "table")
    assert done.code == 0, done.text
    assert "| tiny | 2 |" in done.out
    text = (tmp_path / "table" / "trainings.md").read_text()
    assert text.splitlines()[0] in done.out
    assert (tmp_path / "table" / "trainings.csv").read_text().startswith("recipe,task,metric,seeds,mean")


def test_a_table_of_nothing_is_refused(bench: Bench, tmp_path: Path) -> None:
    bare = bench.train("--set", "lr=0.002", "--json").document
    done = bench.cli("report", bare["folder"], "--out", tmp_path / "table")
    assert done.code == 2
    assert "--report" in done.err
    assert not (tmp_path / "table").exists()

"""Sweep folders: what is written is read back, equal sweeps give equal files, and what is none is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from sweep_support import KEY, record, trials, write

from harness.api.errors import DataError
from harness.results.sweep import is_sweep_folder, read_sweep, write_sweep
from harness.results.training import by_task


def test_a_folder_says_how_every_trial_went_and_ended(tmp_path: Path) -> None:
    made = write(tmp_path)
    read = read_sweep(tmp_path)
    assert (read.record.name, read.record.key, read.record.best) == ("rates", KEY, 1)
    assert read.keys == ["settings.lambda_lr", "protocol.hypergradient"]
    table = read.trials
    assert table["state"].tolist() == ["finished", "finished", "stopped", "failed", "repeats"]
    assert table["settings.lambda_lr"].tolist() == [1e-4, 1e-3, 1e-5, 9e-3, 1e-4]
    assert table["objective"].isna().tolist() == [False, False, False, True, False]
    assert table["repeats"].tolist()[-1] == 0
    assert table["reason"][2] == "stopped after epoch 2: 0.52 against 0.6"
    assert table["epochs"].tolist() == [4, 4, 2, 0, 4]
    assert made.trials.equals(table)


def test_evaluations_histories_and_readings_are_those_of_the_trials(tmp_path: Path) -> None:
    read = write(tmp_path)
    mine = read.select[read.select["trial"] == 2]
    assert mine["epoch"].tolist() == [1, 2]
    assert mine["accuracy"].tolist() == [0.51, 0.52]
    assert set(read.histories) == {0, 1, 2}
    assert list(by_task(read.histories[0], "lambda")) == ["face_coarse", "make/model"]
    assert [len(read.histories[n]) for n in (0, 2)] == [20, 10]
    speed = read.speed.set_index("trial")
    assert speed["seconds"][0] == 20 * 8 / 100
    assert 3 not in speed.index


def test_the_order_of_keys_is_the_files_though_the_record_is_sorted(tmp_path: Path) -> None:
    write(tmp_path)
    spaces = list(json.loads((tmp_path / "sweep.json").read_text())["spaces"])
    assert spaces == sorted(spaces)
    assert read_sweep(tmp_path).keys != spaces


def test_equal_sweeps_give_equal_files_and_old_histories_go(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (tmp_path / "b" / "trials").mkdir(parents=True)
    (tmp_path / "b" / "trials" / "0099.csv").write_text("step,epoch\n")
    write(tmp_path / "b", started="2026-12-01T10:00:00+00:00", trained=0)
    files = {p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert files == {p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file()}
    for name in files - {Path("sweep.json")}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_sweep_of_which_nothing_is_known_is_a_folder_too(tmp_path: Path) -> None:
    gone = [t for t in trials() if t.state == "failed"]
    read = write_sweep(tmp_path, record(trials=1, best=None), gone)
    assert len(read.trials) == 1
    assert len(read.select) == len(read.speed) == len(read.histories) == 0


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("sweep.json", "{", "cannot be read"),
        ("sweep.json", "[]", "no record of a sweep"),
        ("sweep.json", json.dumps({"name": "x"}), "no record of a sweep: key"),
        ("trials.csv", "trial,state\n", "a column is missing"),
        ("trials.csv", None, "cannot be read"),
        ("select.csv", "trial,step,epoch\nx,1,1\n", "not a number in column trial"),
        ("trials/0001.csv", "step\n1\n", "a column is missing: epoch"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    write(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        read_sweep(tmp_path)
    assert name in str(caught.value.where)


def test_another_folder_is_no_sweep(tmp_path: Path) -> None:
    assert not is_sweep_folder(tmp_path)
    with pytest.raises(DataError, match="not a sweep folder"):
        read_sweep(tmp_path)

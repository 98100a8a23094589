"""`harness run` as a user runs it: what it writes, what it computes, and how it ends when something is wrong."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pandas as pd
import pytest
from plugin_support import Cli, scores_file, write_package, write_suite

RAISES = """
from dataclasses import dataclass
from bench_plugins.calibrated import Calibrated
from bench_plugins.pixels import PixelStatistics
from harness.api.contract import Facts

@dataclass(frozen=True)
class Broken(PixelStatistics):
    def load(self, weights, device):
        raise RuntimeError("no such cable")

class Raises(Calibrated):
    name = "raises"
    facts = Facts("Raises", "", "", "")
    def extractor(self):
        return Broken()
"""


def to_do(done) -> dict[str, int]:
    """Images to do by "kind of rows", of a dry run."""
    assert done.code == 0, done.text
    plan = done.document["plan"]
    return {f"{p['stage']} of {'+'.join(p['rows'])}": p["to_do"] for p in plan if p["to_do"]}


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*")) if folder.is_dir() else set()


# a run -------------------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_all_that_it_promises(base) -> None:
    assert base.done.code == 0, base.done.text
    folder = base.scores.parent
    for name in (
        "scores.parquet", "cells.parquet", "audit.parquet", "metrics.csv", "manifest.parquet", "record.json",
        "suite.resolved.yaml", "report.html",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert {p.suffix for p in (folder / "tables").iterdir()} == {".md", ".csv", ".tex"}
    assert list((folder / "figures").glob("*.png"))
    record = json.loads((folder / "record.json").read_text())
    assert {row["status"] for row in record["detectors"].values()} == {"ok"}
    assert {p.name for p in (folder / "fitted").iterdir()} == set(record["detectors"])
    assert base.done.document["computed_images"] == sum(record["computed"].values()) > 0


def test_a_second_run_computes_nothing_and_writes_the_same_bytes_under_a_new_id(base, data: Path) -> None:
    again = base.cli.run(base.suite, data)
    assert again.document["computed_images"] == 0
    assert "computed nothing: all was stored" in again.err
    scores = scores_file(again, base.cli)
    assert scores.parent != base.scores.parent
    assert scores.read_bytes() == base.scores.read_bytes()


def test_moved_data_is_all_stored(base, data: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(data, tmp_path / "elsewhere"))
    assert to_do(base.cli.run(base.suite, moved, "--dry-run")) == {}


def test_a_limit_and_no_workers_give_the_same_bits_for_the_images_in_common(base, cli: Cli, data: Path) -> None:
    done = cli.run(base.suite, data, "--workers", "0", "--limit", "5", "--detectors", "calibrated,grad-map")
    few = pd.read_parquet(scores_file(done, cli))
    keys = ["detector", "sha256", "generator"]
    both = few.merge(base.table("calibrated", "grad-map"), on=keys, suffixes=("", "_base"))
    assert len(both) == len(few) > 0
    assert (both["score"] == both["score_base"]).all()
    assert (both["threshold"] == both["threshold_base"]).all()
    record = json.loads((cli.folder / done.document["run_dir"] / "record.json").read_text())
    assert any(stamp.startswith("PARTIAL") for stamp in record["stamps"])


def test_a_dry_run_writes_nothing(base, cli: Cli, data: Path, tmp_path: Path) -> None:
    cli.folder.mkdir()
    before = files(tmp_path) | files(data)
    planned = to_do(cli.run(base.suite, data, "--dry-run"))
    assert planned["features of calibrated+pseudo-head"] > 0
    assert files(tmp_path) | files(data) == before


def test_a_tracking_server_that_is_down_is_said_and_stops_nothing(base, data: Path) -> None:
    done = base.cli("run", base.suite, "--data-root", data, "--device", "cpu", "--detectors", "calibrated",
                    "--tracking-uri", "http://127.0.0.1:9", "--json")  # fmt: skip
    assert done.code == 0, done.text
    assert "not logged to MLflow" in done.err
    assert f"harness report {done.document['run_dir']} --log" in done.err
    assert scores_file(done, base.cli).is_file()


# a plugin's source -----------------------------------------------------------------------------------------------


@pytest.fixture
def edited(installed: Path, tmp_path: Path):
    """The installed plugins with one module changed."""

    def copied(module: str, old: str, new: str) -> Path:
        folder = Path(shutil.copytree(installed, tmp_path / f"edited-{module}"))
        path = folder / f"bench_plugins/{module}.py"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        return folder

    return copied


def test_a_changed_plugin_source_recomputes_its_rows_and_no_others(base, data: Path, edited, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base.cli.folder, tmp_path / "copy"))
    changed = edited("gradients", "flat.amax(dim=1)", "2 * flat.amax(dim=1)")
    cli = Cli(folder, (changed,))
    done = cli.run(base.suite, data)
    stored = sum(p["to_do"] for p in done.document["plan"] if p["rows"] != ["grad-map"])
    assert stored == 0
    each = {p["stage"]: p["to_do"] for p in done.document["plan"] if p["rows"] == ["grad-map"]}
    assert done.document["computed_images"] == sum(each.values()) > 0
    table = pd.read_parquet(scores_file(done, cli))
    same = table["score"].fillna(-1) == pd.read_parquet(base.scores)["score"].fillna(-1)
    assert set(table["detector"][~same]) == {"grad-map"}


def test_a_change_recomputes_what_imports_the_module_and_nothing_else(base, data: Path, edited) -> None:
    folder = base.cli.folder
    plan = {
        module: to_do(Cli(folder, (edited(module, "from __future__", "# changed\nfrom __future__"),)).run(
            base.suite, data, "--dry-run"))
        for module in ("native", "gaussian", "cnn")
    }  # fmt: skip
    assert set(plan["native"]) == {"features of native-size", "features of slow-native"}
    assert "features of calibrated+pseudo-head" not in plan["gaussian"], "a head computes no features"
    assert "features of native-size" in plan["gaussian"], "its stages stand in a module that imports the head"
    assert plan["cnn"] == {}


# rows that cannot be done ----------------------------------------------------------------------------------------


@pytest.fixture
def raising(installed: Path, tmp_path: Path) -> tuple[Path, ...]:
    """The plugins, and one that raises."""
    points = {"raises": "h7_raises:Raises"}
    return installed, write_package(tmp_path / "raising", "h7-raises", points, {"h7_raises": RAISES})


def test_a_row_that_raises_and_one_without_weights_are_recorded_the_rest_done(base, cli, data, raising, tmp_path):
    suite = write_suite(tmp_path, ("raises", "trained-cnn", "calibrated"))
    done = cli.with_(packages=raising).run(suite, data)
    assert done.code == 3, done.text
    assert "Traceback" not in done.err
    failed = done.document["failed"]
    assert failed["raises"] == "RuntimeError: no such cable"
    assert all(w in failed["trained-cnn"] for w in ("tiny/cnn.safetensors", "the shelf of nobody", "pretrained"))
    record = json.loads((cli.folder / done.document["run_dir"] / "record.json").read_text())
    assert {name: row["status"] for name, row in record["detectors"].items()} == {
        "raises": "failed", "trained-cnn": "missing", "calibrated": "ok",
    }  # fmt: skip
    assert "h7_raises.py" in record["detectors"]["raises"]["traceback"]
    assert any("trained-cnn" in stamp for stamp in record["stamps"])
    table = pd.read_parquet(scores_file(done, cli))
    pd.testing.assert_frame_equal(table, base.table("calibrated"))


def test_a_suite_in_which_no_row_has_its_weights_still_ends_in_a_report(cli: Cli, data: Path, tmp_path: Path) -> None:
    done = cli.run(write_suite(tmp_path, ("trained-cnn",)), data)
    assert done.code == 3, done.text
    assert len(pd.read_parquet(scores_file(done, cli))) == 0
    assert (cli.folder / done.document["run_dir"] / "report.html").is_file()


def test_require_all_stops_before_anything_is_read_and_lists_what_is_missing(cli, data, tmp_path, refused) -> None:
    suite = write_suite(tmp_path, {"trained-cnn": {}, "second": {"detector": "trained-cnn"}, "calibrated": {}})
    text = refused(cli.run(suite, data, "--require-all"))
    assert "2 rows lack weights" in text
    assert text.count("tiny/cnn.safetensors") >= 2
    assert not (cli.folder / ".blades-store").exists()


def test_random_weights_are_said_everywhere(cli: Cli, data: Path, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, ("trained-cnn",))
    done = cli.run(suite, data, "--set", "trained-cnn.weights=random")
    assert done.code == 0, done.text
    folder = cli.folder / done.document["run_dir"]
    for path in (folder / "record.json", folder / "report.html", *(folder / "tables").glob("*.md")):
        assert "RANDOM WEIGHTS" in path.read_text(), path


# images that cannot be read -----------------------------------------------------------------------------------------


def test_bad_images_are_all_listed_or_left_out_and_counted(cli: Cli, data: Path, tmp_path: Path, refused) -> None:
    root = Path(shutil.copytree(data, tmp_path / "data"))
    for path in (root / "ldm/0000.png", root / "ddim/0001.jpg"):
        path.write_bytes(path.read_bytes()[:-600])
    suite = write_suite(tmp_path, ("calibrated",))
    text = refused(cli.run(suite, root))
    assert "ldm/0000.png" in text
    assert "ddim/0001.jpg" in text
    assert "--on-bad-image skip" in text
    done = cli.run(suite, root, "--on-bad-image", "skip")
    assert done.code == 0, done.text
    folder = cli.folder / done.document["run_dir"]
    record = json.loads((folder / "record.json").read_text())
    assert record["skipped_images"] == 2
    assert any("2 undecodable images left out" in stamp for stamp in record["stamps"])
    assert "2 undecodable images left out" in next((folder / "tables").glob("*.md")).read_text()


# the disk ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_with_a_message_and_keeps_earlier_work(base, cli, data, tmp_path, refused) -> None:
    suite = write_suite(tmp_path, ("calibrated", "grad-map"))

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    text = refused(cli.run(suite, data, limits=small_files))
    assert "cannot write" in text
    assert "what was computed before is kept" in text
    left = to_do(cli.run(suite, data, "--dry-run"))
    assert "maps of grad-map" in left
    assert "features of calibrated" not in left

"""`harness run --manifest`: the same scores to the bit, and no image is opened before it is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from plugin_support import Cli, Done, scores_file, write_suite

from harness.data.manifest import read_manifest, write_manifest

from .test_seen_unseen import SMALL

SEEN = {"pseudo-head": {"generators": ["ldm"]}, "calibrated": {}}


def index(cli: Cli, suite: Path, data: Path, out: Path) -> Path:
    """What `data index` writes."""
    done = cli("data", "index", "--suite", suite, "--data-root", data, "--out", out)
    assert done.code == 0, done.text
    return out / "manifest.parquet"


def results(folder: Path) -> dict[str, bytes]:
    """What a run folder says of the images; not when, where and with which command."""
    apart = ("record.json", "report.html", "training.json", "speed.csv")
    found = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".png" and p.name not in apart]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def record(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "record.json").read_text())
    return found


def same_results(done: Done, cli: Cli, other: Path) -> None:
    """A run gave every file that another one gave, byte for byte; it did not take them from a store."""
    folder = scores_file(done, cli).parent
    assert done.document["computed_images"] > 0
    mine, theirs = results(folder), results(other)
    assert {"scores.parquet", "cells.parquet", "metrics.csv", "manifest.parquet", "audit.parquet"} <= mine.keys()
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []
    for key in ("manifest_sha256", "images", "stamps", "computed", "skipped_images"):
        assert record(folder)[key] == record(other)[key], key


@pytest.fixture(scope="session")
def indexed(base, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of the undisturbed run's suite."""
    return index(base.cli, base.suite, data, tmp_path_factory.mktemp("index"))


def test_every_file_is_that_of_a_run_without(base, cli: Cli, data: Path, indexed: Path) -> None:
    done = cli.run(base.suite, data, "--manifest", indexed.parent)  # the folder that `data index` was given will do
    same_results(done, cli, base.scores.parent)
    assert any("those of a manifest" in note for note in record(scores_file(done, cli).parent)["notes"])


def test_no_image_is_opened_where_all_is_stored_or_only_planned(base, data: Path, indexed: Path, tmp_path) -> None:
    cli = Cli(Path(shutil.copytree(base.cli.folder, tmp_path / "copy")), base.cli.packages)
    (tmp_path / "nothing").mkdir()
    done = cli.run(base.suite, tmp_path / "nothing", "--manifest", indexed)
    assert done.document["computed_images"] == 0
    assert scores_file(done, cli).read_bytes() == base.scores.read_bytes()
    shutil.rmtree(cli.folder / ".blades-store")
    plans = [cli.run(base.suite, tmp_path / "nothing", "--manifest", indexed, "--dry-run"),
             cli.run(base.suite, data, "--dry-run")]  # fmt: skip
    assert plans[0].document["plan"] == plans[1].document["plan"] != []
    assert not (cli.folder / ".blades-store").exists()


def test_a_dataset_in_parts_is_read_copied_and_reported_on(base, cli: Cli, data: Path, indexed: Path, tmp_path) -> None:
    parts = write_manifest(read_manifest(indexed), tmp_path / "parts" / "manifest.parquet", most_rows=10)
    assert parts.is_dir()
    done = cli.run(base.suite, data, "--manifest", parts, "--detectors", "calibrated")
    folder = scores_file(done, cli).parent
    assert [p.name for p in (folder / "manifest.parquet").iterdir()] == [p.name for p in parts.iterdir()]
    assert read_manifest(folder / "manifest.parquet").equals(read_manifest(indexed))
    assert record(folder)["manifest_sha256"] == record(base.scores.parent)["manifest_sha256"]
    shutil.rmtree(folder / "tables")
    assert cli("report", folder).code == 0
    assert list((folder / "tables").glob("*.md"))


def test_an_image_that_changed_or_cannot_be_decoded_stops_the_run(base, cli, data, indexed, refused, tmp_path):
    root = Path(shutil.copytree(data, tmp_path / "data"))
    torn = root / "ldm" / "0001.jpg"
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) * 2 // 3])  # its header is whole, and that is all that the index reads
    words = ("--manifest", index(cli, base.suite, root, tmp_path / "index"), "--detectors", "calibrated")
    said = refused(cli.run(base.suite, root, *words))
    assert "ldm/0001.jpg" in said
    assert "truncated" in said
    assert "harness data check" in said
    assert "--on-bad-image" not in said
    torn.write_bytes(whole)
    said = refused(cli.run(base.suite, root, *words))
    assert "ldm/0001.jpg" in said
    assert "changed" in said
    assert "data index" in said
    done = cli.run(base.suite, root, "--manifest", indexed, "--detectors", "calibrated")
    found = pd.read_parquet(scores_file(done, cli))
    pd.testing.assert_frame_equal(found, base.table("calibrated"), check_exact=True)
    needed = len(found) + int((read_manifest(indexed)["split"] == "train").sum())
    assert 0 < done.document["computed_images"] < needed  # what was computed before was kept


@pytest.mark.slow
def test_a_row_trained_on_a_generator_needs_a_manifest_made_for_it(base, cli, data, indexed, refused, tmp_path) -> None:
    suite = write_suite(tmp_path, SEEN)
    said = refused(cli.run(suite, data, "--manifest", indexed))
    assert "'pseudo-head' is trained on generator 'ldm'" in said
    assert "harness data index --suite" in said
    manifest = index(cli, suite, data, tmp_path / "index")
    other = Cli(tmp_path / "other", cli.packages)
    without = scores_file(other.run(suite, data), other).parent
    same_results(cli.run(suite, data, "--manifest", manifest), cli, without)


@pytest.mark.slow
def test_a_row_that_trains_on_the_suites_images_is_trained_alike(cli: Cli, data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(SMALL))
    rows = {"cnnd": {"weights": f"recipe:{recipe}", "network": "small", "crop_size": 32}}
    suite = write_suite(tmp_path, rows)
    manifest = index(cli, suite, data, tmp_path / "index")
    other = Cli(tmp_path / "other", cli.packages)
    without = scores_file(other.run(suite, data), other).parent
    same_results(cli.run(suite, data, "--manifest", manifest), cli, without)


@pytest.mark.slow
def test_under_ray_the_scores_are_the_same(base, cli: Cli, data: Path, indexed: Path) -> None:
    pytest.importorskip("ray")
    done = cli.run(base.suite, data, "--manifest", indexed, "--engine", "ray")
    assert scores_file(done, cli).read_bytes() == base.scores.read_bytes()


def test_python_starts_from_a_manifest_too(base, indexed: Path, tmp_path: Path) -> None:
    code = (
        "import sys, harness\n"
        "options = dict(data_root=sys.argv[2], manifest=sys.argv[3], device='cpu', dry_run=True)\n"
        "print([stage['to_do'] for stage in harness.run(sys.argv[1], **options).plan])"
    )
    words = [sys.executable, "-c", code, str(base.suite), str(tmp_path), str(indexed)]
    environment = base.cli._environment()
    done = subprocess.run(words, cwd=base.cli.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert set(planned) == {0}  # of images that are not in this folder, all is stored

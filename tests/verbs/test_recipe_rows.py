"""A suite in which the images of one recipe are not there: its row is listed as missing, the others run."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from plugin_support import Cli, scores_file, write_suite

RECIPE = {
    "recipe": "five", "detector": "trained-cnn", "step": "supervised",
    "data": {"layout": "released", "labels": "exif_labels_5.json"},
}  # fmt: skip


def suite(folder: Path) -> Path:
    (folder / "five.yaml").write_text(yaml.safe_dump(RECIPE))
    rows = {"five": {"detector": "trained-cnn", "weights": f"recipe:{folder / 'five.yaml'}"}, "calibrated": {}}
    return write_suite(folder, rows)


def test_the_row_is_missing_with_its_reason_and_the_run_ends_with_3(cli: Cli, data: Path, tmp_path: Path) -> None:
    done = cli.run(suite(tmp_path), data)
    assert done.code == 3, done.text
    folder = scores_file(done, cli).parent
    record = json.loads((folder / "record.json").read_text())
    assert record["detectors"]["five"]["status"] == "missing"
    assert record["detectors"]["calibrated"]["status"] == "ok"
    message = record["detectors"]["five"]["message"]
    assert "recipe five cannot be trained here: no released training layout" in message
    assert "name the folder that holds FDF/" in message
    assert done.document["failed"] == {"five": message}
    assert any(stamp.startswith("PARTIAL") and "five" in stamp for stamp in record["stamps"])
    assert "five: not run: recipe five" in (folder / "tables" / "accuracy.md").read_text().replace("\\_", "_")
    assert "1 rows lack weights" in done.err
    assert "five" not in json.dumps(done.document["plan"])


def test_where_all_rows_are_required_it_is_an_error_before_anything_runs(
    cli: Cli, data: Path, tmp_path: Path, refused
) -> None:
    said = refused(cli.run(suite(tmp_path), data, "--require-all"))
    assert "recipe five cannot be trained here" in said
    assert not (cli.folder / "runs").exists()
    assert not (cli.folder / ".blades-store" / "heads").exists()


def test_a_dry_run_says_it_too(cli: Cli, data: Path, tmp_path: Path) -> None:
    done = cli.run(suite(tmp_path), data, "--dry-run")
    assert done.code == 0, done.text
    assert "recipe five cannot be trained here" in done.err

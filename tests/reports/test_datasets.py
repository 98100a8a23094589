"""A run folder whose tables are partitioned datasets gives the report and the comparison of one with files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.api.errors import DataError
from harness.data.tables import read_table, write_table
from harness.track.bundle import Bundle
from harness.verbs.report import check_run_dir, compare_run, remake
from reports.report import make_report

DIVIDED = {"scores": "detector", "cells": "test_set", "audit": "test_set", "manifest": None}


def as_datasets(folder: Path) -> Path:
    """The same tables in parts of 70 rows."""
    for name, by in DIVIDED.items():
        path = folder / f"{name}.parquet"
        table = read_table(path)
        write_table([table], path, rows=len(table), by=by, most_rows=10, part_rows=70)
        assert path.is_dir()
    return folder


def test_reports_of_datasets_are_those_of_files(demo_run, tmp_path: Path) -> None:
    files = demo_run.write()
    parts = as_datasets(Path(shutil.copytree(files, tmp_path / "parts" / files.name)))
    written = [p.relative_to(files) for p in make_report(files)]
    assert [p.relative_to(parts) for p in remake(parts)] == written
    for name in written:
        assert (parts / name).read_bytes() == (files / name).read_bytes(), name
    assert compare_run(parts, None)[0] == compare_run(files, None)[0]
    one, other = Bundle.read(files), Bundle.read(parts)
    assert one.datasets == other.datasets
    assert one.metrics_of("blades-oc") == other.metrics_of("blades-oc")


def test_the_audit_of_datasets_is_that_of_files(demo_run, tmp_path: Path) -> None:
    demo_run.record["edits"] = {"rotate": False, "match_format": None}
    files = demo_run.write()
    parts = as_datasets(Path(shutil.copytree(files, tmp_path / "parts" / files.name)))
    for folder in (files, parts):
        audit = folder / "audit.parquet"
        shutil.rmtree(audit) if audit.is_dir() else audit.unlink()
        remake(folder)
    assert (parts / "audit.parquet").read_bytes() == (files / "audit.parquet").read_bytes()


def test_an_empty_folder_in_place_of_a_table_is_no_run(demo_run) -> None:
    folder = demo_run.write()
    (folder / "scores.parquet").unlink()
    (folder / "scores.parquet").mkdir()
    with pytest.raises(DataError, match=r"scores.parquet is missing"):
        check_run_dir(folder)

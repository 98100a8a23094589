"""``data check|index|demo``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness.api.errors import DataError
from harness.engine.data import data_spec
from harness.engine.rows import prepare_rows
from harness.engine.suite import Suite, load_suite


def _suite(name: str, settings: list[str]) -> tuple[Suite, list[str], list[str]]:
    """The suite, the generators that its rows are trained on in a run, and those that their weights have seen."""
    suite = load_suite(name, settings=settings)
    rows = prepare_rows(suite, Path("pretrained"))
    return suite, [g for row in rows for g in row.trains_on], [g for row in rows for g in row.trained_on]


def _root(path: Path) -> Path:
    if not path.is_dir():
        raise DataError("the data root is not there", where=path, fix="check --data-root")
    return path


def check(root: Path, name: str, settings: list[str], *, fast: bool, allow_outside: bool) -> tuple[Any, str, bool]:
    """Document, text, and whether no error was found."""
    from harness.data.check import check_data

    suite, seen, known = _suite(name, settings)
    report = check_data(_root(root), data_spec(suite), fast=fast, seen=seen, known=known, allow_outside=allow_outside)
    return report.to_json(), report.text(), report.ok


def index(root: Path, name: str, settings: list[str], out: Path, *, allow_outside: bool) -> tuple[Path, int]:
    """The manifest's path and its number of images."""
    from harness.data.manifest import build_manifest, write_manifest

    suite, seen, known = _suite(name, settings)
    spec = data_spec(suite)
    result = build_manifest(
        _root(root), spec, seen=seen, known=known, allow_outside=allow_outside, seed=spec.splits.seed
    )
    result.require(root)
    path = out if out.suffix == ".parquet" else out / "manifest.parquet"
    return write_manifest(result.table, path), len(result.table)


def demo(out: Path) -> Path:
    """The demo corpus' data root."""
    from harness.data.demo import build_demo
    from harness.data.demo.labels import write_demo_labels
    from harness.data.exif.vocabulary import load_vocabulary
    from harness.verbs.data_exif import shipped_vocabulary
    from harness.verbs.progress import Progress

    progress = Progress()

    def show(done: int, total: int) -> None:
        from harness.api.events import Event

        progress(Event("progress", {"stage": "demo corpus", "done": done, "total": total, "unit": "images"}))

    root = build_demo(out, workers=min(2, len(os.sched_getaffinity(0))), progress=show)
    write_demo_labels(root, load_vocabulary(shipped_vocabulary()))
    return root

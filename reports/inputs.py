"""Reading a run folder: the tables and the record that every report is made from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import DataError
from harness.data.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

NEEDED = ("suite", "profile", "protocol", "run_id", "detectors", "bootstrap")


@dataclass(frozen=True)
class RunInputs:
    """A run folder's stored results; of the manifest the split of each image. Nothing here needs a model or an
    image."""

    folder: Path
    record: dict[str, Any]
    scores: pd.DataFrame
    cells: pd.DataFrame
    manifest: pd.DataFrame | None
    audit: pd.DataFrame | None

    @property
    def test_sets(self) -> list[str]:
        """Names of the test sets, sorted."""
        return sorted(str(name) for name in self.cells["test_set"].unique())

    @property
    def seen(self) -> dict[str, set[str]]:
        """Row → generators that its head or extractor was trained on."""
        return {row: set(entry.get("seen") or ()) for row, entry in self.record["detectors"].items()}

    @property
    def seed(self) -> int:
        """Seed of the resamples."""
        return int(self.record["bootstrap"].get("seed", 2024))


_UNFINISHED = "name a folder below runs/SUITE-PROFILE/; where its run was interrupted, run the suite again"


def read_run(folder: Path) -> RunInputs:
    """Everything a report needs from a run folder.

    Raises:
        DataError: the folder is no finished run, or a file of it cannot be read.
    """
    if not folder.is_dir():
        raise DataError("the run folder is not there", where=folder, fix="name runs/SUITE-PROFILE/RUN_ID")
    record = _record(folder / "record.json")
    return RunInputs(
        folder=folder,
        record=record,
        scores=_parquet(folder / "scores.parquet"),
        cells=_parquet(folder / "cells.parquet"),
        manifest=_optional(folder / "manifest.parquet", ["split"]),
        audit=_optional(folder / "audit.parquet"),
    )


def _record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError("not a finished run folder: record.json is missing", where=path.parent, fix=_UNFINISHED)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"the record cannot be read: {error}", where=path) from None
    if not isinstance(record, dict):
        raise DataError("the record is not a JSON object", where=path)
    lacking = [key for key in NEEDED if key not in record]
    if lacking:
        raise DataError(f"the record lacks {', '.join(lacking)}", where=path)
    if not isinstance(record["detectors"], dict):
        raise DataError("the record's detectors are not a table of rows", where=path)
    return record


def _optional(path: Path, columns: list[str] | None = None) -> pd.DataFrame | None:
    return _parquet(path, columns) if path.exists() else None


def _parquet(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    if not path.exists():
        raise DataError(f"not a finished run folder: {path.name} is missing", where=path.parent, fix=_UNFINISHED)
    try:
        return read_table(path, columns)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{path.name} cannot be read: {error}", where=path) from None

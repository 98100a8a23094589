"""Tables of a run as files, whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from harness.results.files import write_atomic

if TYPE_CHECKING:
    import pandas as pd


def empty_scores() -> pd.DataFrame:
    """``scores.parquet`` with no row, for a run in which no detector could be run."""
    import pandas as pd

    columns = {
        "sha256": "str", "label": "int8", "generator": "str", "detector": "str", "score": "float64",
        "threshold": "float64", "prediction": "int8",
    }  # fmt: skip
    return pd.DataFrame({name: pd.Series([], dtype=kind) for name, kind in columns.items()})


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table atomically; equal tables give equal bytes with one version of pyarrow."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomic(path, buffer.getvalue())

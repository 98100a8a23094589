"""Tables of a run: made piece by piece from the plan and the scores, and a manifest read for planning alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.api.contract import predict
from harness.api.errors import DataError
from harness.data.tables import MOST_ROWS, PIECE_ROWS, write_table
from harness.results.digests import CHUNK, digests_array, hex_digests

if TYPE_CHECKING:
    import pandas as pd

    from harness.engine.plan import Plan

_SCORES = {
    "sha256": "str", "label": "int8", "generator": "str", "detector": "str", "score": "float64",
    "threshold": "float64", "prediction": "int8",
}  # fmt: skip
_CELLS = {"test_set": "str", "sha256": "str", "label": "int8", "generator": "str"}


@dataclass(frozen=True)
class RowScores:
    """Scores of one row of the suite: of every image that some test set names, once a role.

    Attributes:
        plan: whose ``cell_rows`` are scored.
        row: the row's name.
        threshold: above it an image is called generated.
        score: ``[len(plan.cell_rows)] float64``; NaN: the detector abstains, or the image was set aside.
    """

    plan: Plan
    row: str
    threshold: float
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    def frame(self, start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """A part of it, as rows of `scores.parquet`."""
        import pandas as pd

        plan, score = self.plan, self.score[start:stop]
        rows = plan.cell_rows[start:stop]
        columns = {
            "sha256": plan.sha256(rows), "label": plan.manifest["label"].iloc[rows].to_numpy(),
            "generator": plan.manifest["generator"].iloc[rows].to_numpy(object), "detector": self.row, "score": score,
            "threshold": self.threshold, "prediction": predict(score, self.threshold),
        }  # fmt: skip
        return pd.DataFrame(columns, index=range(len(rows))).astype(_SCORES)


def score_frames(scores: Sequence[RowScores]) -> Iterator[pd.DataFrame]:
    """`scores.parquet` piece by piece, one row of the suite after the other; an empty piece where there is none."""
    import pandas as pd

    if not any(map(len, scores)):
        yield pd.DataFrame({name: pd.Series([], dtype=kind) for name, kind in _SCORES.items()})
    for row in scores:
        for start in range(0, len(row), PIECE_ROWS):
            yield row.frame(start, start + PIECE_ROWS)


def write_scores(scores: Sequence[RowScores], path: Path, *, most_rows: int = MOST_ROWS) -> None:
    """Write `scores.parquet`; above ``most_rows`` a dataset divided by detector.

    Raises:
        StoreError: it cannot be written.
    """
    rows = sum(map(len, scores))
    write_table(score_frames(scores), path, rows=rows, by="detector", most_rows=most_rows)


def write_cells(plan: Plan, path: Path, *, most_rows: int = MOST_ROWS) -> None:
    """Write `cells.parquet`; above ``most_rows`` a dataset divided by test set.

    Raises:
        StoreError: it cannot be written.
    """
    write_table(cell_frames(plan), path, rows=len(plan.draws), by="test_set", most_rows=most_rows)


def cell_frames(plan: Plan) -> Iterator[pd.DataFrame]:
    """`cells.parquet` piece by piece, one test set after the other."""
    import pandas as pd

    for name, drawn in zip(plan.draws.names, plan.draws.rows, strict=True):
        for start in range(0, len(drawn), PIECE_ROWS):
            rows = drawn[start : start + PIECE_ROWS]
            columns = {
                "test_set": name, "sha256": plan.sha256(rows), "label": plan.manifest["label"].iloc[rows].to_numpy(),
                "generator": plan.manifest["generator"].iloc[rows].to_numpy(object),
            }  # fmt: skip
            yield pd.DataFrame(columns).astype(_CELLS)


@dataclass(frozen=True)
class Roster:
    """A manifest as planning needs it, about 80 bytes an image instead of 300.

    Attributes:
        manifest: path, label, generator, dataset, split and order; words that repeat are categories.
        images: digests ``[N] S32`` of its rows.
    """

    manifest: pd.DataFrame
    images: np.ndarray

    def sha256(self, rows: np.ndarray) -> Iterator[str]:
        """Of manifest rows, one after the other: what `harness.data.splits.draw` takes as keys."""
        for start in range(0, len(rows), CHUNK):
            yield from hex_digests(self.images[rows[start : start + CHUNK]])


def read_roster(path: Path) -> Roster:
    """A written manifest, read for planning.

    Raises:
        DataError: it is missing, damaged or lacks columns.
    """
    import pandas as pd
    import pyarrow as pa

    from harness.data.manifest import COLUMNS, manifest_parts, manifest_rows
    from harness.engine.plan import PLANNED

    # each array is made once, in its size: parts to be joined would be held twice, and would leave holes behind
    count = manifest_rows(path)
    images, paths = np.empty(count, "S32"), []
    words: dict[str, list[str]] = {"generator": [], "dataset": [], "split": []}
    arrays = {name: np.empty(count, np.int16 if name in words else COLUMNS[name]) for name in PLANNED if name != "path"}
    start = 0
    for part in manifest_parts(path, ["sha256", *PLANNED]):
        stop = start + len(part)
        images[start:stop] = _digests(part["sha256"], path)
        paths.append(part["path"])
        for name, array in arrays.items():
            array[start:stop] = _codes(part[name], words[name]) if name in words else part[name].to_numpy()
        start = stop
    columns: dict[str, Any] = {"path": pd.concat(paths, ignore_index=True)}
    for name, array in arrays.items():
        columns[name] = pd.Categorical.from_codes(array, pd.Index(words[name])) if name in words else array
    roster = Roster(pd.DataFrame({name: columns[name] for name in PLANNED}), images)
    pa.default_memory_pool().release_unused()
    return roster


def _digests(column: pd.Series, path: Path) -> np.ndarray:
    try:
        return digests_array(column)
    except ValueError as error:
        what = f"the manifest's column sha256 holds something else than 64 hex digits ({error})"
        raise DataError(what, path, "write it with `harness data index`") from error


def _codes(column: pd.Series, known: list[str]) -> np.ndarray:
    """Places ``[N] int16`` of the words of a column in a list, to which new ones are added."""
    import pandas as pd

    codes, new = pd.factorize(column)
    known += [word for word in new if word not in known]
    return np.array([known.index(word) for word in new], np.int16)[codes]

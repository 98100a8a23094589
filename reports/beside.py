"""Which published number stands beside a measured one, and whether the two may be compared at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.published import AVERAGE, NINE, PublishedNumber, find, plain

MEAN_COLUMNS = {plain(name) for name in (AVERAGE, "TNR", "FPR", "TPR", "FNR", "F-score")}
"""Published columns that are means over the paper's nine generators."""


@dataclass(frozen=True)
class Beside:
    """A published number, if there is one, and the reason why it must not be compared ("" = comparable)."""

    number: PublishedNumber | None
    reason: str = ""

    @property
    def comparable(self) -> bool:
        """Whether a difference means anything."""
        return self.number is not None and not self.reason


def published_row(record: Mapping[str, Any], row: str) -> str:
    """The published row that a detector row stands beside: the record's `published_row`, else its own name."""
    return str(record["detectors"].get(row, {}).get("published_row") or row)


def beside(record: Mapping[str, Any], table: str | None, row: str, column: str, test_sets: Sequence[str]) -> Beside:
    """The published number for a row and column of a run's table.

    Args:
        record: the run's record.
        table: the published table the suite names, or None.
        column: the generator, or the published name of a mean ("Avg.", "TNR", …).
        test_sets: the run's test sets: a mean is comparable only when they are the paper's nine.
    """
    number = find(table, published_row(record, row), column)
    if number is None:
        return Beside(None, "nothing published")
    return Beside(number, run_reason(record) or _row_reason(record, row) or _mean_reason(column, test_sets))


def run_reason(record: Mapping[str, Any]) -> str:
    """Why nothing of this run may be compared with the paper; "" if that is not so."""
    stamps = [str(s) for s in record.get("stamps", ())]
    if record.get("profile") == "demo" or any(s.startswith("DEMO") for s in stamps):
        return "a demo run is not on the paper's images"
    edits = [f"{k} {v}" for k, v in (record.get("edits") or {}).items() if v]
    if edits:
        return f"the images were edited before detection: {', '.join(edits)}"
    return ""


def is_partial(record: Mapping[str, Any]) -> bool:
    """Whether the run left out rows or images."""
    return any(str(s).startswith("PARTIAL") for s in record.get("stamps", ()))


def _row_reason(record: Mapping[str, Any], row: str) -> str:
    entry = record["detectors"].get(row, {})
    if entry.get("random_weights"):
        return "random weights"
    changed = entry.get("changed") or ()
    return f"options changed by the user: {', '.join(changed)}" if changed else ""


def _mean_reason(column: str, test_sets: Sequence[str]) -> str:
    if plain(column) in MEAN_COLUMNS and set(test_sets) != set(NINE):
        return "the published mean is over the paper's nine generators"
    return ""

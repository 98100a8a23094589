"""The paper's tables from a run's metrics: measured, published and the difference, with what a reader must know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.api.errors import ConfigError
from harness.data.layouts import display_name
from harness.results.evaluate import AUDIT, MEAN
from reports import published
from reports.beside import Beside, beside, published_row

if TYPE_CHECKING:
    import pandas as pd

KEPT = "photographic_kept"
SEEN = " †"
SEEN_NOTE = "† This row's head or extractor was trained on images of this generator (for a mean: of one of them)."
SENSITIVITY = (("tnr", "TNR", "↑"), ("fpr", "FPR", "↓"), ("tpr", "TPR", "↑"), ("fnr", "FNR", "↓"))
DEFAULT_TABLES = (
    {"kind": "accuracy", "title": "Accuracy"},
    {"kind": "auc", "title": "Feature separability (AUC)"},
    {"kind": "sensitivity", "title": "Sensitivity, averaged over generators"},
)


@dataclass(frozen=True)
class Column:
    """A column: a test set, a mean, or the photographs kept. `published` is its name in the published table."""

    key: str
    label: str
    test_set: str
    metric: str
    published: str | None = None
    unit: str = "%"


@dataclass(frozen=True)
class Cell:
    """One measured number beside its published one; fractions, NaN where there is no value."""

    value: float
    low: float
    high: float
    beside: Beside
    seen: bool = False
    n: int = 0
    n_photographic: int = 0
    n_generated: int = 0
    abstained: int = 0

    @property
    def difference(self) -> float | None:
        """Measured minus published, where the two may be compared."""
        if self.beside.number is None or not self.beside.comparable or math.isnan(self.value):
            return None
        return self.value - self.beside.number.fraction


@dataclass(frozen=True)
class Row:
    """One row. `status` is ok, missing, failed, audit, or published (not part of this run)."""

    name: str
    label: str
    status: str
    cells: Mapping[str, Cell]
    message: str = ""
    images: int = 0
    abstained: int = 0


@dataclass(frozen=True)
class Table:
    """A table of a run; rendered by `reports.render`."""

    slug: str
    kind: str
    title: str
    published: str | None
    columns: Sequence[Column]
    rows: Sequence[Row]
    stamps: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=list)
    counts: Mapping[str, str] = field(default_factory=dict)


def generator_order(test_sets: Sequence[str]) -> list[str]:
    """The paper's nine in the paper's order, then the others by name."""
    nine = [name for name in published.NINE if name in test_sets]
    return nine + sorted(set(test_sets) - set(nine))


def label_of(name: str) -> str:
    """A detector's name as the paper prints it; its own name where the paper has none."""
    for table in ("cross_generator", "separability", "sensitivity"):
        for row in published.rows_of(table):
            if published.plain(row) == published.plain(name):
                return row
    return name


def columns_of(kind: str, test_sets: Sequence[str]) -> list[Column]:
    """The columns of a kind of table: "accuracy", "auc" or "sensitivity".

    Raises:
        ConfigError: another kind.
    """
    if kind not in ("accuracy", "auc", "sensitivity"):
        raise ConfigError(f"no kind of table {kind!r}", where="tables", fix="accuracy, auc or sensitivity")
    if kind == "sensitivity":
        rates = [Column(metric, f"{label}{arrow}", MEAN, metric, label) for metric, label, arrow in SENSITIVITY]
        return [*rates, Column("f_score", "F-score↑", MEAN, "f_score", "F-score", "fraction")]
    sets = [Column(name, display_name(name), name, kind, name) for name in generator_order(test_sets)]
    kept = Column(KEPT, "Photographic kept", MEAN, "accuracy_photographic")
    return [*sets, Column(MEAN, "Mean", MEAN, kind, published.AVERAGE), kept]


def build_tables(
    record: Mapping[str, Any], metrics: pd.DataFrame, test_sets: Sequence[str], notes: Sequence[str] = ()
) -> list[Table]:
    """Every table the suite asks for (or the three of the paper where it names none).

    Args:
        record: the run's record.
        metrics: `Evaluation.metrics`.
        test_sets: names of the run's test sets.
        notes: further remarks, `Evaluation.notes`.
    """
    values: dict[tuple[str, str, str], Any] = {
        (str(r.detector), str(r.test_set), str(r.metric)): r for r in metrics.itertuples(index=False)
    }
    tables: list[Table] = []
    for spec in record.get("tables") or DEFAULT_TABLES:
        tables.append(_table(spec, record, values, test_sets, notes, {t.slug for t in tables}))
    return tables


def _table(
    spec: Mapping[str, Any],
    record: Mapping[str, Any],
    values: Mapping[tuple[str, str, str], Any],
    test_sets: Sequence[str],
    notes: Sequence[str],
    taken: set[str],
) -> Table:
    kind, source = str(spec["kind"]), spec.get("published")
    columns = columns_of(kind, test_sets)
    rows = [_run_row(name, entry, columns, source, record, values, test_sets) for name, entry in _entries(record)]
    if any(key[0] == AUDIT for key in values):
        cells = _cells(AUDIT, columns, None, record, values, test_sets)
        rows.append(_with_counts(Row(AUDIT, f"{AUDIT} (audit, not a detector)", "audit", cells), values))
    rows += _published_rows(source, columns, record, test_sets)
    base = str(source or kind)
    slug = base if base not in taken else f"{base}-{len(taken) + 1}"
    return Table(
        slug=slug,
        kind=kind,
        title=str(spec.get("title") or kind),
        published=source,
        columns=columns,
        rows=rows,
        stamps=[str(s) for s in record.get("stamps", ())],
        notes=[*([str(spec["note"])] if spec.get("note") else []), *table_notes(record, rows, columns, notes, kind)],
        counts=_image_counts(columns, values),
    )


def _entries(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return list(record["detectors"].items())


def _run_row(
    name: str,
    entry: Mapping[str, Any],
    columns: Sequence[Column],
    source: str | None,
    record: Mapping[str, Any],
    values: Mapping[tuple[str, str, str], Any],
    test_sets: Sequence[str],
) -> Row:
    label = label_of(name) if published_row(record, name) == name else name
    if entry.get("random_weights"):
        label += " (RANDOM WEIGHTS)"
    status = str(entry.get("status", "ok"))
    row = Row(
        name, label, status, _cells(name, columns, source, record, values, test_sets), str(entry.get("message") or "")
    )
    return _with_counts(row, values)


def _with_counts(row: Row, values: Mapping[tuple[str, str, str], Any]) -> Row:
    mean = values.get((row.name, MEAN, "accuracy"))
    if mean is None:
        return row
    return Row(row.name, row.label, row.status, row.cells, row.message, int(mean.n), int(mean.abstained))


def _cells(
    name: str,
    columns: Sequence[Column],
    source: str | None,
    record: Mapping[str, Any],
    values: Mapping[tuple[str, str, str], Any],
    test_sets: Sequence[str],
) -> dict[str, Cell]:
    cells = {}
    for column in columns:
        next_to = Beside(None)
        if name != AUDIT and column.published is not None:
            next_to = beside(record, source, name, column.published, test_sets)
        found = values.get((name, column.test_set, column.metric))
        if found is None:
            cells[column.key] = Cell(math.nan, math.nan, math.nan, next_to)
            continue
        seen = bool(found.seen) and column.key != KEPT  # photographs are no generator's
        counts = (int(found.n), int(found.n_photographic), int(found.n_generated), int(found.abstained))
        cells[column.key] = Cell(float(found.value), float(found.low), float(found.high), next_to, seen, *counts)
    return cells


def _published_rows(
    source: str | None, columns: Sequence[Column], record: Mapping[str, Any], test_sets: Sequence[str]
) -> list[Row]:
    """Published detectors that this run does not have, for context; none beside a demo, whose images are others."""
    if record.get("profile") == "demo":
        return []
    here = {published.plain(published_row(record, name)) for name in record["detectors"]}
    rows = []
    for name in published.rows_of(source):
        if published.plain(name) in here:
            continue
        cells = {}
        for column in columns:
            number = published.find(source, name, column.published) if column.published else None
            cells[column.key] = Cell(math.nan, math.nan, math.nan, Beside(number, "not part of this run"))
        if any(cell.beside.number is not None for cell in cells.values()):
            rows.append(Row(name, name, "published", cells))
    return rows


def _image_counts(columns: Sequence[Column], values: Mapping[tuple[str, str, str], Any]) -> dict[str, str]:
    """ "photographic + generated" of each test set's column, where every row has the same."""
    counts = {}
    for column in columns:
        if column.test_set == MEAN:
            continue
        found = {
            (int(v.n_photographic), int(v.n_generated))
            for key, v in values.items()
            if key[1] == column.test_set and key[2] == column.metric
        }
        if found:
            fewest, most = min(found), max(found)
            both = f"{most[0]:,} + {most[1]:,}"
            counts[column.key] = both if fewest == most else f"up to {both}"
    return counts


def table_notes(
    record: Mapping[str, Any], rows: Sequence[Row], columns: Sequence[Column], notes: Sequence[str], kind: str
) -> list[str]:
    """What stands under a table: how to read it, what is missing, what was counted how, the protocol."""
    bootstrap = record["bootstrap"]
    out = [
        f"Percent (F-score: fraction); in brackets the 95 % bootstrap interval of the images ({bootstrap.get('n')} "
        f"resamples within class, seed {bootstrap.get('seed')}). Difference: measured minus published, in the "
        "table's unit. Mean: over the generators. Generated is the positive class."
    ]
    if kind != "sensitivity":
        out.append("Photographic kept: share of the photographs called photographic, mean over test sets.")
    if any(cell.seen for row in rows for cell in row.cells.values()):
        out.append(SEEN_NOTE)
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for cell in row.cells.values():
            if row.status == "ok" and cell.beside.number is not None and cell.beside.reason:
                reasons.setdefault(cell.beside.reason, []).append(row.label)
    for reason, labels in reasons.items():
        out.append(f"n/c (not comparable): {reason} ({', '.join(dict.fromkeys(labels))}).")
    for row in rows:
        if row.status in ("missing", "failed"):
            what = "not run" if row.status == "missing" else "failed"
            out.append(f"{row.label}: {what}: {' '.join(row.message.split()) or 'no reason recorded'}")
        if row.abstained:
            out.append(
                f"{row.label}: abstained on {row.abstained:,} of {row.images:,} images over all test sets (wrong in "
                "accuracy and rates, left out of AUC, AP and EER)."
            )
    skipped = int(record.get("skipped_images") or 0)
    out.append(f"Images left out because they could not be decoded: {skipped}.")
    if any(row.status == "audit" for row in rows):
        out.append(
            f"{AUDIT}: what file metadata (format, size, JPEG quality) alone give, out of fold. An audit of the "
            "images, not a detector, and not ranked: where it is high, high numbers of detectors mean little."
        )
    if any(row.status == "published" for row in rows):
        out.append(
            "Rows marked 'published' are not part of this run; their numbers are the paper's, and their mean is over "
            "the paper's generators."
        )
    out += list(notes)
    out.append(protocol_line(record))
    return out


def protocol_line(record: Mapping[str, Any]) -> str:
    """Every switch of the protocol, on one line."""
    switches = record["protocol"]
    named = record.get("protocol_base")
    listed = ", ".join(f"{key}={_switch(value)}" for key, value in switches.items())
    return f"Protocol{f' {named}' if named else ''}: {listed}."


def _switch(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

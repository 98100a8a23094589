"""Measured against published: an equivalence test a number, one verdict for the run, an exit code for scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.api.errors import ConfigError
from harness.results.bootstrap import DEFAULT_RESAMPLES, SetScores, replicates
from harness.results.equivalence import Equivalence, equivalence
from harness.results.evaluate import MEAN, join_scores
from reports import published
from reports.beside import beside, is_partial, published_row, run_reason
from reports.inputs import RunInputs, read_run
from reports.tables import KEPT, SEEN, SEEN_NOTE, Column, columns_of, label_of

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
NOT_COMPARABLE, NOT_MEASURED = "not comparable", "not measured"
COMPARED = ("accuracy", "accuracy_photographic", "tpr", "tnr", "fpr", "fnr", "f_score", "auc")
EXIT_CODES = {REPRODUCED: 0, NOT_REPRODUCED: 1, INCONCLUSIVE: 4}


@dataclass(frozen=True)
class ComparedNumber:
    """One published number: verdict reproduced, not reproduced, inconclusive, "not comparable" or "not measured".

    Values, intervals and tolerance are fractions; NaN where there is none. ``seen``: the row was trained on images of
    this generator (of a mean: of one of the test sets).
    """

    table: str
    row: str
    column: str
    published: float
    measured: float
    difference: float
    low95: float
    high95: float
    tolerance: float
    verdict: str
    reason: str = ""
    seen: bool = False


@dataclass(frozen=True)
class Comparison:
    """Every published number of the rows of a run, the verdict over all of them, and the exit code."""

    run: str
    rows: list[ComparedNumber]
    verdict: str
    exit_code: int
    reasons: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Plain data for `--json`; NaN as None."""
        rows = [{k: None if _is_nan(v) else v for k, v in asdict(row).items()} for row in self.rows]
        return {"run": self.run, "verdict": self.verdict, "exit_code": self.exit_code, "reasons": self.reasons,
                "rows": rows}  # fmt: skip

    def text(self) -> str:
        """For people: a line a number (none where nothing is comparable), then the verdict and why."""
        out = []
        shown = any(row.verdict != NOT_COMPARABLE for row in self.rows)
        for table in dict.fromkeys(row.table for row in self.rows if shown):
            chosen = [row for row in self.rows if row.table == table]
            out.append(f"{table} (tolerance ±{chosen[0].tolerance * 100:.2f} points)")
            out += [_line(row) for row in chosen]
        counts = {v: sum(row.verdict == v for row in self.rows) for v in dict.fromkeys(r.verdict for r in self.rows)}
        out.append(f"{self.run}: {self.verdict.upper()}" + "".join(f", {n} {v}" for v, n in counts.items()))
        out += [f"  {reason}" for reason in self.reasons]
        out += [f"  {SEEN_NOTE}"] if shown and any(row.seen for row in self.rows) else []
        return "\n".join(out)


def compare(run_dir: str | Path, table: str | None = None) -> Comparison:
    """Measured minus published for every published number of the run's rows, from the stored scores.

    Args:
        run_dir: a finished run folder.
        table: only tables whose published name, kind or title this is.

    A number counts as reproduced when the 90 % bootstrap interval of the difference lies within the suite's
    tolerance, as not reproduced when the 95 % interval lies wholly outside, else as inconclusive
    (`harness.results.equivalence`). Over all: not reproduced if any number is; reproduced if all are and none is
    missing; otherwise inconclusive, with the reasons. A demo run compares nothing.

    Raises:
        ConfigError: no such table, or a tolerance that cannot be meant.
        DataError: no run folder.
    """
    return compare_inputs(read_run(Path(run_dir)), table)


def compare_inputs(run: RunInputs, table: str | None = None, *, sets: Sequence[SetScores] | None = None) -> Comparison:
    """`compare` for a run that was read already; `sets`: its joined scores, if they are at hand.

    Raises:
        ConfigError: as `compare`.
    """
    specs = _specs(run.record, table)
    rows: list[ComparedNumber] = []
    if run_reason(run.record) or not any(spec.get("published") for spec in specs):
        samples: dict[str, NDArray[np.float64]] = {}
        sets = []
    else:
        sets = join_scores(run.scores, run.cells) if sets is None else sets
        stop = int(run.record["bootstrap"].get("n", DEFAULT_RESAMPLES))
        samples = replicates(sets, seed=run.seed, stop=stop, metrics=COMPARED)
    for spec in specs:
        rows += _compare_table(run, spec, sets, samples)
    verdict, reasons = _overall(run.record, rows, specs)
    return Comparison(str(run.record["run_id"]), rows, verdict, EXIT_CODES[verdict], reasons)


def _specs(record: Mapping[str, Any], table: str | None) -> list[Mapping[str, Any]]:
    specs = list(record.get("tables") or ())
    for spec in specs:
        tolerance = spec.get("tolerance", 0.01)
        if not 0 < float(tolerance) <= 0.5:
            fix = "a fraction, 0.01 = one percentage point"
            raise ConfigError(f"tolerance {tolerance} of table {spec.get('title')!r}", where="tables", fix=fix)
    if table is None:
        return specs
    chosen = [s for s in specs if table in (s.get("published"), s.get("kind"), s.get("title"))]
    if not chosen:
        known = ", ".join(str(s.get("published") or s.get("kind")) for s in specs) or "none"
        raise ConfigError(f"the run has no table {table!r}", where=record["run_id"], fix=f"one of: {known}")
    return chosen


def _compare_table(
    run: RunInputs,
    spec: Mapping[str, Any],
    sets: Sequence[SetScores],
    samples: Mapping[str, NDArray[np.float64]],
) -> list[ComparedNumber]:
    """Every number printed for the rows of this run, in printed order; also those that the run has no column for."""
    source = spec.get("published")
    if not source:
        return []
    columns = {published.plain(c.published): c for c in columns_of(str(spec["kind"]), run.test_sets) if c.published}
    tolerance = float(spec.get("tolerance", 0.01))
    out = []
    for row, entry in run.record["detectors"].items():
        printed = [n for n in published.numbers(source) if published.plain(n.row) == _plain_row(run, row)]
        for number in printed:
            column = columns.get(published.plain(number.column))
            reason = beside(run.record, source, row, number.column, run.test_sets).reason
            known = (source, row, number.column, number.fraction)
            if reason:
                found = _without(*known, tolerance, NOT_COMPARABLE, reason)
            elif column is None:
                found = _without(*known, tolerance, NOT_MEASURED, "no such test set in this run")
            elif str(entry.get("status", "ok")) != "ok":
                why = " ".join(str(entry.get("message") or entry["status"]).split())
                found = _without(*known, tolerance, NOT_MEASURED, why)
            else:
                found = _test(*known, tolerance, column, sets, samples)
            out.append(replace(found, seen=column is not None and _seen(run, row, column)))
    return out


def _seen(run: RunInputs, row: str, column: Column) -> bool:
    """Whether the row was trained on images of the column's generator, or of one of those it is the mean over."""
    names = run.test_sets if column.test_set == MEAN else [column.test_set]
    return column.key != KEPT and bool(run.seen[row].intersection(names))


def _plain_row(run: RunInputs, row: str) -> str:
    return published.plain(published_row(run.record, row))


def _without(
    table: str, row: str, column: str, value: float, tolerance: float, verdict: str, reason: str
) -> ComparedNumber:
    nan = math.nan
    return ComparedNumber(table, row, column, value, nan, nan, nan, nan, tolerance, verdict, reason)


def _test(
    table: str,
    row: str,
    name: str,
    value: float,
    tolerance: float,
    column: Column,
    sets: Sequence[SetScores],
    samples: Mapping[str, NDArray[np.float64]],
) -> ComparedNumber:
    chosen = [s for s in sets if column.test_set in (MEAN, s.name)]
    if not chosen or row not in chosen[0].detectors:
        return _without(table, row, name, value, tolerance, NOT_MEASURED, "no stored scores")
    d, m = chosen[0].detectors.index(row), COMPARED.index(column.metric)
    if any(not s.present[d].all() for s in chosen):
        return _without(table, row, name, value, tolerance, NOT_MEASURED, "some images have no stored score")
    measured = float(np.mean([s.point(d)[column.metric] for s in chosen]))
    draws = np.mean([samples[s.name][d, m] for s in chosen], axis=0)
    fewest = min(min(len(s.classes[0]), len(s.classes[1])) for s in chosen)
    found = equivalence(measured, value, draws, tolerance, num_images=fewest)
    return _row(table, row, name, value, measured, found)


def _row(table: str, row: str, name: str, value: float, measured: float, found: Equivalence) -> ComparedNumber:
    return ComparedNumber(
        table, row, name, value, measured, found.difference, found.low95, found.high95, found.tolerance,
        found.verdict, found.reason,
    )  # fmt: skip


def _overall(
    record: Mapping[str, Any], rows: Sequence[ComparedNumber], specs: Sequence[Mapping[str, Any]]
) -> tuple[str, list[str]]:
    reasons = []
    why = run_reason(record)
    if why:
        return INCONCLUSIVE, [f"nothing is comparable: {why}"]
    if not any(spec.get("published") for spec in specs):
        return INCONCLUSIVE, ["nothing is comparable: the suite names no published table"]
    if not rows:
        return INCONCLUSIVE, ["nothing is comparable: no row of this run has a published number"]
    for stamp in record.get("stamps", ()):
        reasons.append(f"note: {stamp}")
    open_rows = [row for row in rows if row.verdict not in (REPRODUCED, NOT_REPRODUCED)]
    for reason in dict.fromkeys(f"{row.verdict}: {row.reason}" for row in open_rows):
        number = sum(f"{row.verdict}: {row.reason}" == reason for row in open_rows)
        reasons.append(f"{number} × {reason}")
    if any(row.verdict == NOT_REPRODUCED for row in rows):
        return NOT_REPRODUCED, reasons
    if open_rows or is_partial(record):
        return INCONCLUSIVE, reasons
    return REPRODUCED, reasons


def _line(row: ComparedNumber) -> str:
    column = row.column + (SEEN if row.seen else "")
    head = f"  {label_of(row.row):<14} {column:<11} published {row.published * 100:7.2f}"
    if math.isnan(row.measured):
        return f"{head}  {row.verdict}: {row.reason}"
    interval = f"[{row.low95 * 100:+.2f}, {row.high95 * 100:+.2f}]"
    return (
        f"{head}  measured {row.measured * 100:7.2f}  difference {row.difference * 100:+.2f} {interval}  {row.verdict}"
    )


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)

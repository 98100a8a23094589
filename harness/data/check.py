"""`data check`: everything that is wrong with a data root, at once, and whether file formats give the classes away."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.data.audit import Separation, format_audit_scores, format_table, separations
from harness.data.edits import InputEdits
from harness.data.facts import Progress
from harness.data.layouts import DataSpec
from harness.data.manifest import build_manifest
from harness.data.problems import Problem, Severity, printable
from harness.data.splits import draw_cells

PER_GENERATOR = 5_000
"""Images of a class that a test set draws at most (METHOD "Detection")."""


@dataclass(frozen=True)
class CheckReport:
    """What `data check` found.

    Attributes:
        root: the data root as given.
        fast: only headers were read, nothing was decoded.
        problems: all of them, errors first.
        notes: what a reader should know.
        counts: a row a class, dataset or generator, and split: label, name, split, images.
        formats: `format_table` of the images.
        separations: the format audit of each test set.
        table: the manifest.
    """

    root: str
    fast: bool
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    counts: pd.DataFrame
    formats: pd.DataFrame
    separations: tuple[Separation, ...]
    table: pd.DataFrame

    @property
    def ok(self) -> bool:
        """No errors (warnings may remain)."""
        return all(p.severity != "error" for p in self.problems)

    def text(self) -> str:
        """The report for people."""
        errors = sum(p.severity == "error" for p in self.problems)
        warnings = len(self.problems) - errors
        looked = "headers read, not decoded (--fast)" if self.fast else "every image decoded"
        lines = [f"data root {printable(self.root)}: {len(self.table):,} images, {looked}", ""]
        lines += [_plain_table(self.counts), "", "Formats", _plain_table(self.formats), ""]
        lines += ["Format audit (metadata alone, out of fold)"]
        lines += [
            f"  {'WARNING: ' if s.warns else ''}{s.message} [{s.low:.3f}, {s.high:.3f}]" for s in self.separations
        ]
        if any(s.warns for s in self.separations):
            lines += ["  A detector's scores on such test sets may only show the format: see --match-format."]
        lines += ["", *(f"note: {printable(n)}" for n in self.notes)]
        lines += [p.text() for p in self.problems]
        lines += [f"{errors} errors, {warnings} warnings" if self.problems else "no problems found"]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain data: ok, root, fast, images, problems, notes, counts, formats, format_audit."""
        return {
            "ok": self.ok,
            "root": printable(self.root),
            "fast": self.fast,
            "images": len(self.table),
            "problems": [p.to_json() for p in self.problems],
            "notes": [printable(n) for n in self.notes],
            "counts": json.loads(self.counts.to_json(orient="records")),
            "formats": json.loads(self.formats.to_json(orient="records")),
            "format_audit": [
                {"test_set": s.test_set, "auc": s.auc, "low": s.low, "high": s.high, "warns": s.warns}
                for s in self.separations
            ],
        }


def check_data(
    root: str | os.PathLike[str],
    spec: DataSpec | None = None,
    fast: bool = False,
    *,
    seen: Collection[str] = (),
    known: Collection[str] = (),
    allow_outside: bool = False,
    workers: int | None = None,
    seed: int = 2024,
    per_generator: int = PER_GENERATOR,
    edits: InputEdits | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Look at a whole data root and list every problem, not only the first.

    Args:
        root: the data root.
        spec: what the suite tests on; the paper's when None.
        fast: read headers instead of decoding every image.
        seen, known, allow_outside, workers, seed, progress: as for `build_manifest`.
        per_generator: images of a class that a test set should have.
        edits: audit the images as they are after these edits.

    Raises:
        DataError: the root is no readable folder.
    """
    spec = spec or DataSpec()
    result = build_manifest(
        root,
        spec,
        seen=seen,
        known=known,
        allow_outside=allow_outside,
        decode="header" if fast else "full",
        workers=workers,
        seed=seed,
        progress=progress,
    )
    table = result.table
    problems = [*result.problems, *_short(table, spec, per_generator, str(root))]
    problems.sort(key=lambda p: p.severity != "error")
    cells = draw_cells(table, _testable(table), n=per_generator, seed=seed)
    found = separations(format_audit_scores(table, cells, seed, edits=edits))
    return CheckReport(
        str(root), fast, tuple(problems), result.notes, _counts(table), format_table(table), tuple(found), table
    )


def _testable(table: pd.DataFrame) -> list[str]:
    report = table[table["split"] == "report"]
    with_photographs = set(report.loc[report["label"] == 0, "dataset"])
    generated = report[(report["label"] == 1) & report["dataset"].isin(with_photographs)]
    return sorted(set(generated["generator"]))


def _short(table: pd.DataFrame, spec: DataSpec, per_generator: int, root: str) -> list[Problem]:
    """Lists and folders that are shorter than the paper's protocol asks for."""
    problems = []
    for entry in spec.photographs:
        rows = table[(table["label"] == 0) & (table["dataset"] == entry.dataset)]
        if rows.empty:
            continue
        for_training = int((rows["split"] != "report").sum())
        for_testing = len(rows) - for_training
        if entry.use == "all" and for_training < spec.splits.train_lines:
            what = (
                f"{entry.dataset} has {for_training:,} photographs for training and fitting; the protocol takes the "
                f"first {spec.splits.train_lines:,} of its list"
            )
            problems.append(Problem("short-list", "warning", what, root, "complete the training list", for_training))
        largest = table.loc[(table["dataset"] == entry.dataset) & (table["label"] == 1), "generator"].value_counts()
        needed = min(per_generator, int(largest.iloc[0])) if len(largest) else 0
        if for_testing < needed:
            what = (
                f"{entry.dataset} has {for_testing:,} photographs for testing; test sets would draw {needed:,}, "
                "and are cut to as many"
            )
            severity: Severity = "warning" if for_testing else "error"
            problems.append(Problem("short-list", severity, what, root, "complete the test list", for_testing))
    return problems


def _counts(table: pd.DataFrame) -> pd.DataFrame:
    name = table["generator"].where(table["label"] == 1, table["dataset"]).astype("str")
    counted = table.assign(name=name).groupby(["label", "name", "split"]).size()
    return counted.rename("images").reset_index()


def _plain_table(table: pd.DataFrame) -> str:
    shown = table.assign(label=table["label"].map({0: "photographic", 1: "generated"}))
    return shown.to_string(index=False, float_format=lambda value: f"{value:.2f}") if len(table) else "  (none)"

"""Reports of several trainings as one table: a row a recipe, the mean over its seeds, an interval and chance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.results.files import write_atomic
from harness.results.training import ABOVE, BELOW, TrainingFolder, verdict

if TYPE_CHECKING:
    import pandas as pd

STEM = "trainings"
MARKS = {ABOVE: " +", BELOW: " −"}
COLUMNS = ("recipe", "task", "metric", "seeds", "mean", "low", "high", "chance", "images", "verdict")
LEGEND = (
    "Mean over seeds on photographs that training never saw, and the 95 % interval of Student's t over seeds: a seed "
    "decides initial weights, order and what is drawn; images are the same for all. + above chance, − below: the "
    "interval, not the mean. Nothing published stands beside this table: the published numbers at hand hold no row of "
    "these measures."
)


@dataclass
class _Row:
    """One recipe with its trainings, a seed each."""

    name: str
    document: Mapping[str, Any]
    reported_on: Sequence[str]
    trainings: dict[Any, TrainingFolder] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """The numbers (`COLUMNS`, a row a recipe and number; ``low`` and ``high`` are empty with one seed), and what a
    reader must know, a line each."""

    table: pd.DataFrame
    notes: Sequence[str]


def summarise(trainings: Sequence[TrainingFolder]) -> Summary | None:
    """Trainings that were reported on, those that differ in seed alone taken together; None where there is none."""
    import pandas as pd

    rows, notes = _rows([t for t in trainings if len(t.report)])
    left = [str(t.folder) for t in trainings if not len(t.report)]
    if left:
        notes.append(f"without a report, left out (train again with --report): {', '.join(left)}")
    if not rows:
        return None
    if len({tuple(row.reported_on) for row in rows}) > 1:
        notes.append("the rows were reported on different images or annotations: they do not compare")
    table = [cell for label, row in zip(_labels(rows), rows, strict=True) for cell in _cells(label, row)]
    stamps = dict.fromkeys(s for row in rows for t in row.trainings.values() for s in t.record.stamps
                           if not s.startswith("CHANGED: seed="))  # fmt: skip
    return Summary(pd.DataFrame(table, columns=list(COLUMNS)), [*stamps, *notes])


def _rows(trainings: Sequence[TrainingFolder]) -> tuple[list[_Row], list[str]]:
    rows: dict[str, _Row] = {}
    notes = []
    for training in trainings:
        record = training.record
        document = {k: v for k, v in record.recipe.items() if k not in ("recipe", "seed", "protocol")}
        document |= {"protocol": dict(record.protocol), "inputs": list(record.inputs), "edits": dict(record.edits)}
        words = json.dumps([record.name, document, record.reported_on], sort_keys=True)
        row = rows.setdefault(words, _Row(record.name, document, record.reported_on))
        seed = record.recipe.get("seed")
        if seed in row.trainings:
            notes.append(f"{record.name}, seed {seed}: named twice, {row.trainings[seed].folder} counts")
        else:
            row.trainings[seed] = training
    return list(rows.values()), notes


def _labels(rows: Sequence[_Row]) -> list[str]:
    """The recipe's name; where rows share one, with the keys in which they differ."""
    labels = []
    for row in rows:
        same = [_flat(other.document) for other in rows if other.name == row.name]
        mine = _flat(row.document)
        keys = sorted({k for other in same for k in other.keys() | mine.keys() if other.get(k) != mine.get(k)})
        shown = [f"{key}={mine.get(key)}" if key not in ("inputs",) else "other images" for key in keys]
        labels.append(f"{row.name} ({', '.join(shown)})" if shown else row.name)
    return labels


def _flat(value: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, item in value.items():
        out |= _flat(item, f"{start}{key}.") if isinstance(item, Mapping) else {f"{start}{key}": item}
    return out


def _cells(label: str, row: _Row) -> list[dict[str, Any]]:
    """Numbers that every seed has, in the order of the first report."""
    import pandas as pd

    reports = pd.concat([t.report for t in row.trainings.values()])
    out = []
    for (task, metric), found in reports.groupby(["task", "metric"], sort=False):
        values = found["value"].to_numpy(np.float64)
        if len(values) < len(row.trainings):
            continue
        low, high = t_interval(values)
        chance = float(found["chance"].mean())
        out.append({
            "recipe": label, "task": task, "metric": metric, "seeds": len(values), "mean": float(values.mean()),
            "low": low, "high": high, "chance": chance, "images": int(found["images"].min()),
            "verdict": verdict(low, high, chance),
        })  # fmt: skip
    return out


def t_interval(values: Any) -> tuple[float, float]:
    """95 % interval of the mean of values `[n]` by Student's t with n - 1 degrees of freedom; NaN for fewer than 2."""
    from scipy.stats import t

    count = len(values)
    if count < 2:
        return float("nan"), float("nan")
    half = float(t.ppf(0.975, count - 1)) * float(np.std(values, ddof=1)) / count**0.5
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def markdown(summary: Summary) -> str:
    """A table for people: a row a recipe, a column a number, chance in the first row."""
    table = summary.table
    names = list(dict.fromkeys(zip(table["task"], table["metric"], strict=True)))
    cells: dict[tuple[str, ...], Any] = {(str(r.recipe), str(r.task), str(r.metric)): r for r in table.itertuples()}
    head = ["recipe", "seeds", *(f"{task} {metric}".replace("_", " ") for task, metric in names)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    chances = [_chance([c.chance for key, c in cells.items() if key[1:] == name]) for name in names]
    lines.append(f"| *chance* | | {' | '.join(chances)} |")
    for recipe in dict.fromkeys(table["recipe"]):
        mine = [cells.get((recipe, *name)) for name in names]
        seeds = next(c.seeds for c in mine if c is not None)
        lines.append(f"| {recipe} | {seeds} | {' | '.join('–' if c is None else _cell(c) for c in mine)} |")
    return "\n".join([*lines, "", LEGEND, *(f"- {note}" for note in summary.notes)]) + "\n"


def _cell(row: Any) -> str:
    interval = "" if np.isnan(row.low) else f" [{row.low:.3f}, {row.high:.3f}]"
    return f"{row.mean:.3f}{interval}{MARKS.get(row.verdict, '')}"


def _chance(values: Sequence[float]) -> str:
    shown = sorted({f"{v:.3f}" for v in values if not np.isnan(v)})
    return "–" if not shown else shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"


def write_summary(summary: Summary, folder: Path) -> list[Path]:
    """`trainings.md` and `trainings.csv` in a folder; equal summaries give equal files.

    Raises:
        StoreError: the folder cannot be written.
    """
    data = {".md": markdown(summary).encode(),
            ".csv": summary.table.to_csv(index=False, lineterminator="\n").encode()}  # fmt: skip
    paths = [folder / f"{STEM}{ending}" for ending in data]
    for path, content in zip(paths, data.values(), strict=True):
        write_atomic(path, content)
    return paths

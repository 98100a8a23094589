"""The figure of the hypergradient's audit: the difference's error by ε, from the rows the audit writes.

`python -m reports.hypergradient HISTORY.jsonl OUT` writes OUT/audit.csv, OUT/audit.md (the same by task) and
OUT/hypergradient.png from the history of a training whose recipe asks for the audit (one JSON object a line, a line a
step, as the trainer keeps it).
"""

from __future__ import annotations

import csv
import io
import json
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from harness.api.errors import DataError
from harness.results.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("step", "scale", "eps", "task", "exact", "difference", "relative_error")
OVERALL = "all tasks"
"""The row of the vector's norms, beside one row a task."""


def audit_rows(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `COLUMNS`, one a step, ε and task, of a training's history whose steps hold an `audit`.

    `relative_error` is |difference − exact| / |exact|, None where the exact product is 0.
    """
    rows: list[dict[str, Any]] = []
    for entry in history:
        audit: Mapping[str, Any] = entry.get("audit") or {"differences": ()}
        for found in audit["differences"]:
            place = {"step": entry["step"], "scale": found["scale"], "eps": found["eps"]}
            for task, exact in audit["exact"].items():
                difference, error = found["difference"][task], found["relative"][task]
                rows.append({**place, "task": task, "exact": exact, "difference": difference, "relative_error": error})
            rows.append({**place, "task": OVERALL, "exact": None, "difference": None,
                         "relative_error": found["overall"]})  # fmt: skip
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as CSV, in full precision; None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a history file.

    Raises:
        DataError: the file is absent, or a line of it is no row of a history.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not all(isinstance(row, dict) and "step" in row for row in rows):
            raise ValueError("a line is no step")
    except (OSError, ValueError) as error:
        raise DataError(f"not the history of a training: {error}", where=path) from None
    return rows


def agreement(rows: Sequence[Mapping[str, Any]], scale: float, task: str | None = None) -> float | None:
    """Share of steps (and tasks, unless one is named) with a product whose sign the difference has too; None without
    any."""
    signs = [
        (row["difference"] > 0) == (row["exact"] > 0) and row["difference"] != 0
        for row in rows
        if row["scale"] == scale and row["exact"] and task in (None, row["task"])
    ]
    return sum(signs) / len(signs) if signs else None


def audit_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The audit in Markdown, a row a task: median (largest) relative error and share of equal signs, by ε over the
    released one. A task without a product has no row."""
    scales = sorted({row["scale"] for row in rows}, reverse=True)
    tasks = [t for t in dict.fromkeys(row["task"] for row in rows) if t != OVERALL] + [OVERALL]
    lines = [
        "| task | " + " | ".join(f"error at {s:g} ε | signs" for s in scales) + " |",
        "|---" * (1 + 2 * len(scales)) + "|",
    ]
    for task in tasks:
        cells = []
        for scale in scales:
            errors = [
                row["relative_error"]
                for row in rows
                if row["task"] == task and row["scale"] == scale and row["relative_error"] is not None
            ]
            if errors:
                cells.append(f"{median(errors):.1%} ({max(errors):.0%})")
                signs = agreement(rows, scale, None if task == OVERALL else task)
                cells.append("" if signs is None else f"{signs:.0%}")
        if cells:
            lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def hypergradient_figure(rows: Sequence[Mapping[str, Any]], note: str = "") -> Figure:
    """Relative error of the difference against ε over the released one: a line a task (the median over the audited
    steps), the whole vector in black, and the agreement of signs under each ε.

    Args:
        rows: of `audit_rows`.
        note: a line under the title (which encoder, which data).

    Raises:
        DataError: no rows with a product.
    """
    from matplotlib.figure import Figure

    errors: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["relative_error"] is not None:
            errors[row["task"]][row["scale"]].append(row["relative_error"])
    if not errors:
        raise DataError("no audited step has a product to compare with", fix="audit a recipe whose tasks have labels")
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    ax = figure.subplots()
    styles = ("-", "--", "-.", ":")
    for number, (task, by_scale) in enumerate(sorted(errors.items())):
        scales = sorted(by_scale, reverse=True)
        whole = task == OVERALL
        [line] = ax.plot(scales, [median(by_scale[s]) for s in scales], marker="o", markersize=3, label=task)
        line.set(linestyle="-" if whole else styles[number % 4], linewidth=2.5 if whole else 1.2)
        if whole:
            line.set_color("black")
    scales = sorted({row["scale"] for row in rows}, reverse=True)
    shares = [agreement(rows, scale) for scale in scales]
    ax.set(xscale="log", yscale="log", ylabel="relative error (median over steps)")
    ax.set_xticks(scales, [
        f"{s:g}" + (f"\n{share:.0%}" if share is not None else "") for s, share in zip(scales, shares, strict=True)
    ])  # fmt: skip
    ax.set_xlabel("ε / released ε; below: share of equal signs")
    ax.invert_xaxis()
    ax.axhline(1, color="grey", linewidth=0.8)
    steps = len({row["step"] for row in rows})
    title = f"Central difference against the exact product, {steps} audited steps"
    ax.set_title("\n".join([title, *textwrap.wrap(note, 90)]), fontsize=10)
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def save_audit(history: Iterable[Mapping[str, Any]], out: Path, note: str = "") -> tuple[Path, Path, Path]:
    """Write `audit.csv`, `audit.md` and `hypergradient.png` into a folder; their paths.

    Raises:
        DataError: no step of the history was audited.
    """
    rows = audit_rows(history)
    figure = hypergradient_figure(rows, note)
    out.mkdir(parents=True, exist_ok=True)
    table, text, picture = out / "audit.csv", out / "audit.md", out / "hypergradient.png"
    write_rows(table, rows)
    write_atomic(text, audit_table(rows).encode())
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_atomic(picture, content.getvalue())
    return table, text, picture


def main(words: Sequence[str]) -> int:
    """Draw the figure of a history; 2 and a message for bad input."""
    if len(words) != 2:
        print("usage: python -m reports.hypergradient HISTORY.jsonl OUT", file=sys.stderr)
        return 2
    try:
        paths = save_audit(read_history(Path(words[0])), Path(words[1]))
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

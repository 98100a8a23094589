"""Figures of a training, drawn from the tables of its folder: losses, task weights, audits of the hypergradient, and
the report; the report as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.results.training import ABOVE, BELOW, TrainingFolder, by_task, read_training
from reports.figures import COLOURS, LINES, new_figure, plain_text, save_figure
from reports.hypergradient import OVERALL, hypergradient_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

POINTS = 400
"""Points of a loss that are drawn: of longer trainings each is the mean of as many steps as needed, and it says so."""
CAPTIONS = {"losses": "losses by step", "lambda": "task weights λ by step",
            "hypergradient": "hypergradient audit: the difference against the exact product",
            "report": "pretext tasks on photographs that training never saw"}  # fmt: skip


def make_training_figures(folder: Path) -> list[tuple[Path, str]]:
    """Draw the figures of a training folder into its ``figures/``; each path with a caption.

    ``losses.png``; ``lambda.png`` where the history has task weights; ``hypergradient.png`` where it has audits;
    ``report.png`` where the training was reported on.
    One that an earlier making left and that is not drawn now is removed. Made again they are the same files.

    Raises:
        DataError: no training folder, or one that cannot be read.
    """
    training = read_training(folder)
    drawn = {"losses": losses_figure(training), "lambda": lambda_figure(training),
             "hypergradient": audit_figure(training), "report": report_figure(training)}  # fmt: skip
    out = []
    for name, figure in drawn.items():
        path = folder / "figures" / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            out.append((save_figure(figure, path), f"{training.record.name}: {CAPTIONS[name]}"))
    return out


def _title(training: TrainingFolder) -> str:
    record = training.record
    epochs = int(training.history["epoch"].max()) if record.steps else 0
    return f"{record.name} ({record.key[:12]}): {record.steps:,} steps, to epoch {epochs:,}"


def averaged(steps: NDArray[np.float64], values: NDArray[np.float64], size: int) -> tuple[Any, Any]:
    """Means of ``size`` consecutive values and of their steps, the last of what is left; missing values left out."""
    starts = np.arange(0, len(values), size)
    known = ~np.isnan(values)
    counts = np.add.reduceat(known, starts, dtype=np.int64)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    places = np.add.reduceat(steps, starts) / np.diff([*starts, len(values)])
    return places, np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index // len(COLOURS) % len(LINES)]}


def _lines(ax: Any, table: pd.DataFrame, columns: Mapping[str, str], size: int = 1) -> None:
    steps = table["step"].to_numpy(np.float64)
    for i, (task, column) in enumerate(columns.items()):
        x, y = averaged(steps, table[column].to_numpy(np.float64), size)
        ax.plot(x, y, label=plain_text(task), linewidth=1.2, marker="." if len(x) < 3 else None, **_style(i))
    ax.locator_params(axis="x", integer=True)


def _legend(ax: Any) -> None:
    entries = len(ax.get_legend_handles_labels()[0])
    if entries:
        ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), title="task", title_fontsize=7)


def losses_figure(training: TrainingFolder) -> Figure:
    """The weighted loss with the rate, and the loss of each task; means of several steps where there are many."""
    table = training.history
    figure, (left, right) = new_figure(1, 2, (10.0, 3.6), training.record.stamps)
    figure.suptitle(plain_text(_title(training)), fontsize=10)
    size = -(-len(table) // POINTS) if len(table) else 1
    shown = "step" if size == 1 else f"step (means of {size:,})"
    if len(table):
        _lines(left, table, {"loss": "loss"}, size)
        rates = left.twinx()
        rates.plot(table["step"], table["lr"], color="0.6", linewidth=1, linestyle=":", drawstyle="steps-mid")
        rates.set_ylabel("learning rate (dotted)", fontsize=8, color="0.4")
        rates.tick_params(labelsize=7)
        _lines(right, table, by_task(table, "loss"), size)
        _legend(right)
    left.set(xlabel=shown, ylabel="what is minimised")
    right.set(xlabel=shown, ylabel="loss of the task")
    return figure


def lambda_figure(training: TrainingFolder) -> Figure | None:
    """The trajectory of each task weight; None where the history has none."""
    columns = by_task(training.history, "lambda")
    if not columns:
        return None
    figure, (ax,) = new_figure(1, 1, (7.6, 4.2), training.record.stamps)
    size = max(1, -(-len(training.history) // (10 * POINTS)))  # λ moves slowly: more points, so that none hides
    _lines(ax, training.history, columns, size)
    ax.set(xlabel="step" if size == 1 else f"step (means of {size:,})", ylabel="λ after the step")
    ax.set_title(plain_text(f"Task weights, {_title(training)}"), fontsize=10)
    _legend(ax)
    return figure


def audits(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of `reports.hypergradient.audit_rows` from the columns ``audit/...`` of a history."""
    columns = list(by_task(table, "audit").values())
    scales = dict.fromkeys(c.split("/")[2] for c in columns if c.startswith("audit/differences/"))
    tasks = list(by_task(table, "audit/exact"))
    rows: list[dict[str, Any]] = []
    for step, audit in zip(table["step"].tolist(), table[columns].to_dict("records"), strict=True):

        def value(name: str, audit: dict[Any, Any] = audit) -> float | None:
            found = audit.get(f"audit/{name}", np.nan)
            return None if found is None or np.isnan(found) else float(found)

        for scale in scales:
            start = f"differences/{scale}"
            if value(f"{start}/eps") is None:
                continue
            place = {"step": int(step), "scale": float(scale), "eps": value(f"{start}/eps")}
            for task in tasks:
                rows.append({**place, "task": task, "exact": value(f"exact/{task}"),
                             "difference": value(f"{start}/difference/{task}"),
                             "relative_error": value(f"{start}/relative/{task}")})  # fmt: skip
            rows.append({**place, "task": OVERALL, "exact": None, "difference": None,
                         "relative_error": value(f"{start}/overall")})  # fmt: skip
    return rows


def audit_figure(training: TrainingFolder) -> Figure | None:
    """Error of the difference by the scale of its ε (`reports.hypergradient`); None where no audit has a product."""
    rows = audits(training.history)
    if all(row["relative_error"] is None for row in rows):
        return None
    return hypergradient_figure(rows, plain_text("; ".join([_title(training), *training.record.stamps])))


def report_figure(training: TrainingFolder) -> Figure | None:
    """Each number of the report with its interval, beside chance; None where there is no report."""
    table = training.report
    if not len(table):
        return None
    figure, (ax,) = new_figure(1, 1, (7.6, 1.2 + 0.28 * len(table)), training.record.stamps)
    places = np.arange(len(table))[::-1]
    values, low, high = (table[name].to_numpy(np.float64) for name in ("value", "low", "high"))
    colours = [_VERDICT_COLOURS.get(verdict, "0.4") for verdict in table["verdict"]]
    ax.hlines(places, low, high, color=colours, linewidth=2)
    ax.scatter(values, places, color=colours, s=22, zorder=3)
    ax.scatter(table["chance"], places, marker="|", color="black", s=120, label="chance")
    ax.set_yticks(places, [plain_text(f"{r.task} {r.metric}") for r in table.itertuples()], fontsize=8)
    ax.set(xlim=(-0.02, 1.02), xlabel="mean and 95 % interval over photographs")
    ax.legend(fontsize=7, loc="lower left")
    ax.set_title(plain_text(f"{training.record.name} ({training.record.key[:12]}): split report"), fontsize=10)
    return figure


_VERDICT_COLOURS = {ABOVE: COLOURS[0], BELOW: COLOURS[1]}


def report_text(table: pd.DataFrame) -> str:
    """The report as aligned text, a line a number."""
    lines = [f"{'on report':34}  value  95 % interval   chance  photographs"]
    rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]
    for row in rows:
        chance = "  –   " if np.isnan(row["chance"]) else f"{row['chance']:.3f} "
        interval, name = f"[{row['low']:.3f}, {row['high']:.3f}]", f"{row['task']} {row['metric']}"
        lines.append(
            f"{name:34}  {row['value']:.3f}  {interval}  {chance}  {row['images']:11,}  {row['verdict']}".rstrip()
        )
    return "\n".join(lines)


def training_folders(run_folder: Path) -> Sequence[Path]:
    """Training folders of a run folder (``training/<recipe>``), sorted."""
    from harness.results.training import is_training

    return sorted(p for p in (run_folder / "training").glob("*") if is_training(p))

"""Figures of a sweep, drawn from the tables of its folder: parallel coordinates, the objective against each swept key,
the objective by epoch, and the task weights of every trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.results.sweep import SweepFolder, read_sweep
from harness.results.training import by_task
from reports.figures import new_figure, plain_text, save_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MAP = "viridis"
PANELS = 6
"""Swept keys, and tasks of a row of panels, that are drawn at most."""
TASKS = 12
POINTS = 400
"""Steps of a trajectory that are drawn at most, evenly."""
STYLES = {"finished": "-", "stopped": "--", "failed": ":", "crashed": ":"}
CAPTIONS = {
    "parallel": "parallel coordinates: a line a trial, through its drawn values to its objective",
    "objective": "objective against each swept key",
    "epochs": "objective by epoch; rungs are dotted",
    "lambda": "task weights λ of every trial",
}


def make_sweep_figures(folder: Path) -> list[tuple[Path, str]]:
    """Draw the figures of a sweep folder into its ``figures/``; each path with a caption.

    ``lambda.png`` only where task weights learn; one that an earlier making left and that is not drawn now is removed.
    Made again they are the same files.

    Raises:
        DataError: no sweep folder, or one that cannot be read.
    """
    sweep = read_sweep(folder)
    drawn = {"parallel": parallel_figure(sweep), "objective": objective_figure(sweep),
             "epochs": epochs_figure(sweep), "lambda": lambda_figure(sweep)}  # fmt: skip
    out = []
    for name, figure in drawn.items():
        path = folder / "figures" / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            out.append((save_figure(figure, path), f"{sweep.record.name}: {CAPTIONS[name]}"))
    return out


def _title(sweep: SweepFolder) -> str:
    counts = ", ".join(f"{n} {state}" for state, n in sweep.record.counts.items() if n)
    return f"{sweep.record.name} ({sweep.record.key[:12]}): {counts}"


def _judged(sweep: SweepFolder) -> pd.DataFrame:
    """Trials of their own that have an objective."""
    trials = sweep.trials
    return trials[(trials["state"] != "repeats") & trials["objective"].notna()]


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def positions(values: Sequence[Any], logarithmic: bool) -> tuple[NDArray[np.float64], dict[float, str]]:
    """Where values of a key stand on its axis, and its labels: numbers (their log10 on a logarithmic axis), or one
    place each for words, in the order in which they come."""
    numbers = np.array([_number(v) for v in values], np.float64)
    if np.isnan(numbers).any():
        words = list(dict.fromkeys(map(str, values)))
        return np.array([words.index(str(v)) for v in values], np.float64), {float(i): w for i, w in enumerate(words)}
    if logarithmic:
        numbers = np.log10(numbers)
    ticks = np.unique(np.linspace(numbers.min(), numbers.max(), 5)) if len(numbers) else numbers
    return numbers, {float(t): f"{10**t if logarithmic else t:.3g}" for t in ticks}


def _scaled(places: NDArray[np.float64], labels: Mapping[float, str]) -> tuple[NDArray[np.float64], dict[float, str]]:
    """The same between 0 and 1; a single place in the middle."""
    low, high = min(labels), max(labels)
    width = high - low
    if width == 0:
        return np.full(len(places), 0.5), {0.5: labels[low]}
    return (places - low) / width, {(at - low) / width: text for at, text in labels.items()}


def _colours(values: NDArray[np.float64]) -> tuple[Any, Any]:
    """A colour a value, and what a colour bar is drawn from."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    norm = Normalize(low, high if high > low else low + 1e-9)
    return colormaps[MAP](norm(values)), ScalarMappable(norm, MAP)


def parallel_figure(sweep: SweepFolder) -> Figure:
    """An axis a key and one for the objective; a line a trial, stopped ones dashed, coloured by the objective."""
    table, metric = _judged(sweep), sweep.record.metric
    keys = sweep.keys
    figure, (ax,) = new_figure(1, 1, (max(5.0, 2.0 * len(keys) + 3.0), 4.2), sweep.record.stamps)
    ax.set_title(plain_text(_title(sweep)), fontsize=9)
    columns = [*keys, "objective"]
    heights = []
    for x, key in enumerate(columns):
        space = sweep.record.spaces.get(key)
        if not len(table):
            break
        places, labels = positions(table[key].tolist(), space is not None and space.logarithmic)
        y, ticks = _scaled(places, labels)
        heights.append(y)
        ax.plot([x, x], [0, 1], color="0.3", linewidth=1)
        for at, text in ticks.items():
            ax.text(x - 0.03, at, plain_text(text), fontsize=7, ha="right", va="center")
    if len(table):
        objective = table["objective"].to_numpy(np.float64)
        colours, bar = _colours(objective)
        for i, state in enumerate(table["state"]):
            ax.plot(range(len(columns)), [y[i] for y in heights], STYLES[state], color=colours[i], linewidth=1.4)
        figure.colorbar(bar, ax=ax, label=plain_text(metric))
    scales = [" (log)" if k in sweep.record.spaces and sweep.record.spaces[k].logarithmic else "" for k in columns]
    shown = [metric if k == "objective" else k for k in columns]
    ax.set_xticks(range(len(columns)), [plain_text(f"{k}{s}") for k, s in zip(shown, scales, strict=True)], fontsize=8)
    ax.set(xlim=(-0.4, len(columns) - 0.8), ylim=(-0.05, 1.05), yticks=[])
    ax.set_xlabel("solid: trained to the end; dashed: stopped early, by its value there", fontsize=7)
    for side in ("top", "right", "left", "bottom"):
        ax.spines[side].set_visible(False)
    return figure


def objective_figure(sweep: SweepFolder) -> Figure:
    """The objective against each swept key, on its axis; trials that were stopped are hollow, at their value there."""
    table, keys = _judged(sweep), sweep.keys[:PANELS]
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure, axes = new_figure(rows, columns, (4.6 * columns, 3.6 * rows), sweep.record.stamps)
    figure.suptitle(plain_text(_title(sweep)), fontsize=9)
    for ax in axes[len(keys) :]:
        ax.set_visible(False)
    for ax, key in zip(axes, keys, strict=False):
        _scatter(ax, table, sweep, key)
    return figure


def _scatter(ax: Any, table: pd.DataFrame, sweep: SweepFolder, key: str) -> None:
    space = sweep.record.spaces[key]
    values = table[key].tolist()
    numeric = not np.isnan([_number(v) for v in values]).any()
    x = np.array([_number(v) for v in values]) if numeric else positions(values, False)[0]
    for state, filled, text in (("finished", True, "trained to the end"), ("stopped", False, "stopped early")):
        rows = (table["state"] == state).to_numpy()
        if rows.any():
            face = "#0072b2" if filled else "none"
            ax.scatter(x[rows], table["objective"][rows], s=26, facecolors=face, edgecolors="#0072b2", label=text)
    best = sweep.record.best
    if best is not None and (table["trial"] == best).any():
        row = (table["trial"] == best).to_numpy()
        ax.scatter(x[row], table["objective"][row], s=110, facecolors="none", edgecolors="#d55e00",
                   label=f"best: trial {best}")  # fmt: skip
    if space.logarithmic:
        ax.set_xscale("log")
        ax.set_xlim(float(space.values[0]), float(space.values[1]))
    elif not numeric:
        labels = positions(values, False)[1]
        ax.set_xticks(list(labels), [plain_text(t) for t in labels.values()], fontsize=8)
    where = "highest is best" if sweep.record.mode == "max" else "lowest is best"
    ax.set_xlabel(plain_text(f"{key}{' (log axis)' if space.logarithmic else ''}"))
    ax.set_ylabel(plain_text(f"{sweep.record.metric} on select ({where})"), fontsize=8)
    if len(table):
        ax.legend(fontsize=7)


def epochs_figure(sweep: SweepFolder) -> Figure:
    """The objective by epoch, a line a trial; the rungs at which trials are judged are dotted."""
    figure, (ax,) = new_figure(1, 1, (7.0, 4.0), sweep.record.stamps)
    ax.set_title(plain_text(_title(sweep)), fontsize=9)
    colours, bar, label = _trial_colours(sweep)
    metric = sweep.record.metric
    for number, state in _states(sweep).items():
        mine = sweep.select[sweep.select["trial"] == number]
        if state in STYLES and len(mine) and metric in mine:
            ax.plot(mine["epoch"], mine[metric], STYLES[state], color=colours[number], linewidth=1.2,
                    marker="." if len(mine) < 3 else None)  # fmt: skip
    for rung in sweep.record.rungs:
        ax.axvline(rung, color="0.6", linewidth=0.8, linestyle=":")
    ax.locator_params(axis="x", integer=True)
    ax.set(xlabel="epoch", ylabel=plain_text(f"{metric} on select"))
    _bar(figure, [ax], bar, label)
    return figure


def _states(sweep: SweepFolder) -> dict[int, str]:
    return dict(zip(sweep.trials["trial"].tolist(), sweep.trials["state"].tolist(), strict=True))


def _trial_colours(sweep: SweepFolder) -> tuple[dict[int, Any], Any, str]:
    """A colour a trial by its first swept key: colours by number, what the bar is drawn from, its label."""
    key = sweep.keys[0]
    space = sweep.record.spaces[key]
    places, labels = positions(sweep.trials[key].tolist(), space.logarithmic)
    colours, bar = _colours(places)
    bar.blades_ticks = labels
    named = f"{key}{' (log)' if space.logarithmic else ''}"
    return dict(zip(sweep.trials["trial"].tolist(), colours, strict=True)), bar, named


def _bar(figure: Figure, axes: Sequence[Any], bar: Any, label: str) -> None:
    drawn = figure.colorbar(bar, ax=list(axes), label=plain_text(label))
    ticks = bar.blades_ticks
    drawn.set_ticks(list(ticks), labels=[plain_text(t) for t in ticks.values()])
    drawn.ax.tick_params(labelsize=7)


def lambda_figure(sweep: SweepFolder) -> Figure | None:
    """λ after each step, a panel a task and a line a trial, coloured by the first swept key; None without λ."""
    tasks: dict[str, str] = {}
    for history in sweep.histories.values():
        tasks |= by_task(history, "lambda")
    if not tasks:
        return None
    shown = list(tasks)[:TASKS]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = new_figure(rows, columns, (3.0 * columns + 1.4, 2.4 * rows + 0.4), sweep.record.stamps)
    left = f"; {len(tasks) - len(shown)} more tasks" if len(tasks) > len(shown) else ""
    figure.suptitle(plain_text(f"Task weights, {_title(sweep)}{left}"), fontsize=9)
    colours, bar, label = _trial_colours(sweep)
    states = _states(sweep)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    for ax, task in zip(axes, shown, strict=False):
        for number, history in sweep.histories.items():
            if tasks[task] in history:
                some = history.iloc[np.unique(np.linspace(0, len(history) - 1, POINTS).astype(int))]
                ax.plot(some["step"], some[tasks[task]], STYLES.get(states[number], "-"), color=colours[number],
                        linewidth=1.0, marker="." if len(some) < 3 else None)  # fmt: skip
        ax.set_title(plain_text(task), fontsize=8)
        ax.tick_params(labelsize=6)
        ax.locator_params(axis="x", integer=True, nbins=4)
    for ax in axes[max(0, len(shown) - columns) : len(shown)]:
        ax.set_xlabel("step", fontsize=7)
    _bar(figure, axes[: len(shown)], bar, label)
    return figure

"""ROC curves and score histograms of a run, drawn from stored scores and stamped as the run is."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.data.layouts import display_name
from harness.results.bootstrap import SetScores
from harness.results.evaluate import AUDIT
from harness.results.files import write_atomic
from harness.results.metrics import area_under_roc, roc_curve
from reports.tables import SEEN, generator_order, label_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#f0e442")
"""Okabe and Ito's palette: told apart with any colour vision; line styles repeat it for print."""
LINES = ("-", "--", "-.", ":")
SHOWN = (0.005, 0.995)
"""Scores outside these quantiles are drawn at the edge of a histogram."""


def file_name(kind: str, name: str) -> str:
    """A file name for any test set or row: letters, digits, "-", "_", "."; others are replaced and a digest added."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name).strip(".")[:60]
    if safe != name:
        safe += "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{kind}-{safe}.png"


def save_figures(
    folder: Path,
    sets: Sequence[SetScores],
    record: Mapping[str, Any],
) -> list[tuple[Path, str]]:
    """Write one ROC figure a test set and one histogram figure a detector; each path with a caption.

    Figures made by an earlier report of the same run are replaced; other files in the folder stay.
    """
    stamps = [str(s) for s in record.get("stamps", ())]
    by_name = {s.name: s for s in sets}
    ordered = [by_name[name] for name in generator_order(list(by_name))]
    out = []
    for scores in ordered:
        figure = roc_figure(scores, stamps, _marks(record, scores.name))
        caption = f"ROC curves on {display_name(scores.name)}"
        out.append((save_figure(figure, folder / file_name("roc", scores.name)), caption))
    rows = [name for name in record["detectors"] if ordered and name in ordered[0].detectors]
    for name in rows:
        figure = histogram_figure(name, ordered, stamps, record["detectors"][name].get("seen") or ())
        out.append((save_figure(figure, folder / file_name("scores", name)), f"Scores of {label_of(name)}"))
    return out


def _marks(record: Mapping[str, Any], test_set: str) -> dict[str, str]:
    """What a legend must add to a row: random weights, or † where it was trained on this generator."""
    marks = {}
    for name, entry in record["detectors"].items():
        marks[name] = " (RANDOM WEIGHTS)" if entry.get("random_weights") else ""
        marks[name] += SEEN if test_set in (entry.get("seen") or ()) else ""
    return marks


def roc_figure(scores: SetScores, stamps: Sequence[str], marks: Mapping[str, str]) -> Figure:
    """The ROC curves of every row on one test set; the audit's is grey and says what it is.

    Args:
        marks: row → what its legend must add (random weights, † = trained on this generator).
    """
    figure, axes = new_figure(1, 1, (5.6, 5.2), stamps)
    ax = axes[0]
    ax.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=0)
    drawn = 0
    for d, name in enumerate(scores.detectors):
        there = scores.present[d]
        roc = roc_curve(scores.label[there], scores.score[d, there])
        if not len(roc.fpr):
            continue
        auc = area_under_roc(scores.label[there], scores.score[d, there])
        if name == AUDIT:
            style: dict[str, Any] = {"color": "0.55", "linestyle": ":", "linewidth": 1.6}
            label = f"{AUDIT} (audit, not a detector): {auc:.3f}"
        else:
            style = {"color": COLOURS[drawn % len(COLOURS)], "linestyle": LINES[drawn // len(COLOURS) % len(LINES)]}
            label = f"{label_of(name)}{marks.get(name, '')}: {auc:.3f}"
            drawn += 1
        ax.plot(roc.fpr, roc.tpr, label=plain_text(label), **style)
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    ax.set_xlabel("photographic called generated (FPR)")
    ax.set_ylabel("generated found (TPR)")
    counts = f"{int((scores.label == 0).sum()):,} photographic, {int(scores.label.sum()):,} generated"
    ax.set_title(plain_text(f"{display_name(scores.name)}: {counts}"), fontsize=10)
    if ax.get_legend_handles_labels()[0]:
        trained = any(SEEN in marks.get(name, "") for name in scores.detectors)
        title = "AUC († trained on this generator)" if trained else "AUC"
        ax.legend(loc="lower right", fontsize=8, title=title, title_fontsize=8)
    else:
        ax.text(0.5, 0.5, "no scores of both classes", ha="center")
    return figure


def histogram_figure(name: str, sets: Sequence[SetScores], stamps: Sequence[str], seen: Collection[str] = ()) -> Figure:
    """One detector's scores on every test set: both classes, the threshold, and the count of abstentions; † on the
    generators that it was trained on (`seen`)."""
    columns = min(3, len(sets))
    rows = -(-len(sets) // columns)
    figure, axes = new_figure(rows, columns, (3.4 * columns + 0.4, 2.5 * rows + 0.7), stamps)
    for ax, scores in zip(axes, sets, strict=False):
        _histogram(ax, scores, scores.detectors.index(name), SEEN if scores.name in seen else "")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize=7)
    for ax in axes[len(sets) :]:
        ax.set_visible(False)
    title = f"{label_of(name)}: scores, higher = more likely generated; the outer 0.5 % at the edges"
    title += "\n† trained on images of this generator" if {s.name for s in sets}.intersection(seen) else ""
    figure.suptitle(plain_text(title), fontsize=9)
    return figure


def _histogram(ax: Any, scores: SetScores, d: int, mark: str) -> None:
    there = scores.present[d]
    score, label = scores.score[d, there], scores.label[there]
    known = ~np.isnan(score)
    title = display_name(scores.name) + mark
    if not known.all():
        title += f" ({int((~known).sum())} abstained)"
    ax.set_title(plain_text(title), fontsize=9)
    ax.tick_params(labelsize=7)
    edges = _edges(score[known])
    if edges is None:
        ax.text(0.5, 0.5, "no scores", ha="center", transform=ax.transAxes, fontsize=8)
        return
    for value, colour, hatch, text in ((0, COLOURS[0], "", "photographic"), (1, COLOURS[1], "///", "generated")):
        part = np.clip(score[known & (label == value)], edges[0], edges[-1])
        ax.hist(part, edges, color=colour, alpha=0.55, hatch=hatch, edgecolor="white", linewidth=0.3, label=text)
    threshold = scores.threshold[d, there]
    line = threshold[~np.isnan(threshold)]
    if len(line) and edges[0] <= line[0] <= edges[-1]:
        ax.axvline(float(line[0]), color="black", linewidth=1, linestyle="--", label="threshold")


def _edges(score: NDArray[np.float64]) -> NDArray[np.float64] | None:
    finite = score[np.isfinite(score)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, SHOWN)
    if high - low <= 1e-12 * max(1.0, abs(high)):
        width = max(0.5, 0.01 * abs(float(low)))
        low, high = low - width, high + width
    return np.linspace(low, high, 41)


def new_figure(rows: int, columns: int, size: tuple[float, float], stamps: Sequence[str]) -> tuple[Figure, list[Any]]:
    """A figure of its own (no global state), with room for the stamps at its foot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [line for stamp in stamps for line in _wrap(stamp, int(size[0] * 15))]
    extra = 0.17 * len(lines)
    figure = Figure(figsize=(size[0], size[1] + extra), dpi=110)
    FigureCanvasAgg(figure)
    bottom = extra / (size[1] + extra)
    figure.set_layout_engine("constrained", rect=(0, bottom, 1, 1 - bottom))
    for i, line in enumerate(reversed(lines)):
        y = (0.05 + 0.17 * i) / (size[1] + extra)
        figure.text(0.5, y, plain_text(line), ha="center", fontsize=7.5, color="#b00020", weight="bold")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.ravel())


def _wrap(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width) or [""]


def plain_text(text: str) -> str:
    """Text that matplotlib draws as it stands: a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG in one step, without the date or version that would change from one making to the next."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomic(path, buffer.getvalue())
    return path

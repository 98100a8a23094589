"""Histograms of the four ordinal tags with their cut points."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.exif.jsonsafe import write_bytes
from harness.data.exif.labels import LEVEL_NAMES, ORDINAL
from harness.data.exif.levels import UNITS, Cuts
from harness.data.exif.tags import BY_NAME

_BAR, _CUT = "#0072b2", "#d55e00"  # of Okabe and Ito's palette
_NUM_BINS = 40
_NOTE: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "fontsize": 7, "ha": "center", "va": "top"}


def write_figure(path: Path, columns: Mapping[str, NDArray[np.float64]], cuts: Mapping[str, Cuts], levels: int) -> Path:
    """Write a PNG, one panel a tag: photographs over the logarithm of the value, cut points as lines.

    Args:
        columns: tag → values [N], NaN where not known.
        cuts: of each tag.
        levels: how many levels there are.

    Raises:
        DataError: the folder cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6) if levels == 3 else (13, 7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for ax, name in zip(figure.subplots(2, 2).ravel(), ORDINAL, strict=True):
        _panel(ax, name, columns[name], cuts[name], levels)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return write_bytes(path, buffer.getvalue())


def _panel(ax: Any, name: str, column: NDArray[np.float64], cuts: Cuts, levels: int) -> None:
    values = column[~np.isnan(column)]
    ax.set_title(f"{BY_NAME[name].title}: {len(values):,} of {len(column):,} photographs", fontsize=10)
    ax.tick_params(labelsize=8)
    if not len(values):
        ax.text(0.5, 0.5, "no photograph has it", ha="center", transform=ax.transAxes)
        return
    ax.set_xscale("log")
    low, high = min([values.min(), *cuts.points]) * 0.9, max([values.max(), *cuts.points]) * 1.1
    # a value that equals a cut is below it, while a bar's upper end belongs to the next bar
    edges = [low, *(point * (1 + 1e-9) for point in cuts.points), high]
    ax.hist(values, _bins(edges), color=_BAR)
    ax.set_xlabel(f"{BY_NAME[name].title} ({UNITS[name]})", fontsize=8)
    ax.set_ylabel("photographs", fontsize=8)
    _ticks(ax, low, high)
    ax.set_ylim(top=ax.get_ylim()[1] * (1.4 if levels == 3 else 1.6))  # room for the names of levels and cuts
    step = 0 if levels == 3 else 1  # five names may be close: every second one a line lower
    for i, point in enumerate(cuts.points):
        ax.axvline(point, color=_CUT, linestyle="--", linewidth=1.3)
        height = 0.84 - step * (0.09 + 0.06 * (i % 2))
        said = ax.annotate(BY_NAME[name].show(point), (point, height), color=_CUT, **_NOTE)
        said.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})
    for i, count in enumerate(cuts.counts[: len(edges) - 1]):
        middle = float(np.sqrt(edges[i] * edges[i + 1]))
        height = 0.985 - step * 0.1 * (i % 2)
        ax.annotate(f"{LEVEL_NAMES[levels][i]}\n{count:,}", (middle, height), **_NOTE)


def _bins(edges: list[float]) -> NDArray[np.float64]:
    """Edges of about `_NUM_BINS` bars of like width on a logarithmic axis, none across a cut."""
    width = np.log(edges[-1] / edges[0]) / _NUM_BINS
    parts = []
    for low, high in pairwise(edges):
        parts.append(np.geomspace(low, high, max(1, round(np.log(high / low) / width)) + 1)[:-1])
    return np.concatenate([*parts, edges[-1:]])


def _ticks(ax: Any, low: float, high: float) -> None:
    """Plain numbers (0.01, 5, 400) at 1, 2 and 5 of each decade within the axis, or at 1 where there are many."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(FixedLocator([s * 10.0**d for d in decades for s in steps]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

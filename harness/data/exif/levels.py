"""Ordinal tags to levels: quantiles of a corpus, or cut points that are given.

A value's level is the number of cut points that lie below it, so a value that equals a cut belongs to the lower
level, and equal values always share a level. Exposure time is a duration in s: 1/60 is above 1/125.

*Deviation*: the authors' cut points are not published. METHOD's default is tertiles of the training set.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.api.errors import ConfigError
from harness.data.exif.jsonsafe import load_object
from harness.data.exif.labels import LEVEL_NAMES, ORDINAL

UNITS: dict[str, str] = {"iso": "ISO", "aperture": "F-number", "exposure_time": "s", "focal_length": "mm"}
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Cuts:
    """The cut points of one tag.

    Attributes:
        points: increasing; one fewer than there are levels, or fewer where a corpus has too few distinct values.
        given: by the user, not taken from the corpus.
        counts: photographs a level, lowest first.
    """

    points: tuple[float, ...]
    given: bool
    counts: tuple[int, ...]

    @property
    def empty(self) -> tuple[int, ...]:
        """Levels that no photograph has."""
        return tuple(i for i, count in enumerate(self.counts) if count == 0)


def quantile_cuts(values: NDArray[np.float64], levels: int) -> tuple[float, ...]:
    """Cut points that split values into `levels` parts as equal as ties allow.

    Args:
        values: [N] finite, any order.
        levels: how many parts.

    A cut is the largest value of the part below it. It can only lie between two distinct values: of all such choices
    that leave no part empty, the one whose cumulative shares are nearest to k / levels in squares, the lowest on a
    draw. With fewer distinct values than levels the upper levels stay empty: fewer points are returned.
    """
    distinct, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    num_cuts = min(levels, len(distinct)) - 1
    if num_cuts < 1:
        return ()
    shares = np.cumsum(counts)[:-1] / counts.sum()
    # best[k][j]: least cost of the first k cuts with the k-th at boundary j
    best = (shares - 1 / levels) ** 2
    back: list[NDArray[np.intp]] = []
    for k in range(2, num_cuts + 1):
        least = np.minimum.accumulate(best)
        where = np.maximum.accumulate(np.where(np.r_[True, best[1:] < least[:-1]], np.arange(len(best)), 0))
        back.append(np.r_[0, where[:-1]])
        best = np.r_[np.inf, least[:-1]] + (shares - k / levels) ** 2
    j = int(np.argmin(best))
    chosen = [j]
    for previous in reversed(back):
        j = int(previous[j])
        chosen.append(j)
    return tuple(float(distinct[j]) for j in reversed(chosen))


def level_of(values: NDArray[np.float64], points: Sequence[float]) -> NDArray[np.int16]:
    """Levels from 0 [N] of values [N]; -1 for NaN."""
    values = np.asarray(values, np.float64)
    levels = np.searchsorted(np.asarray(points, np.float64), values, side="left").astype(np.int16)
    return np.where(np.isnan(values), np.int16(-1), levels)


def choose_cuts(
    columns: Mapping[str, NDArray[np.float64]], levels: int, given: Mapping[str, Sequence[float]] | None = None
) -> dict[str, Cuts]:
    """The cut points of the four ordinal tags.

    Args:
        columns: tag → values [N], NaN where not known.
        levels: 3 or 5.
        given: tag → explicit points; the other tags take quantiles.

    Raises:
        ConfigError: an unknown tag, or points that are not `levels` - 1 increasing numbers above 0.
    """
    given = dict(given or {})
    if levels not in LEVEL_NAMES:
        raise ConfigError(f"ordinal tags have 3 or 5 levels, not {levels}", fix="use --levels 3 or 5")
    for name, points in given.items():
        _check(name, points, levels)
    cuts = {}
    for name in ORDINAL:
        known = columns[name][~np.isnan(columns[name])]
        points = tuple(map(float, given[name])) if name in given else quantile_cuts(known, levels)
        counts = np.bincount(level_of(known, points), minlength=levels)
        cuts[name] = Cuts(points, name in given, tuple(int(c) for c in counts))
    return cuts


def _check(name: str, points: Sequence[float], levels: int) -> None:
    if name not in ORDINAL:
        raise ConfigError(f"{name!r} is no ordinal tag", "--cuts", f"use some of: {', '.join(ORDINAL)}")
    positive = all(math.isfinite(p) and p > 0 for p in points)
    if len(points) != levels - 1 or not positive or any(a >= b for a, b in pairwise(points)):
        said = ", ".join(f"{p:g}" for p in points) or "none"
        fix = f"{levels} levels have {levels - 1} cut points, above 0 and increasing"
        raise ConfigError(f"the cut points of {name} are {said}", "--cuts", fix)


def read_cuts(words: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Cut points of what the user wrote: ``tag=a,b`` (fractions as in ``exposure_time=1/125,1/30``), or a JSON file.

    A file is an ``exif_cuts.json`` written here, or tag → list of numbers. A later word wins.

    Raises:
        ConfigError: not of that form. DataError: the file cannot be read.
    """
    cuts: dict[str, tuple[float, ...]] = {}
    for word in words:
        name, equals, points = word.partition("=")
        if equals and not Path(word).is_file():
            cuts[name.strip()] = tuple(_number(p, word) for p in points.split(","))
            continue
        document = load_object(Path(word), _MAX_BYTES)
        said = document.get("cuts", document)
        if not isinstance(said, dict):
            raise ConfigError("the cut points are no object", word, "write {tag: [a, b]}")
        found = {tag: _points(tag, part, word) for tag, part in said.items()}
        cuts |= {tag: numbers for tag, numbers in found.items() if numbers is not None}
    return cuts


def _points(tag: str, said: Any, where: str) -> tuple[float, ...] | None:
    """The points of one tag of a file; None where a corpus had no cut points for it."""
    numbers = said.get("points") if isinstance(said, dict) else said
    if not isinstance(numbers, list) or any(type(n) not in (int, float) for n in numbers):
        raise ConfigError(f"the cut points of {tag[:40]!r} are no list of numbers", where, "write {tag: [a, b]}")
    if not numbers and isinstance(said, dict):
        return None
    try:
        return tuple(float(n) for n in numbers)
    except OverflowError:
        raise ConfigError(f"a cut point of {tag[:40]!r} is too large", where) from None


def _number(text: str, where: str) -> float:
    try:
        return float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ConfigError(f"{text[:40]!r} is no number", where, "write tag=a,b as in iso=100,400") from None


def cuts_document(
    cuts: Mapping[str, Cuts], levels: int, classes: Mapping[str, Sequence[str]], num_photographs: int
) -> dict[str, Any]:
    """What ``exif_cuts.json`` holds: points, units, counts a level, and the classes of the other tags."""
    return {
        "levels": list(LEVEL_NAMES[levels]),
        "rule": "level = number of cut points below the value; a value that equals one is in the lower level",
        "photographs": num_photographs,
        "cuts": {
            name: {
                "points": list(c.points), "unit": UNITS[name], "counts": list(c.counts),
                "from": "given" if c.given else "quantiles of these photographs",
            }
            for name, c in cuts.items()
        },
        "classes": {name: list(names) for name, names in classes.items()},
    }  # fmt: skip


def dump(document: Any) -> str:
    """JSON text for people and for diffs."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def known(column: Any) -> NDArray[np.float64]:
    """A column of the tidy table as float64 [N], NaN where not known."""
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))

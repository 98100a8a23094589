"""What a sweep draws from: the spaces of its keys, and the values of each trial.

A value is a function of (seed, key, sample) alone: another key, another range of one, or more samples move no other
value, and trial *i* is the same whatever ran before.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.api.errors import ConfigError
from harness.api.registry import unknown
from harness.api.training import stream

LISTS = ("choice", "grid")
RANGES = {"uniform": 2, "quniform": 3, "loguniform": 2, "qloguniform": 3, "randint": 2, "qrandint": 3, "lograndint": 2}
"""Ranges and how many numbers each has: low, high and, for those in steps, the step."""
KINDS = (*LISTS, *RANGES)
LOGARITHMIC = ("loguniform", "qloguniform", "lograndint")
WHOLE = ("randint", "qrandint", "lograndint")
DIGITS = 6
"""Significant digits of a drawn number: what a table shows is what was trained."""
MAX_TRIALS = 10_000
SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


@dataclass(frozen=True)
class Space:
    """The space of one key.

    Attributes:
        key: dotted key of the recipe.
        kind: one of ``KINDS``.
        values: of a list the values; of a range low, high and step.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    @property
    def logarithmic(self) -> bool:
        """Whether its axis is one."""
        return self.kind in LOGARITHMIC

    def draw(self, rng: np.random.Generator) -> Any:
        """One value. Ranges without step: low <= value < high but for rounding to six significant digits; whole
        numbers: high is left out; in steps: a multiple of the step, the nearest to the draw, both ends possible.

        Raises:
            ValueError: a grid is gone through, not drawn from.
        """
        if self.kind == "grid":
            raise ValueError("a grid has no draws")
        if self.kind == "choice":
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values[:2]
        if self.kind == "randint":
            return int(rng.integers(int(low), int(high)))
        place = float(rng.random())
        value = math.exp(_between(math.log(low), math.log(high), place)) if self.logarithmic else _between(
            low, high, place
        )  # fmt: skip
        if self.kind == "lograndint":
            return min(max(int(value), int(low)), int(high) - 1)
        if len(self.values) == 3:
            first, last = _multiples(low, high, self.values[2])
            count = min(max(round(value / self.values[2]), first), last)
            return int(count * self.values[2]) if self.kind == "qrandint" else float(f"{count * self.values[2]:.12g}")
        return min(max(float(f"{value:.{DIGITS}g}"), float(low)), float(high))

    def text(self) -> str:
        """As in a sweep's file."""
        return f"{self.kind} [{', '.join(map(str, self.values))}]"


def _between(low: float, high: float, place: float) -> float:
    return low + (high - low) * place


def _multiples(low: float, high: float, step: float) -> tuple[int, int]:
    """The first and the last count of steps within a range; the last is smaller where there is none."""
    slack = 1e-9  # 0.3 / 0.1 is a little less than 3
    return math.ceil(low / step - slack), math.floor(high / step + slack)


def _number(value: Any) -> Any:
    """A number as YAML meant it: ``1e-5`` without a dot is read as a word."""
    return float(value) if isinstance(value, str) and SCIENTIFIC.fullmatch(value) else value


def space_of(key: str, document: Any, where: object) -> Space:
    """The space that a sweep's file gives a key: ``{KIND: [...]}``.

    Raises:
        ConfigError: another form or kind, an empty list or range, low not below high, a logarithm of what is not
            positive; says which key.
    """
    place = f"{where}: space.{key}"
    if not isinstance(document, Mapping) or len(document) != 1:
        raise ConfigError("a space is one kind with its values", place, "as in {loguniform: [1.0e-5, 1.0e-2]}")
    ((kind, given),) = document.items()
    if kind not in KINDS:
        raise unknown("space", str(kind), list(KINDS), where=place)
    if not isinstance(given, list | tuple):
        raise ConfigError(f"the values of {kind} are a list, not {given!r}", place)
    values = tuple(_number(v) for v in given)
    if kind in LISTS:
        _check_list(kind, values, place)
    else:
        values = _checked_range(kind, values, place)
    return Space(key, str(kind), values)


def _check_list(kind: str, values: tuple[Any, ...], place: str) -> None:
    if not values:
        raise ConfigError(f"{kind} of nothing", place, "name its values")
    twice = [v for i, v in enumerate(values) if v in values[:i] and type(v) in {type(w) for w in values[:i] if w == v}]
    if twice:
        raise ConfigError(f"{kind} names {twice[0]!r} twice", place, "keep one of them")


def _checked_range(kind: str, values: tuple[Any, ...], place: str) -> tuple[Any, ...]:
    needed = RANGES[kind]
    named = "low, high and step" if needed == 3 else "low and high"
    if len(values) != needed or not all(_is_number(v) for v in values):
        raise ConfigError(f"{kind} has {needed} numbers, {named}, not {list(values)}", place)
    low, high = values[:2]
    if kind in WHOLE and any(v != int(v) for v in values):
        raise ConfigError(f"{kind} has whole numbers, not {list(values)}", place)
    if kind in WHOLE:
        values = tuple(int(v) for v in values)
    if not low < high:
        raise ConfigError(f"low {low} is not below high {high}", place, "a single value is a key of `set`")
    if kind in LOGARITHMIC and low <= 0:
        raise ConfigError(f"{kind} from {low}: the logarithm needs numbers above 0", place)
    if needed == 3 and values[2] <= 0:
        raise ConfigError(f"a step of {values[2]}", place, "give one above 0")
    if needed == 3:
        first, last = _multiples(*values)
        if last < first:
            raise ConfigError(f"no multiple of {values[2]} between {low} and {high}", place)
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def drawn(spaces: Sequence[Space], samples: int, seed: int, where: object = None) -> list[dict[str, Any]]:
    """The values of every trial by key, in the order of the trials: for each sample all points of the grids, which
    share the sample's draws.

    Raises:
        ConfigError: nothing to sweep, samples that would all be equal, or more than ``MAX_TRIALS`` trials.
    """
    grids = [s for s in spaces if s.kind == "grid"]
    if not spaces:
        raise ConfigError("a sweep of no key", where, "name one under `space`")
    if len(grids) == len(spaces) and samples > 1:
        raise ConfigError(f"{samples} samples of grids alone are equal trials", where, "set samples to 1")
    total = samples * math.prod(len(s.values) for s in grids)
    if total > MAX_TRIALS:
        raise ConfigError(f"{total:,} trials; at most {MAX_TRIALS:,} are possible", where)
    trials = []
    for sample in range(samples):
        values = {s.key: s.draw(stream(seed, "sweep", s.key, sample)) for s in spaces if s.kind != "grid"}
        for point in itertools.product(*(s.values for s in grids)):
            chosen = {**values, **{s.key: v for s, v in zip(grids, point, strict=True)}}
            trials.append({s.key: chosen[s.key] for s in spaces})
    return trials

"""Successive halving over epochs: which trials go on after a rung, and which are stopped.

The rule is that of asynchronous halving (ASHA, as Ray Tune's ``ASHAScheduler`` has it): at a rung a trial is stopped
when its value is below the (1 - 1/reduction) quantile of the values that were there before. What "before" means would
depend on who is fast; here it means *trials of lower numbers*. So who is stopped is a function of the trials' values
alone, whatever ran beside what, was killed, or lay in the store. No trial waits for one of a higher number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Halving:
    """Rungs after ``grace`` epochs, ``grace * reduction``, ...; ``sign`` is 1 where more is better, else -1."""

    grace: int
    reduction: float
    sign: float = 1.0

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """Epochs after which a trial of so many epochs is judged; its last one is not among them."""
        found, k = [], 0
        while (rung := math.ceil(self.grace * self.reduction**k - 1e-9)) < epochs:
            found.append(rung)
            k += 1
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Course:
    """What is known of a trial: its epochs, the objective by epoch (from 1), and whether no more values will come
    (finished or failed). One that only ``repeats`` another is not judged and judges none."""

    epochs: int
    values: Mapping[int, float]
    ended: bool = False
    repeats: bool = False


@dataclass(frozen=True)
class Judgement:
    """A trial at a rung: value, the quantile it was held against (None: the first one there), what came of it."""

    epoch: int
    value: float
    cutoff: float | None
    stopped: bool

    def text(self) -> str:
        """Why."""
        if not self.stopped:
            return f"goes on after epoch {self.epoch}: {self.value:.6g}"
        if math.isnan(self.value):
            return f"stopped after epoch {self.epoch}: not a number"
        return f"stopped after epoch {self.epoch}: {self.value:.6g} against {self.cutoff:.6g}"


@dataclass(frozen=True)
class Standing:
    """How a trial stands: its judgements so far, and the rung at which it has a value and must wait, if any."""

    judgements: tuple[Judgement, ...] = ()
    waits_at: int | None = None

    @property
    def stopped(self) -> Judgement | None:
        """The judgement that stopped it."""
        return self.judgements[-1] if self.judgements and self.judgements[-1].stopped else None

    def at(self, epoch: int) -> Judgement | None:
        """The judgement at a rung."""
        return next((j for j in self.judgements if j.epoch == epoch), None)


def standings(courses: Sequence[Course], rule: Halving) -> list[Standing]:
    """How every trial stands, a function of the courses alone; more values never change a judgement that was made.

    A value that is not a number stops its trial and is held against nobody.
    """
    rungs = [() if c.repeats else rule.rungs(c.epochs) for c in courses]
    judged: list[list[Judgement]] = [[] for _ in courses]
    waits: list[int | None] = [None] * len(courses)
    out = [False] * len(courses)  # stopped, or ended before
    unknown = [False] * len(courses)  # nobody can say yet whether it comes to the rung
    for rung in sorted({r for mine in rungs for r in mine}):
        before: list[float] = []
        open_question = False
        for i, course in enumerate(courses):
            if out[i] or rung not in rungs[i]:
                continue
            value = course.values.get(rung)
            if value is None and course.ended and not unknown[i]:
                out[i] = True
            elif open_question or unknown[i] or value is None:
                if value is not None and waits[i] is None:
                    waits[i] = rung
                unknown[i] = open_question = True
            else:
                judged[i].append(_judged(rung, value, before, rule))
                out[i] = judged[i][-1].stopped
                if not math.isnan(value):
                    before.append(rule.sign * value)
    return [Standing(tuple(mine), wait) for mine, wait in zip(judged, waits, strict=True)]


def _judged(rung: int, value: float, before: Sequence[float], rule: Halving) -> Judgement:
    cutoff = float(np.percentile(before, (1 - 1 / rule.reduction) * 100)) if before else None
    stopped = math.isnan(value) or (cutoff is not None and rule.sign * value < cutoff)
    return Judgement(rung, value, None if cutoff is None else rule.sign * cutoff, stopped)

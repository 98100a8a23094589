"""Bootstrap intervals and paired comparisons of detectors on stored scores (resampling: `harness.results.resample`)."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from harness.results.metrics import (
    METRICS,
    RANK_METRICS,
    RATE_METRICS,
    Abstain,
    cell_metrics,
    decisions,
    rates_from,
)
from harness.results.resample import Ranking, Workspace, image_keys, image_weights, rank, weighted_ranks

Floats = NDArray[np.float64]

DEFAULT_RESAMPLES = 2000
DEFAULT_COMPARISONS = 10_000
COMPARED = ("accuracy", "auc")
LARGEST_CLASS = 2**24
"""Counts are exact in float32 below this many images of a class."""


@dataclass(frozen=True)
class SetScores:
    """The stored scores of every detector on one test set.

    Args:
        name: the test set.
        sha256: [n] digest of each image.
        label: [n] int8, 0 photographic, 1 generated.
        detectors: D names.
        score: [D, n] float64; NaN = the detector abstains.
        threshold: [D, n] float64; NaN = no threshold.
        present: [D, n] bool; False = no score is stored: the image takes no part in that detector's cell.
    """

    name: str
    sha256: NDArray[np.object_]
    label: NDArray[np.int8]
    detectors: tuple[str, ...]
    score: Floats
    threshold: Floats
    present: NDArray[np.bool_]

    def __post_init__(self) -> None:
        shape = (len(self.detectors), len(self.label))
        for name in ("score", "threshold", "present"):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} is {getattr(self, name).shape}, not [detectors, images] {shape}")
        if max(int(self.label.sum()), int((self.label == 0).sum())) >= LARGEST_CLASS:
            raise ValueError(f"test set {self.name!r}: a class has {LARGEST_CLASS} images or more")

    @cached_property
    def classes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices of the generated and of the photographic images."""
        return np.flatnonzero(self.label == 1), np.flatnonzero(self.label == 0)

    @cached_property
    def rankings(self) -> tuple[Ranking, ...]:
        """One ranking a detector."""
        g, p = self.classes
        score = np.where(self.present, self.score, np.nan)
        return tuple(rank(row[g], row[p]) for row in score)

    def point(self, detector: int, abstain: Abstain = "wrong") -> dict[str, float]:
        """The point metrics of one detector's cell."""
        there = self.present[detector]
        cell = cell_metrics(
            self.label[there], self.score[detector, there], self.threshold[detector, there], abstain=abstain
        )
        return cell.values


def replicates(
    sets: Sequence[SetScores],
    *,
    seed: int,
    start: int = 0,
    stop: int = DEFAULT_RESAMPLES,
    metrics: Sequence[str] = METRICS,
    abstain: Abstain = "wrong",
    workers: int | None = None,
) -> dict[str, Floats]:
    """Bootstrap replicates of every metric: test set → `[detectors, metrics, stop - start]` float64.

    Replicate b is the same whatever the range, the other detectors, the other test sets, the order of rows and the
    number of workers (threads; default: the processors this process may use, at most 8).
    """
    wanted = tuple(metrics)
    for name in wanted:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    keys = {}
    out = {}
    tasks = []
    for scores in sets:
        keys[scores.name] = image_keys([str(s) for s in scores.sha256], seed)
        out[scores.name] = np.full((len(scores.detectors), len(wanted), stop - start), np.nan)
        if not scores.detectors:
            continue
        width = _width(scores)
        _ = scores.rankings  # made here once, not by each thread
        tasks += [(scores, b, min(b + width, stop)) for b in range(start, stop, width)]
    local = threading.local()

    def work(task: tuple[SetScores, int, int]) -> None:
        scores, first, last = task
        space = _space(local, scores, last - first)
        block = _block(scores, keys[scores.name], first, last, wanted, abstain, space)
        out[scores.name][:, :, first - start : last - start] = block

    count = workers or min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    # the products are small: BLAS threads beside ours would only wait for one another
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(count) as pool:
        list(pool.map(work, tasks))
    return out


def _width(scores: SetScores) -> int:
    """Replicates of one block: 256 where a class has at most 10,000 images, fewer above, to bound the memory."""
    largest = max(len(scores.classes[0]), len(scores.classes[1]), 1)
    return max(16, min(256, 256 * 10_000 // largest // 4 * 4))


def _space(local: threading.local, scores: SetScores, width: int) -> Workspace:
    shape = (len(scores.classes[0]), len(scores.classes[1]), width)
    if getattr(local, "shape", None) != shape:
        local.shape, local.space = shape, Workspace(*shape)
    space: Workspace = local.space
    return space


def _block(
    scores: SetScores,
    keys: NDArray[np.uint64],
    first: int,
    last: int,
    wanted: tuple[str, ...],
    abstain: Abstain,
    space: Workspace,
) -> Floats:
    """Replicates first to last of one test set: `[detectors, metrics, last - first]`."""
    generated, photographic = scores.classes
    weights_g = image_weights(keys[generated], first, last)
    weights_p = image_weights(keys[photographic], first, last)
    out = np.full((len(scores.detectors), len(wanted), last - first), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        if any(name in RATE_METRICS for name in wanted):
            rates = _rates(scores, weights_g, weights_p, abstain)
            for m, name in enumerate(wanted):
                if name in RATE_METRICS:
                    out[:, m] = rates[name]
        asked = [name for name in wanted if name in RANK_METRICS]
        for d, ranking in enumerate(scores.rankings if asked else ()):
            ranks = weighted_ranks(ranking, weights_g, weights_p, space, only_auc=asked == ["auc"])
            for name in asked:
                out[d, wanted.index(name)] = ranks[name]
    return out


def _rates(
    scores: SetScores, weights_g: NDArray[np.uint8], weights_p: NDArray[np.uint8], abstain: Abstain
) -> dict[str, Floats]:
    """The rate metrics `[detectors, replicates]`: weighted shares, then the class sizes as they are."""
    called = np.where(scores.present, decisions(scores.score, scores.threshold), -1)
    counted = scores.present if abstain == "wrong" else called >= 0
    without = (scores.present & np.isnan(scores.threshold) & ~np.isnan(scores.score)).any(1)
    shares = []
    for images, weights, verdict in zip(scores.classes, (weights_g, weights_p), (1, 0), strict=True):
        right = (called[:, images] == verdict).astype(np.float32)
        counts = counted[:, images].astype(np.float32)
        sums = np.concatenate([right, counts]) @ weights.astype(np.float32)
        share = sums[: len(right)].astype(np.float64) / sums[len(right) :]
        share[without] = np.nan
        shares.append(share)
    rows = []
    for d in range(len(scores.detectors)):
        sizes = [int(counted[d, images].sum()) for images in scores.classes]
        rows.append(rates_from(shares[0][d], shares[1][d], *sizes))
    return {name: np.array([row[name] for row in rows]) for name in RATE_METRICS}


def interval(values: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Percentile interval over the last axis; NaN where less than 90 % of the replicates are defined.

    A class of one or two images has no usable interval: too many resamples miss it. An interval of zero width means
    that no resample changed the value, which with few images is not certainty.
    """
    share = np.isfinite(values).mean(-1)
    filled = np.where(np.isfinite(values), values, np.nan)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.full(share.shape, np.nan), np.full(share.shape, np.nan)
    whole, some = share == 1, (share >= 0.9) & (share < 1)
    if whole.any():
        low[whole], high[whole] = np.quantile(values[whole], tails, axis=-1)
    if some.any():
        low[some], high[some] = np.nanquantile(filled[some], tails, axis=-1)
    return low, high


class Compared(NamedTuple):
    """One detector against the reference on one metric, averaged over the test sets (differences as fractions).

    `p` is two-sided: twice the smaller share of replicates on either side of no difference (with +1 in numerator and
    denominator, so never 0); `p_holm` is Holm's correction over the rows compared on this metric. All NaN where the
    mean of either detector is not defined.
    """

    detector: str
    reference: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    num_test_sets: int


def paired_comparison(
    sets: Sequence[SetScores],
    reference: str,
    *,
    detectors: Sequence[str],
    seed: int,
    n_boot: int = DEFAULT_COMPARISONS,
    metrics: Sequence[str] = COMPARED,
    abstain: Abstain = "wrong",
    workers: int | None = None,
) -> list[Compared]:
    """Each of `detectors` against `reference` by the paired bootstrap: mean over test sets, Holm over the rows.

    The mean is over all of `sets`: a detector that lacks one of them is not compared (NaN).
    """
    draws = replicates(sets, seed=seed, stop=n_boot, metrics=metrics, abstain=abstain, workers=workers)
    rows: list[Compared] = []
    for m, metric in enumerate(metrics):
        means = {}
        for name in [reference, *(d for d in detectors if d != reference)]:
            points = [s.point(s.detectors.index(name), abstain)[metric] for s in sets]
            samples = np.mean([draws[s.name][s.detectors.index(name), m] for s in sets], axis=0)
            means[name] = (float(np.mean(points)), samples)
        point_ref, samples_ref = means.pop(reference)
        found = []
        for name, (point, samples) in means.items():
            gap = samples - samples_ref
            low, high = interval(gap)
            found.append((name, point - point_ref, float(low), float(high), two_sided_p(gap)))
        corrected = holm([f[-1] for f in found])
        rows += [
            Compared(name, reference, metric, difference, low, high, p, p_holm, len(sets))
            for (name, difference, low, high, p), p_holm in zip(found, corrected, strict=True)
        ]
    return rows


def two_sided_p(differences: Floats) -> float:
    """Two-sided p of "no difference" from bootstrap differences `[B]`; NaN where less than 90 % are defined."""
    there = differences[np.isfinite(differences)]
    if not len(differences) or len(there) < 0.9 * len(differences):
        return float("nan")
    one_sided = 1 + min(int((there <= 0).sum()), int((there >= 0).sum()))
    return min(1.0, 2.0 * one_sided / (len(there) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; NaN stays NaN and does not count as a test."""
    p = np.asarray(p_values, np.float64)
    out = np.full(len(p), np.nan)
    there = np.flatnonzero(~np.isnan(p))
    order = there[np.argsort(p[there], kind="stable")]
    running = 0.0
    for i, k in enumerate(order):
        running = max(running, min(1.0, float(p[k]) * (len(order) - i)))
        out[k] = running
    return out.tolist()

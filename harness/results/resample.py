"""Bootstrap weights of images, and the rank metrics of many weightings at once (ties handled exactly, no binning).

**Which bootstrap.** Images are resampled within their class. Replicate b gives each image a weight drawn from
Poisson(1) and every metric is computed from the weighted images with the class shares held at their true values
(as if each class had been resampled to its own size): the Poisson bootstrap (Hanley & MacGibbon 2006), which
agrees with drawing n from n as n grows. A weight is a function of (seed, image, b) and of nothing else. So all
metrics and all detectors see the same resamples (differences are paired), photographs shared by several test
sets are resampled together (the interval of a mean over generators counts them once, as it must), and no
result depends on the order of rows, on the other detectors, or on how the work is cut up.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_GROUP = 16  # rows summed by one small triangular product: fastest of 8, 16, 32 where measured
_ROWS = 512  # rows of one pass, so that the pass's arrays stay in cache
_TINY = np.float32(1e-30)  # vanishes against any count, but keeps 0/0 from arising


def _poisson_table() -> NDArray[np.uint8]:
    """Poisson(1) by its quantiles at 16 bits: mean exactly 1, variance 0.99997, at most 8."""
    cdf: list[float] = []
    mass = math.exp(-1.0)
    for k in range(10):
        cdf.append((cdf[-1] if cdf else 0.0) + mass)
        mass /= k + 1
    edges = np.rint(np.array(cdf) * 65536).astype(np.int64)
    return np.searchsorted(edges, np.arange(65536), side="right").astype(np.uint8)


_TABLE = _poisson_table()


def image_keys(sha256: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """One 64-bit stream start an image: the first 8 bytes of sha256 of "seed:image sha256"."""
    digests = b"".join(hashlib.sha256(f"{seed}:{image}".encode()).digest()[:8] for image in sha256)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def image_weights(keys: NDArray[np.uint64], start: int, stop: int) -> NDArray[np.uint8]:
    """Weights `[images, stop - start] uint8` of replicates start to stop.

    splitmix64 from each image's key; a 64-bit word serves four replicates. The same for any start and stop.
    """
    first = start // 4
    words = np.arange(first + 1, (stop + 3) // 4 + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = keys[:, None] + words * _STEP
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    lanes = z.astype("<u8", copy=False).view("<u2")
    return _TABLE[lanes[:, start - 4 * first : stop - 4 * first]]


@dataclass(frozen=True)
class Ranking:
    """One detector's order of one test set: what the weighted rank metrics need, made once for all replicates.

    Rows of `generated` and `photographic` are indices into the classes' images, highest score first, those
    without a score left out. For the i-th generated image: `same[i]` generated images score at least as high,
    `at_least[i]` and `above[i]` photographic ones score at least as high, or higher. For the j-th photographic
    image: `photographic_above[j]` and `generated_above[j]` images score higher. `curve_*` count the images of a
    class at or above each distinct score.
    """

    generated: Ints
    photographic: Ints
    same: Ints
    at_least: Ints
    above: Ints
    photographic_above: Ints
    generated_above: Ints
    curve_generated: Ints
    curve_photographic: Ints


def rank(generated: NDArray[np.float64], photographic: NDArray[np.float64]) -> Ranking:
    """The ranking of two classes' scores; NaN scores are left out."""

    def descending(scores: NDArray[np.float64]) -> tuple[Ints, NDArray[np.float64]]:
        there = np.flatnonzero(~np.isnan(scores))
        order = there[np.argsort(-scores[there], kind="stable")]
        return order, -scores[order]

    order_g, g = descending(generated)
    order_p, p = descending(photographic)
    levels = np.unique(np.concatenate([g, p]))
    return Ranking(
        generated=order_g,
        photographic=order_p,
        same=np.searchsorted(g, g, side="right"),
        at_least=np.searchsorted(p, g, side="right"),
        above=np.searchsorted(p, g, side="left"),
        photographic_above=np.searchsorted(p, p, side="left"),
        generated_above=np.searchsorted(g, p, side="left"),
        curve_generated=np.r_[0, np.searchsorted(g, levels, side="right")],
        curve_photographic=np.r_[0, np.searchsorted(p, levels, side="right")],
    )


class Workspace:
    """Buffers for one thread; a new set for every cell would cost as much in page faults as the arithmetic."""

    def __init__(self, num_generated: int, num_photographic: int, width: int) -> None:
        def rows(count: int) -> int:
            return -(-count // _GROUP) * _GROUP

        largest = max(rows(num_generated), rows(num_photographic))
        self.counts_g = np.zeros((rows(num_generated), width), np.uint8)
        self.counts_p = np.zeros((rows(num_photographic), width), np.uint8)
        self.top_g = np.empty((1 + rows(num_generated), width), np.float32)
        self.top_p = np.empty((1 + rows(num_photographic), width), np.float32)
        self.floats = np.empty((largest, width), np.float32)
        self.one, self.two, self.three = (np.empty((_ROWS, width), np.float32) for _ in range(3))


def weighted_ranks(
    ranking: Ranking,
    weights_g: NDArray[np.uint8],
    weights_p: NDArray[np.uint8],
    space: Workspace,
    *,
    only_auc: bool = False,
) -> dict[str, NDArray[np.float64]]:
    """AUC, AP of both classes and EER for every column of weights; NaN in a column where a class has no weight.

    Args:
        weights_g: [all generated images of the test set, replicates].
        weights_p: [all photographic images of the test set, replicates].
        only_auc: leave out the rest.

    Counts are exact in float32 below 2^24 images; ratios carry about 1e-7.
    """
    r, num_g, num_p = ranking, len(ranking.generated), len(ranking.photographic)
    if not num_g or not num_p:
        nothing = np.full(weights_g.shape[1], np.nan)
        return {"auc": nothing} if only_auc else dict.fromkeys(("auc", "ap", "ap_photographic", "eer"), nothing)
    _running(weights_g, r.generated, space.counts_g, space.floats, None if only_auc else space.top_g)
    _running(weights_p, r.photographic, space.counts_p, space.floats, space.top_p)
    total_p = space.top_p[num_p].copy()
    total_g = space.counts_g[:num_g].sum(0, dtype=np.float32) if only_auc else space.top_g[num_g].copy()
    total_g[total_g < 0.5], total_p[total_p < 0.5] = np.nan, np.nan
    # weight of a photograph against a generated image that restores the true class shares
    share = ((total_g / np.float32(num_g)) / (total_p / np.float32(num_p))).astype(np.float32)
    auc, ap = _over_generated(r, space, share, only_auc)
    result = {"auc": 1.0 - auc / (total_g.astype(np.float64) * total_p)}
    if only_auc:
        return result
    result["ap"] = ap / total_g
    result["ap_photographic"] = _over_photographic(r, space, share, total_g, total_p) / total_p
    result["eer"] = _equal_error(r, space, total_g, total_p)
    return result


def _over_generated(
    r: Ranking, space: Workspace, share: Floats32, only_auc: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted sums over generated images: photographs ranked above them (ties half), and precision at their score."""
    num, width = len(r.generated), space.top_p.shape[1]
    auc, ap = np.zeros(width), np.zeros(width)
    tied_across = bool((r.at_least != r.above).any())
    tied_within = bool((r.same != np.arange(1, num + 1)).any())
    for i in range(0, num, _ROWS):
        k = min(_ROWS, num - i)
        w, p, q = space.one[:k], space.two[:k], space.three[:k]
        np.copyto(w, space.counts_g[i : i + k])
        np.take(space.top_p, r.at_least[i : i + k], axis=0, out=p, mode="clip")
        if tied_across:
            np.take(space.top_p, r.above[i : i + k], axis=0, out=q, mode="clip")
            q += p
            auc += 0.5 * np.einsum("ij,ij->j", w, q)
        else:
            auc += np.einsum("ij,ij->j", w, p)
        if only_auc:
            continue
        found = space.top_g[r.same[i : i + k]] if tied_within else space.top_g[i + 1 : i + 1 + k]
        np.multiply(p, share, out=p)
        np.add(p, found, out=p)
        np.divide(found, p, out=p)
        ap += np.einsum("ij,ij->j", w, p)
    return auc, ap


def _over_photographic(
    r: Ranking, space: Workspace, share: Floats32, total_g: Floats32, total_p: Floats32
) -> NDArray[np.float64]:
    """Weighted sum over photographs of the share of photographs among the images that score no higher."""
    num = len(r.photographic)
    ap = np.zeros(space.top_p.shape[1])
    tied_within = bool((r.photographic_above != np.arange(num)).any())
    back = np.float32(1.0) / share
    for i in range(0, num, _ROWS):
        k = min(_ROWS, num - i)
        w, g, kept = space.one[:k], space.two[:k], space.three[:k]
        np.copyto(w, space.counts_p[i : i + k])
        np.take(space.top_g, r.generated_above[i : i + k], axis=0, out=g, mode="clip")
        higher = space.top_p[r.photographic_above[i : i + k]] if tied_within else space.top_p[i : i + k]
        np.subtract(total_g, g, out=g)
        np.multiply(g, back, out=g)
        np.subtract(total_p, higher, out=kept)
        np.add(g, kept, out=g)
        np.maximum(g, _TINY, out=g)
        np.divide(kept, g, out=g)
        ap += np.einsum("ij,ij->j", w, g)
    return ap


def _equal_error(r: Ranking, space: Workspace, total_g: Floats32, total_p: Floats32) -> NDArray[np.float64]:
    """Bisection on each replicate's ROC points, then a straight line between the two around the crossing."""
    column = np.arange(len(total_g))

    def rates(point: Ints) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        false = space.top_p[r.curve_photographic[point], column].astype(np.float64) / total_p
        true = space.top_g[r.curve_generated[point], column].astype(np.float64) / total_g
        return false, false + true - 1.0

    low = np.zeros(len(column), np.int64)
    high = np.full(len(column), len(r.curve_generated) - 1, np.int64)
    while (high - low > 1).any():
        middle = (low + high) // 2
        reached = rates(middle)[1] >= 0
        high, low = np.where(reached, middle, high), np.where(reached, low, middle)
    before, gap_before = rates(low)
    after, gap_after = rates(high)
    return before + gap_before / (gap_before - gap_after) * (after - before)


def _running(
    weights: NDArray[np.uint8],
    order: Ints,
    counts: NDArray[np.uint8],
    floats: Floats32,
    top: Floats32 | None,
) -> None:
    """Fill `counts` with the weights in this order and `top[k]` with the weight of the first k (plus 1e-30)."""
    num = len(order)
    np.take(weights, order, axis=0, out=counts[:num], mode="clip")
    counts[num:] = 0
    if top is None:
        return
    rows = -(-num // _GROUP) * _GROUP
    width = counts.shape[1]
    values = floats[:rows]
    np.copyto(values, counts[:rows])
    groups = values.reshape(rows // _GROUP, _GROUP, width)
    groups[1:, 0] += _inclusive(groups.sum(1))[:-1]
    groups[:, 0] += _TINY
    top[0] = _TINY
    np.matmul(_triangle(_GROUP), groups, out=top[1 : 1 + rows].reshape(groups.shape))


def _inclusive(rows: Floats32) -> Floats32:
    """Running sums down the rows. By small triangular products: numpy's own accumulate is 30 times slower here."""
    count, width = rows.shape
    if count <= _GROUP:
        return np.matmul(_triangle(count), rows)
    padded = np.zeros((-(-count // _GROUP) * _GROUP, width), np.float32)
    padded[:count] = rows
    groups = padded.reshape(-1, _GROUP, width)
    groups[1:, 0] += _inclusive(groups.sum(1))[:-1]
    return np.matmul(_triangle(_GROUP), groups).reshape(padded.shape)[:count]


def _triangle(size: int) -> Floats32:
    return np.tril(np.ones((size, size), np.float32))

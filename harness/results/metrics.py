"""Point metrics of one cell (one detector on one test set), in float64, equal to scikit-learn's.

Generated is the positive class (label 1) everywhere; the average precision is given for both classes because
the released code takes photographic as positive for OC and generated for BC (docs/fidelity.md, `positive_class`).
A score of NaN means that the detector abstains. Abstentions take no part in AUC, AP and EER; in accuracy and the
class rates they count as wrong (`abstain="wrong"`, the default) or are left out (`abstain="out"`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.api.contract import ABSTAINS, predict

Abstain = Literal["wrong", "out"]
Floats = NDArray[np.float64]

RATE_METRICS: tuple[str, ...] = (
    "accuracy",
    "accuracy_photographic",
    "accuracy_generated",
    "tpr",
    "tnr",
    "fpr",
    "fnr",
    "f_score",
)
RANK_METRICS: tuple[str, ...] = ("auc", "ap", "ap_photographic", "eer")
METRICS: tuple[str, ...] = RATE_METRICS + RANK_METRICS


class Roc(NamedTuple):
    """Points of the ROC curve, from (0, 0) to (1, 1); `threshold[0]` is +inf, ties are one point."""

    fpr: Floats
    tpr: Floats
    threshold: Floats


@dataclass(frozen=True)
class CellMetrics:
    """Every metric of one cell as a fraction in [0, 1] (NaN where it is not defined), and what it rests on.

    `n`, `n_photographic` and `n_generated` count the cell's images, abstentions included.
    """

    values: dict[str, float]
    n: int
    n_photographic: int
    n_generated: int
    abstained: int


def decisions(score: ArrayLike, threshold: ArrayLike) -> NDArray[np.int8]:
    """Verdicts of `harness.api.contract.predict`, thresholds one an image too; -1 also where there is none (NaN)."""
    s, t = np.broadcast_arrays(np.asarray(score, np.float64), np.asarray(threshold, np.float64))
    called = predict(s, cast(float, t))  # the rule is one comparison, so it holds element by element
    return np.where(np.isnan(t), ABSTAINS, called).astype(np.int8)


def roc_curve(label: ArrayLike, score: ArrayLike) -> Roc:
    """ROC points of the images that have a score; tied scores make one point. Empty arrays if a class is missing."""
    y, s = _scored(label, score)
    positives, negatives = int(y.sum()), int((~y).sum())
    if not positives or not negatives:
        empty = np.empty(0)
        return Roc(empty, empty, empty)
    order = np.argsort(-s, kind="stable")
    y, s = y[order], s[order]
    last = np.r_[np.flatnonzero(s[1:] != s[:-1]), len(s) - 1]
    tp = np.cumsum(y)[last]
    fp = last + 1 - tp
    return Roc(np.r_[0.0, fp / negatives], np.r_[0.0, tp / positives], np.r_[np.inf, s[last]])


def area_under_roc(label: ArrayLike, score: ArrayLike) -> float:
    """Probability that a generated image outscores a photographic one, ties counting half; NaN if undefined."""
    roc = roc_curve(label, score)
    return float(np.trapezoid(roc.tpr, roc.fpr)) if len(roc.fpr) else float("nan")


def average_precision(label: ArrayLike, score: ArrayLike) -> float:
    """Sum over distinct thresholds of recall step times precision, not interpolated; NaN if a class is missing."""
    y, s = _scored(label, score)
    if not y.any() or y.all():
        return float("nan")
    order = np.argsort(-s, kind="stable")
    y, s = y[order], s[order]
    last = np.r_[np.flatnonzero(s[1:] != s[:-1]), len(s) - 1]
    tp = np.cumsum(y)[last]
    return float(np.sum(np.diff(np.r_[0, tp]) / tp[-1] * (tp / (last + 1))))


def equal_error_rate(label: ArrayLike, score: ArrayLike) -> float:
    """Error rate where the ROC curve, its points joined by straight lines, has FPR = FNR; NaN if undefined."""
    roc = roc_curve(label, score)
    if not len(roc.fpr):
        return float("nan")
    gap = roc.fpr + roc.tpr - 1.0
    after = int(np.argmax(gap >= 0))
    before = after - 1
    share = -gap[before] / (gap[after] - gap[before])
    return float(roc.fpr[before] + share * (roc.fpr[after] - roc.fpr[before]))


def cell_metrics(
    label: ArrayLike, score: ArrayLike, threshold: ArrayLike, *, abstain: Abstain = "wrong"
) -> CellMetrics:
    """All `METRICS` of one cell.

    Args:
        label: [n] 0 photographic, 1 generated.
        score: [n] higher = more likely generated; NaN = abstains.
        threshold: scalar or [n]; NaN = no threshold, then accuracy and the rates are NaN.
        abstain: whether abstentions are wrong answers or left out of accuracy and rates.

    A metric that needs a class which is missing is NaN; nothing is raised for degenerate cells.
    """
    y = np.asarray(label).astype(bool)
    s = np.asarray(score, np.float64)
    if y.shape != s.shape or y.ndim != 1:
        raise ValueError(f"label {y.shape} and score {s.shape} must be one list of the same length")
    called = decisions(s, threshold)
    counted = np.ones(len(y), bool) if abstain == "wrong" else called >= 0
    num_generated, num_photographic = int((y & counted).sum()), int((~y & counted).sum())
    found = int((y & (called == 1)).sum())
    kept = int((~y & (called == 0)).sum())
    if np.isnan(np.broadcast_to(np.asarray(threshold, np.float64), s.shape)[~np.isnan(s)]).any():
        rates = dict.fromkeys(RATE_METRICS, float("nan"))
    else:
        rates = {
            k: float(v)
            for k, v in rates_from(
                found / num_generated if num_generated else np.nan,
                kept / num_photographic if num_photographic else np.nan,
                num_generated,
                num_photographic,
            ).items()
        }
    ranks = {
        "auc": area_under_roc(y, s),
        "ap": average_precision(y, s),
        "ap_photographic": average_precision(~y, -s),
        "eer": equal_error_rate(y, s),
    }
    return CellMetrics(
        values=rates | ranks,
        n=len(y),
        n_photographic=int((~y).sum()),
        n_generated=int(y.sum()),
        abstained=int(np.isnan(s).sum()),
    )


def rates_from(tpr: ArrayLike, tnr: ArrayLike, num_generated: int, num_photographic: int) -> dict[str, Floats]:
    """The `RATE_METRICS` that follow from the share of generated found and of photographic kept, and the class sizes.

    An image without a decision that counts as wrong is in `fnr` or `fpr`: tpr + fnr = tnr + fpr = 1.
    """
    tpr, tnr = np.asarray(tpr, np.float64), np.asarray(tnr, np.float64)
    num = num_generated + num_photographic
    found, false_alarms = tpr * num_generated, (1.0 - tnr) * num_photographic
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = (found + tnr * num_photographic) / num if num else np.full_like(tpr, np.nan)
        # 2TP / (2TP + FP + FN) with TP + FN = num_generated
        f_score = 2.0 * found / (found + false_alarms + num_generated)
    return {
        "accuracy": accuracy,
        "accuracy_photographic": tnr,
        "accuracy_generated": tpr,
        "tpr": tpr,
        "tnr": tnr,
        "fpr": 1.0 - tnr,
        "fnr": 1.0 - tpr,
        "f_score": f_score,
    }


def _scored(label: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    y, s = np.asarray(label).astype(bool), np.asarray(score, np.float64)
    there = ~np.isnan(s)
    return y[there], s[there]

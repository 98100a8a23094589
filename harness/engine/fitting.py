"""Heads and thresholds: fitted from stored features, kept under their own keys; then scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.api.contract import Extractor, FitData, FittedHead, FixedThreshold, Head, Weights
from harness.api.errors import ProtocolError, StoreError
from harness.api.events import Event, Listener, silent
from harness.engine.frames import RowScores
from harness.engine.inline import NOTHING, LostError
from harness.engine.plan import HeadWork, Plan, RowPlan
from harness.results.digests import Digests, Picked
from harness.results.store import Store

SCORE_ROWS = 65_536


def stored_features(extractor: str, dim: int, items: np.ndarray, store: Store, aside: np.ndarray) -> np.ndarray:
    """Stored features ``[N, dim]`` of item digests ``[N] S32``; NaN rows are abstentions, and images set ``aside``.

    Raises:
        LostError: a feature is missing (a segment was damaged after it was written).
    """
    values, found = store.items(extractor).matrix(items, dim)
    _none_lost(extractor, items, found, aside)
    return values


def score_features(head: FittedHead, features: np.ndarray) -> np.ndarray:
    """Scores ``[N]`` float64; NaN (abstains) where a feature is not finite."""
    out = np.full(len(features), np.nan)
    for start in range(0, len(features), SCORE_ROWS):
        part = features[start : start + SCORE_ROWS]
        good = np.isfinite(part).all(axis=1)
        if good.any():
            out[start : start + SCORE_ROWS][good] = head.score(part[good])
    return out


def scores_of(
    plan_row: RowPlan, rows: np.ndarray, head: FittedHead, store: Store, aside: np.ndarray = NOTHING
) -> np.ndarray:
    """Scores ``[N]`` float64 of manifest rows, from their stored features, a segment of the store at a time; NaN as of
    :func:`score_features`, and for images set ``aside``.

    Raises:
        LostError: as :func:`stored_features`.
    """
    key, items = plan_row.extractor.key, Picked(plan_row.items, rows)
    scores, found = np.full(len(items), np.nan), np.zeros(len(items), bool)
    for places, features in store.items(key).each(items):
        scores[places], found[places] = score_features(head, features), True
    _none_lost(key, items, found, aside)
    return scores


def _none_lost(extractor: str, items: Digests, found: np.ndarray, aside: np.ndarray) -> None:
    gone = np.flatnonzero(~found)
    if len(aside):
        gone = gone[~np.isin(items[gone], aside)]
    if len(gone):
        raise LostError(
            f"{len(gone)} stored features are gone (a damaged segment was set aside)",
            where=extractor, fix="run the same command again: they are computed again",
        )  # fmt: skip


@dataclass(frozen=True)
class FitWork:
    """A head to make, apart from its plan, so that it can be sent to another process.

    Attributes:
        key, head, weights: as of ``HeadWork``.
        row: whose head it is, for messages.
        upstream: the head that is made first on the same features.
        extractor, dim: key and width of the features.
        items, labels, generators: the fit set in fit order, ``[N]``; empty where nothing is fitted.
        threads: of linear algebra.
    """

    key: str
    row: str
    head: Head
    weights: Weights
    upstream: FitWork | None
    extractor: str
    dim: int
    items: np.ndarray
    labels: np.ndarray
    generators: tuple[str, ...]
    threads: int


def fit_work(work: HeadWork, plan: Plan, plan_row: RowPlan) -> FitWork:
    """What it takes to make a head of a row."""
    upstream = None if work.upstream is None else fit_work(work.upstream, plan, plan_row)
    extractor, rows = plan_row.extractor, work.fit_rows
    assert isinstance(extractor.stage, Extractor)
    return FitWork(
        work.key, plan_row.row.name, work.head, work.weights, upstream, extractor.key, extractor.stage.dim,
        plan_row.items[rows], plan.manifest["label"].to_numpy()[rows].astype(np.int8),
        tuple(str(n) for n in plan.manifest["generator"].to_numpy()[rows]), plan.settings.threads,
    )  # fmt: skip


def _fit(work: FitWork, store: Store, upstream: FittedHead | None) -> FittedHead:
    from threadpoolctl import threadpool_limits

    data = None
    if work.head.fit_on != "nothing":
        features = stored_features(work.extractor, work.dim, work.items, store, NOTHING)
        good = np.isfinite(features).all(axis=1)
        if not good.any():
            raise ProtocolError(f"row {work.row!r}: the detector abstains on every image of the fit set")
        names = [name for name, kept in zip(work.generators, good, strict=True) if kept]
        data = FitData(features[good], work.labels[good], names, upstream)
    with threadpool_limits(limits=work.threads):
        return work.head.fit(data, work.weights)


def made_head(work: FitWork, store: Store, emit: Listener = silent) -> FittedHead:
    """A head: from the store, or fitted now (its upstream first) and stored.

    What is returned is always what the store holds, restored, so that a first and a second run score alike.
    """
    for _ in range(2):
        stored = store.head(work.key)
        if stored is not None:
            return work.head.fitted_class.restore(*stored)
        upstream = None if work.upstream is None else made_head(work.upstream, store, emit)
        emit(Event("note", {"text": making(work)}))
        arrays, meta = _fit(work, store, upstream).state()
        store.put_head(work.key, arrays, meta)
    raise StoreError("a fitted head did not reach the store", where=store.root)


def making(work: FitWork) -> str:
    """What is being made, for people."""
    what = f"on {len(work.items):,} images" if len(work.items) else "from its weights"
    return f"making the head of {work.row} {what}"


def fitted_head(work: HeadWork, plan: Plan, plan_row: RowPlan, store: Store, emit: Listener) -> FittedHead:
    """The head of a row; as :func:`made_head`."""
    stored = store.head(work.key)
    if stored is not None:
        return work.head.fitted_class.restore(*stored)
    return made_head(fit_work(work, plan, plan_row), store, emit)


def threshold_of(plan_row: RowPlan, head: FittedHead, store: Store) -> float:
    """The row's threshold: a published number, or the stated quantile of its calibration photographs."""
    rule = plan_row.row.chain.threshold
    if isinstance(rule, FixedThreshold):
        return rule.value
    stored = store.entry("thresholds", plan_row.threshold_key)
    if stored is None:
        scores = scores_of(plan_row, plan_row.calibration_rows, head, store)
        stored = {"threshold": rule.value(scores), "calibration_images": len(plan_row.calibration_rows)}
        store.put_entry("thresholds", plan_row.threshold_key, stored)
    return float(stored["threshold"])


def score_row(
    plan: Plan, plan_row: RowPlan, head: FittedHead, threshold: float, store: Store, aside: np.ndarray = NOTHING
) -> RowScores:
    """Scores of one detector: every image that some test set names, once a role; images set ``aside`` have no score
    (NaN).

    Raises:
        LostError: as :func:`stored_features`.
    """
    return RowScores(plan, plan_row.row.name, threshold, scores_of(plan_row, plan.cell_rows, head, store, aside))

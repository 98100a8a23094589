"""Heads and thresholds: fitted from stored features, kept under their own keys; then scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.api.contract import FitData, FittedHead, FixedThreshold, predict
from harness.api.errors import ProtocolError, StoreError
from harness.api.events import Event, Listener
from harness.engine.inline import LostError
from harness.engine.plan import HeadWork, Plan, RowPlan
from harness.results.store import Store

if TYPE_CHECKING:
    import pandas as pd

SCORE_ROWS = 65_536


def features_of(plan_row: RowPlan, rows: np.ndarray, store: Store) -> np.ndarray:
    """Stored features ``[len(rows), D]`` of manifest rows; NaN rows are abstentions.

    Raises:
        LostError: a feature is missing (a segment was damaged after it was written).
    """
    extractor = plan_row.extractor
    values, found = store.items(extractor.key).matrix(plan_row.items[rows], extractor.stage.dim)  # type: ignore[union-attr]
    if not found.all():
        raise LostError(
            f"{int((~found).sum())} stored features are gone (a damaged segment was set aside)",
            where=extractor.key, fix="run the same command again: they are computed again",
        )  # fmt: skip
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


def _fit(work: HeadWork, plan: Plan, plan_row: RowPlan, store: Store, upstream: FittedHead | None) -> FittedHead:
    from threadpoolctl import threadpool_limits

    data = None
    if work.head.fit_on != "nothing":
        features = features_of(plan_row, work.fit_rows, store)
        good = np.isfinite(features).all(axis=1)
        labels = plan.manifest["label"].to_numpy()[work.fit_rows]
        names = plan.manifest["generator"].to_numpy()[work.fit_rows]
        if not good.any():
            raise ProtocolError(f"row {plan_row.row.name!r}: the detector abstains on every image of the fit set")
        data = FitData(features[good], labels[good].astype(np.int8), [str(n) for n in names[good]], upstream)
    with threadpool_limits(limits=plan.settings.threads):
        return work.head.fit(data, work.weights)


def fitted_head(work: HeadWork, plan: Plan, plan_row: RowPlan, store: Store, emit: Listener) -> FittedHead:
    """The head of a row: from the store, or fitted now (its upstream first) and stored.

    What is returned is always what the store holds, restored, so that a first and a second run score alike.
    """
    for _ in range(2):
        stored = store.head(work.key)
        if stored is not None:
            return work.head.fitted_class.restore(*stored)
        upstream = None if work.upstream is None else fitted_head(work.upstream, plan, plan_row, store, emit)
        what = f"on {len(work.fit_rows):,} images" if len(work.fit_rows) else "from its weights"
        emit(Event("note", {"text": f"making the head of {plan_row.row.name} {what}"}))
        arrays, meta = _fit(work, plan, plan_row, store, upstream).state()
        store.put_head(work.key, arrays, meta)
    raise StoreError("a fitted head did not reach the store", where=store.root)


def threshold_of(plan_row: RowPlan, head: FittedHead, store: Store) -> float:
    """The row's threshold: a published number, or the stated quantile of its calibration photographs."""
    rule = plan_row.row.chain.threshold
    if isinstance(rule, FixedThreshold):
        return rule.value
    stored = store.entry("thresholds", plan_row.threshold_key)
    if stored is None:
        scores = score_features(head, features_of(plan_row, plan_row.calibration_rows, store))
        stored = {"threshold": rule.value(scores), "calibration_images": len(plan_row.calibration_rows)}
        store.put_entry("thresholds", plan_row.threshold_key, stored)
    return float(stored["threshold"])


def score_row(plan: Plan, plan_row: RowPlan, head: FittedHead, threshold: float, store: Store) -> pd.DataFrame:
    """``scores.parquet`` rows of one detector: every image that some test set names, once a role."""
    import pandas as pd

    table = plan.manifest.iloc[plan.cell_rows]
    scores = score_features(head, features_of(plan_row, plan.cell_rows, store))
    return pd.DataFrame({
        "sha256": table["sha256"].to_numpy(),
        "label": table["label"].to_numpy().astype(np.int8),
        "generator": table["generator"].to_numpy(),
        "detector": plan_row.row.name,
        "score": scores,
        "threshold": threshold,
        "prediction": predict(scores, threshold),
    })  # fmt: skip

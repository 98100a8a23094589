from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn import metrics as sk

from harness.results.metrics import METRICS, RANK_METRICS, RATE_METRICS, cell_metrics, decisions, roc_curve

LEVELS = st.sampled_from([-math.inf, -1.5, -1.0, 0.0, 0.25, 0.5, 1.0, 3.0, math.inf])
CELLS = st.lists(st.tuples(st.integers(0, 1), LEVELS | st.floats(-5, 5)), min_size=2, max_size=80).filter(
    lambda rows: len({y for y, _ in rows}) == 2
)


@given(CELLS, st.floats(-2, 2))
@settings(max_examples=150, deadline=None)
def test_every_metric_equals_scikit_learn_with_ties_and_infinities(rows, threshold):
    y, s = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    ours = cell_metrics(y, s, threshold).values
    called = (s > threshold).astype(int)
    finite = np.clip(s, -1e9, 1e9)  # scikit-learn refuses infinities; the order stays
    fpr, tpr, _ = sk.roc_curve(y, finite, drop_intermediate=False)
    expected = {
        "accuracy": sk.accuracy_score(y, called),
        "accuracy_photographic": sk.recall_score(y, called, pos_label=0),
        "accuracy_generated": sk.recall_score(y, called),
        "tpr": sk.recall_score(y, called),
        "tnr": sk.recall_score(y, called, pos_label=0),
        "fpr": 1 - sk.recall_score(y, called, pos_label=0),
        "fnr": 1 - sk.recall_score(y, called),
        "f_score": sk.f1_score(y, called, zero_division=0),
        "auc": sk.roc_auc_score(y, finite),
        "ap": sk.average_precision_score(y, finite),
        "ap_photographic": sk.average_precision_score(1 - y, -finite),
    }
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name
    # a crossing on a vertical or horizontal part of the curve has one FPR only in one direction: take both bounds
    on_curve = np.min(np.hypot(*_nearest(fpr, tpr, ours["eer"])))
    assert on_curve < 1e-9


def _nearest(fpr, tpr, eer):
    """Distance from (eer, 1 - eer) to each segment of the ROC polyline."""
    p = np.array([eer, 1 - eer])
    a, b = np.stack([fpr[:-1], tpr[:-1]], 1), np.stack([fpr[1:], tpr[1:]], 1)
    d = b - a
    t = np.clip(((p - a) * d).sum(1) / np.maximum((d * d).sum(1), 1e-30), 0, 1)
    return (a + t[:, None] * d - p).T


def test_equal_error_rate_is_the_root_on_scikit_learns_curve():
    rng = np.random.default_rng(3)
    y = np.r_[np.zeros(400), np.ones(300)]
    s = rng.normal(size=700) + y
    fpr, tpr, _ = sk.roc_curve(y, s, drop_intermediate=False)
    root = brentq(lambda x: 1 - x - np.interp(x, fpr, tpr), 0, 1, xtol=1e-14)
    assert cell_metrics(y, s, 0).values["eer"] == pytest.approx(root, abs=1 / 300)
    assert np.hypot(*_nearest(fpr, tpr, cell_metrics(y, s, 0).values["eer"])).min() < 1e-12


def test_roc_points_equal_scikit_learns():
    rng = np.random.default_rng(1)
    y, s = rng.integers(0, 2, 200), np.round(rng.normal(size=200), 1)
    fpr, tpr, threshold = sk.roc_curve(y, s, drop_intermediate=False)
    ours = roc_curve(y, s)
    np.testing.assert_allclose(ours.fpr, fpr, atol=1e-15)
    np.testing.assert_allclose(ours.tpr, tpr, atol=1e-15)
    np.testing.assert_array_equal(ours.threshold, threshold)


def test_released_mixture_scores_give_the_released_accuracy_auc_and_both_average_precisions(golden_dir):
    with np.load(golden_dir / "gmm.npz", allow_pickle=False) as z:
        likelihood = np.r_[z["f64/score_real"], z["f64/score_fake"]]
        label = np.r_[np.zeros(len(z["f64/score_real"])), np.ones(len(z["f64/score_fake"]))]
        values = cell_metrics(label, -likelihood, -float(z["f64/threshold"])).values
        released = z["f64/acc_auc_ap_pct"] / 100
        generated_positive = float(z["f64/ap_fake_positive_pct"]) / 100
    # the released code takes photographic as positive (FIDELITY, positive_class)
    ours = [values["accuracy"], values["auc"], values["ap_photographic"]]
    np.testing.assert_allclose(ours, released, atol=1e-12)
    assert values["ap"] == pytest.approx(generated_positive, abs=1e-12)


def test_generated_is_strictly_above_the_threshold():
    assert decisions([0.4, 0.5, 0.6, np.nan], 0.5).tolist() == [0, 0, 1, -1]
    assert decisions([0.4, 0.6], np.nan).tolist() == [-1, -1]


def test_abstentions_are_wrong_by_default_or_left_out_and_never_in_rank_metrics():
    y = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    s = np.array([0.1, 0.2, 0.9, np.nan, 0.8, 0.7, np.nan, np.nan])
    wrong, out = cell_metrics(y, s, 0.5), cell_metrics(y, s, 0.5, abstain="out")
    assert wrong.abstained == out.abstained == 3
    assert (wrong.n, wrong.n_photographic, wrong.n_generated) == (8, 4, 4)
    assert wrong.values["accuracy"] == 4 / 8
    assert (wrong.values["tpr"], wrong.values["fnr"]) == (0.5, 0.5)
    assert (wrong.values["tnr"], wrong.values["fpr"]) == (0.5, 0.5)
    assert out.values["accuracy"] == pytest.approx(4 / 5)
    assert out.values["tpr"] == 1.0
    assert out.values["tnr"] == pytest.approx(2 / 3)
    there = ~np.isnan(s)
    for cell in (wrong, out):
        assert cell.values["auc"] == pytest.approx(sk.roc_auc_score(y[there], s[there]))
        assert cell.values["ap"] == pytest.approx(sk.average_precision_score(y[there], s[there]))


@pytest.mark.parametrize("label", [0, 1])
def test_a_missing_class_gives_nan_and_the_counts(label):
    cell = cell_metrics([label] * 3, [0.1, 0.7, 0.9], 0.5)
    assert cell.n == 3
    for name in ("accuracy", "f_score", *RANK_METRICS):
        assert math.isnan(cell.values[name]), name
    present = "tpr" if label else "tnr"
    assert cell.values[present] == pytest.approx(2 / 3 if label else 1 / 3)


def test_no_images_and_only_abstentions_raise_nothing():
    empty = cell_metrics([], [], 0.5)
    assert empty.n == 0
    assert all(math.isnan(v) for v in empty.values.values())
    silent = cell_metrics([0, 1], [np.nan, np.nan], 0.5)
    assert silent.abstained == 2
    assert silent.values["accuracy"] == 0.0
    assert math.isnan(silent.values["auc"])


def test_a_detector_without_threshold_has_rank_metrics_only():
    values = cell_metrics([0, 0, 1, 1], [0.1, 0.6, 0.5, 0.9], np.nan).values
    assert all(math.isnan(values[name]) for name in RATE_METRICS)
    assert values["auc"] == 0.75
    assert set(values) == set(METRICS)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from harness.results.metrics import equal_error_rate
from harness.results.resample import Workspace, image_keys, image_weights, rank, weighted_ranks


def test_a_weight_depends_on_seed_image_and_replicate_only():
    keys = image_keys(["a" * 64, "b" * 64, "c" * 64], seed=1)
    whole = image_weights(keys, 0, 101)
    for start, stop in ((0, 1), (3, 6), (97, 101), (40, 81)):
        np.testing.assert_array_equal(image_weights(keys, start, stop), whole[:, start:stop])
    np.testing.assert_array_equal(image_weights(keys[[2, 0]], 0, 101), whole[[2, 0]])
    assert (image_weights(image_keys(["a" * 64], seed=2), 0, 101) != whole[:1]).any()


def test_weights_are_poisson_of_mean_one_and_independent():
    weights = image_weights(image_keys([f"{i:064x}" for i in range(600)], seed=7), 0, 2000).astype(float)
    assert weights.mean() == pytest.approx(1, abs=0.005)
    assert weights.var() == pytest.approx(1, abs=0.01)
    assert (weights == 0).mean() == pytest.approx(np.exp(-1), abs=0.003)
    between_images = np.corrcoef(weights[:200])[np.triu_indices(200, 1)]
    between_replicates = np.corrcoef(weights.T[:64])[np.triu_indices(64, 1)]
    assert np.abs(between_images).max() < 0.12  # 5 standard deviations of 1/sqrt(2000)
    assert np.abs(between_replicates).max() < 0.21  # of 1/sqrt(600)


@st.composite
def _classes(draw):
    level = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 1.0, np.inf, np.nan]) | st.floats(-3, 3)
    return (
        np.array(draw(st.lists(level, min_size=1, max_size=40))),
        np.array(draw(st.lists(level, min_size=1, max_size=40))),
        draw(st.integers(0, 2**32)),
    )


@given(_classes())
@settings(max_examples=150, deadline=None)
def test_weighted_rank_metrics_equal_scikit_learns_with_sample_weights(case):
    generated, photographic, seed = case
    width = 12
    rng = np.random.default_rng(seed)
    wg = rng.poisson(1, (len(generated), width)).astype(np.uint8)
    wp = rng.poisson(1, (len(photographic), width)).astype(np.uint8)
    wg[:, 0], wp[:, 0] = 1, 1
    with np.errstate(all="ignore"):
        ours = weighted_ranks(rank(generated, photographic), wg, wp, Workspace(len(wg), len(wp), width))
        only = weighted_ranks(rank(generated, photographic), wg, wp, Workspace(len(wg), len(wp), width), only_auc=True)
    np.testing.assert_allclose(only["auc"], ours["auc"], atol=1e-12)
    gs, ps = ~np.isnan(generated), ~np.isnan(photographic)
    y = np.r_[np.ones(gs.sum()), np.zeros(ps.sum())]
    s = np.clip(np.r_[generated[gs], photographic[ps]], -1e9, 1e9)
    for b in range(width):
        g, p = wg[gs, b].astype(float), wp[ps, b].astype(float)
        if not g.sum() or not p.sum():
            assert all(np.isnan(values[b]) for values in ours.values())
            continue
        p = p * (g.sum() / len(g)) / (p.sum() / len(p))  # class shares as they are, not as resampled
        w = np.r_[g, p]
        assert ours["auc"][b] == pytest.approx(sk.roc_auc_score(y, s, sample_weight=w), abs=1e-6)
        assert ours["ap"][b] == pytest.approx(sk.average_precision_score(y, s, sample_weight=w), abs=1e-6)
        assert ours["ap_photographic"][b] == pytest.approx(
            sk.average_precision_score(1 - y, -s, sample_weight=w), abs=1e-6
        )
        repeated = np.r_[wg[gs, b], wp[ps, b]]
        expected = equal_error_rate(np.repeat(y, repeated), np.repeat(s, repeated))
        assert ours["eer"][b] == pytest.approx(expected, abs=1e-6)


def test_running_sums_stay_exact_over_many_groups():
    rng = np.random.default_rng(0)
    generated, photographic = rng.normal(1, 1, 5003), np.round(rng.normal(0, 1, 4099), 2)
    wg = rng.poisson(1, (5003, 8)).astype(np.uint8)
    wp = rng.poisson(1, (4099, 8)).astype(np.uint8)
    ours = weighted_ranks(rank(generated, photographic), wg, wp, Workspace(5003, 4099, 8))
    y = np.r_[np.ones(5003), np.zeros(4099)]
    for b in range(8):
        w = np.r_[wg[:, b], wp[:, b]].astype(float)
        expected = sk.roc_auc_score(y, np.r_[generated, photographic], sample_weight=w)
        assert ours["auc"][b] == pytest.approx(expected, abs=1e-9)

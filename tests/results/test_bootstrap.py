from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.results.bootstrap import holm, interval, paired_comparison, replicates, two_sided_p
from harness.results.metrics import METRICS, RATE_METRICS


def _subset(scores, keep_rows=None, keep_images=None):
    rows = slice(None) if keep_rows is None else keep_rows
    images = slice(None) if keep_images is None else keep_images
    return dataclasses.replace(
        scores,
        sha256=scores.sha256[images],
        label=scores.label[images],
        detectors=tuple(np.array(scores.detectors)[rows]),
        score=scores.score[rows][:, images],
        threshold=scores.threshold[rows][:, images],
        present=scores.present[rows][:, images],
    )


def test_replicates_do_not_depend_on_other_detectors_row_order_range_or_workers(set_maker):
    scores = set_maker(shifts=(0.2, 0.9, 1.7), ties=True)
    whole = replicates([scores], seed=5, stop=600, workers=1)["g"]
    alone = replicates([_subset(scores, [1])], seed=5, stop=600)["g"]
    np.testing.assert_array_equal(alone[0], whole[1])
    turned = replicates([_subset(scores, [2, 0, 1])], seed=5, stop=600, workers=3)["g"]
    np.testing.assert_array_equal(turned, whole[[2, 0, 1]])
    part = replicates([scores], seed=5, start=300, stop=410, metrics=("auc", "accuracy"))["g"]
    np.testing.assert_array_equal(part[:, 1], whole[:, METRICS.index("accuracy"), 300:410])
    np.testing.assert_allclose(part[:, 0], whole[:, METRICS.index("auc"), 300:410], atol=1e-12)
    shuffled = np.random.default_rng(0).permutation(len(scores.label))
    moved = replicates([_subset(scores, None, shuffled)], seed=5, stop=600)["g"]
    np.testing.assert_allclose(moved, whole, atol=2e-6)
    assert (replicates([scores], seed=6, stop=600)["g"] != whole).any()


def test_photographs_shared_by_test_sets_are_resampled_together(set_maker):
    a, b = set_maker("a"), set_maker("b")
    tnr = METRICS.index("tnr")
    tpr = METRICS.index("tpr")
    b.score[:, :50] = a.score[:, :50]
    draws = replicates([a, b], seed=1, stop=1000)
    np.testing.assert_array_equal(draws["a"][:, tnr], draws["b"][:, tnr])
    assert abs(np.corrcoef(draws["a"][0, tpr], draws["b"][0, tpr])[0, 1]) < 0.15


def test_the_spread_of_replicates_is_the_sampling_error(set_maker):
    scores = set_maker(generated=800, photographic=700, shifts=(1.0,))
    draws = replicates([scores], seed=3, stop=4000)["g"][0]
    point = scores.point(0)
    for name, size in (("tpr", 800), ("tnr", 700)):
        error = np.sqrt(point[name] * (1 - point[name]) / size)
        assert draws[METRICS.index(name)].std() == pytest.approx(error, rel=0.06)
    expected = np.sqrt((800 * point["tpr"] * point["fnr"] + 700 * point["tnr"] * point["fpr"]) / 1500**2)
    assert draws[METRICS.index("accuracy")].std() == pytest.approx(expected, rel=0.06)
    # DeLong's variance of the AUC
    g, p = scores.score[0, 700:], scores.score[0, :700]
    wins = (g[:, None] > p[None]).astype(float)
    delong = np.sqrt(wins.mean(1).var(ddof=1) / 800 + wins.mean(0).var(ddof=1) / 700)
    assert draws[METRICS.index("auc")].std() == pytest.approx(delong, rel=0.06)
    for m, name in enumerate(METRICS):
        assert draws[m].mean() == pytest.approx(point[name], abs=0.004), name


def test_intervals_hold_the_point_and_have_the_stated_level():
    values = np.random.default_rng(0).normal(size=(3, 5000))
    low, high = interval(values)
    np.testing.assert_allclose(low, -1.96, atol=0.1)
    np.testing.assert_allclose(high, 1.96, atol=0.1)
    narrow = interval(values, 0.9)
    assert (narrow[0] > low).all()
    assert (narrow[1] < high).all()


def test_too_few_defined_replicates_give_no_interval():
    values = np.ones((2, 100))
    values[0, :5] = np.nan
    values[1, :20] = np.nan
    low, high = interval(values)
    assert (low[0], high[0]) == (1, 1)
    assert np.isnan([low[1], high[1]]).all()


def test_abstentions_and_missing_scores_keep_their_meaning_in_replicates(set_maker):
    scores = set_maker(shifts=(1.0, 1.0))
    scores.score[0, :20] = np.nan
    scores.present[1, :20] = False
    draws = replicates([scores], seed=1, stop=800)["g"]
    tnr = METRICS.index("tnr")
    assert draws[0, tnr].mean() == pytest.approx(scores.point(0)["tnr"], abs=0.02)
    assert draws[1, tnr].mean() == pytest.approx(scores.point(1)["tnr"], abs=0.02)
    assert scores.point(0)["tnr"] < scores.point(1)["tnr"]
    out = replicates([scores], seed=1, stop=800, abstain="out")["g"]
    assert out[0, tnr].mean() == pytest.approx(scores.point(0, "out")["tnr"], abs=0.02)


def test_degenerate_cells_give_nan_and_raise_nothing(set_maker):
    one_class = set_maker(generated=0)
    draws = replicates([one_class], seed=1, stop=200)["g"]
    assert np.isnan(draws[:, METRICS.index("auc")]).all()
    assert np.isfinite(draws[:, METRICS.index("tnr")]).all()
    silent = set_maker()
    silent.score[:] = np.nan
    draws = replicates([silent], seed=1, stop=200)["g"]
    assert np.isnan(draws[:, METRICS.index("ap")]).all()
    without = set_maker()
    without.threshold[:] = np.nan
    draws = replicates([without], seed=1, stop=200)["g"]
    assert all(np.isnan(draws[:, METRICS.index(name)]).all() for name in RATE_METRICS)
    assert np.isfinite(draws[:, METRICS.index("auc")]).all()


def test_better_equal_and_worse_detectors_are_told_apart(set_maker):
    sets = [set_maker(name, shifts=(1.0, 1.0, 3.0, 0.0)) for name in ("a", "b")]
    for s in sets:
        s.score[1] = s.score[0]
    rows = paired_comparison(sets, "d0", detectors=["d1", "d2", "d3"], seed=1, n_boot=2000)
    by = {(r.detector, r.metric): r for r in rows}
    assert by["d1", "auc"].p == 1.0
    assert by["d1", "auc"].difference == 0.0
    assert by["d2", "auc"].difference > 0
    assert by["d2", "auc"].low > 0
    assert by["d2", "auc"].p < 0.01
    assert by["d3", "accuracy"].high < 0
    assert by["d3", "accuracy"].p_holm >= by["d3", "accuracy"].p
    assert all(r.num_test_sets == 2 for r in rows)


def test_a_comparison_does_not_depend_on_the_other_rows(set_maker):
    sets = [set_maker(name, shifts=(1.0, 1.2, 2.0)) for name in ("a", "b")]
    together = paired_comparison(sets, "d0", detectors=["d1", "d2"], seed=1, n_boot=500)
    alone = paired_comparison(sets, "d0", detectors=["d1"], seed=1, n_boot=500)
    assert [r[:7] for r in alone] == [r[:7] for r in together if r.detector == "d1"]


def test_p_of_no_difference_is_rarely_small_when_there_is_none(set_maker):
    small = 0
    for seed in range(100):
        sets = [set_maker(str(seed), shifts=(1.0, 1.0), seed=seed)]
        small += paired_comparison(sets, "d0", detectors=["d1"], seed=1, n_boot=400, metrics=("auc",))[0].p < 0.05
    assert small <= 14  # 5 expected; a binomial beyond four standard deviations


def test_p_is_never_zero_and_two_sided():
    assert two_sided_p(np.full(999, 0.1)) == pytest.approx(0.002)
    assert two_sided_p(np.full(999, -0.1)) == pytest.approx(0.002)
    assert np.isnan(two_sided_p(np.full(10, np.nan)))


def test_holm_on_a_worked_example():
    assert holm([0.01, 0.04, 0.03, np.nan]) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_between_p_and_bonferroni_and_keeps_the_order(p):
    corrected = holm(p)
    for raw, adjusted in zip(p, corrected, strict=True):
        assert raw <= adjusted <= min(1.0, raw * len(p)) + 1e-12
    order = np.argsort(p, kind="stable")
    assert np.all(np.diff(np.array(corrected)[order]) >= 0)

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from harness.api.errors import DataError
from harness.results.evaluate import AUDIT, evaluate, join_scores
from harness.results.metrics import METRICS, cell_metrics


def tables(sets, detectors=None):
    """scores.parquet and cells.parquet of synthetic test sets, in an order of their own."""
    scores, cells = {}, []
    for s in sets:
        for i, (sha, label) in enumerate(zip(s.sha256, s.label, strict=True)):
            generator = s.name if label else ""
            cells.append((s.name, sha, int(label), generator))
            for d, name in enumerate(s.detectors):
                scores.setdefault((sha, int(label), generator, name), (float(s.score[d, i]), float(s.threshold[d, i])))
    rows = [(*key, *value) for key, value in scores.items()]
    table = pd.DataFrame(rows, columns=["sha256", "label", "generator", "detector", "score", "threshold"])
    called = np.where(table["score"].isna(), -1, table["score"] > table["threshold"])
    table["prediction"] = called.astype("int8")
    cell_table = pd.DataFrame(cells, columns=["test_set", "sha256", "label", "generator"])
    return table.sample(frac=1, random_state=1), cell_table.sample(frac=1, random_state=2)


@pytest.fixture
def two(set_maker):
    a, b = set_maker("alpha"), set_maker("beta", generated=40)
    b.score[:, :50] = a.score[:, :50]
    return [a, b]


def _value(table, detector, test_set, metric, column="value"):
    row = table[(table.detector == detector) & (table.test_set == test_set) & (table.metric == metric)]
    assert len(row) == 1
    return row.iloc[0][column]


def test_every_cell_has_every_metric_with_its_interval_and_counts(two):
    result = evaluate(*tables(two), seed=1, n_boot=300)
    assert len(result.metrics) == 2 * 3 * len(METRICS)
    for s in two:
        for d, name in enumerate(s.detectors):
            expected = cell_metrics(s.label, s.score[d], 0.5).values
            for metric in METRICS:
                assert _value(result.metrics, name, s.name, metric) == pytest.approx(expected[metric], abs=1e-12)
                low = _value(result.metrics, name, s.name, metric, "low")
                high = _value(result.metrics, name, s.name, metric, "high")
                assert low <= expected[metric] <= high
    assert _value(result.metrics, "d0", "beta", "auc", "n_generated") == 40
    assert _value(result.metrics, "d0", "beta", "auc", "n") == 90
    assert result.notes == []


def test_the_mean_is_over_test_sets_of_the_metric_not_of_the_images(two):
    result = evaluate(*tables(two), seed=1, n_boot=300)
    for metric in METRICS:
        values = [_value(result.metrics, "d1", s.name, metric) for s in two]
        assert _value(result.metrics, "d1", "mean", metric) == pytest.approx(np.mean(values), abs=1e-12)
    assert _value(result.metrics, "d1", "mean", "auc", "n") == 110 + 90


def test_the_interval_of_the_mean_counts_shared_photographs_once(two):
    result = evaluate(*tables(two), seed=1, n_boot=3000)
    low = _value(result.metrics, "d0", "mean", "tnr", "low")
    high = _value(result.metrics, "d0", "mean", "tnr", "high")
    # both test sets hold the same 50 photographs: the mean is no more certain than one of them
    assert low == pytest.approx(_value(result.metrics, "d0", "alpha", "tnr", "low"), abs=1e-12)
    assert high == pytest.approx(_value(result.metrics, "d0", "alpha", "tnr", "high"), abs=1e-12)


def test_results_do_not_depend_on_row_order_or_other_detectors(two):
    scores, cells = tables(two)
    whole = evaluate(scores, cells, seed=1, n_boot=200).metrics
    again = evaluate(scores.iloc[::-1], cells.sample(frac=1, random_state=9), seed=1, n_boot=200).metrics
    pd.testing.assert_frame_equal(whole, again)
    alone = evaluate(scores[scores.detector == "d1"], cells, seed=1, n_boot=200).metrics
    pd.testing.assert_frame_equal(alone, whole[whole.detector == "d1"].reset_index(drop=True))


def test_seen_generators_are_marked_on_their_cells_and_on_the_mean(two):
    metrics = evaluate(*tables(two), seed=1, n_boot=100, seen={"d0": {"beta"}}).metrics
    assert bool(_value(metrics, "d0", "beta", "auc", "seen"))
    assert not bool(_value(metrics, "d0", "alpha", "auc", "seen"))
    assert bool(_value(metrics, "d0", "mean", "auc", "seen"))
    assert not metrics[metrics.detector == "d1"]["seen"].any()


def test_the_audit_is_a_row_of_the_metrics_and_never_compared(two):
    scores, cells = tables(two)
    audit = cells.assign(score=cells["label"] * 0.9)
    result = evaluate(scores, cells, seed=1, n_boot=100, n_compare=200, reference="d0", audit=audit)
    assert _value(result.metrics, AUDIT, "alpha", "auc") == 1.0
    assert _value(result.metrics, AUDIT, "mean", "accuracy") == 1.0
    assert set(result.comparisons["detector"]) == {"d1"}
    without = evaluate(scores, cells, seed=1, n_boot=100, n_compare=200, reference="d0")
    pd.testing.assert_frame_equal(
        without.metrics, result.metrics[result.metrics.detector != AUDIT].reset_index(drop=True)
    )
    pd.testing.assert_frame_equal(without.comparisons, result.comparisons)


def test_comparisons_have_one_row_a_detector_and_metric(two):
    result = evaluate(*tables(two), seed=1, n_boot=100, n_compare=500, reference="d0")
    assert list(result.comparisons.metric) == ["accuracy", "auc"]
    row = result.comparisons[result.comparisons.metric == "auc"].iloc[0]
    gap = _value(result.metrics, "d1", "mean", "auc") - _value(result.metrics, "d0", "mean", "auc")
    assert row.difference == pytest.approx(gap)
    assert row.low <= row.difference <= row.high
    assert row.n_test_sets == 2


def test_a_missing_cell_leaves_the_others_and_takes_the_mean_away(two):
    scores, cells = tables(two)
    kept = scores[~((scores.detector == "d1") & (scores.generator == "beta"))]
    kept = kept[~((kept.detector == "d1") & (kept.label == 0))]
    result = evaluate(kept, cells, seed=1, n_boot=100, reference="d0")
    assert set(result.metrics[result.metrics.detector == "d1"]["test_set"]) == {"alpha", "mean"}
    assert np.isnan(_value(result.metrics, "d1", "mean", "tpr"))
    assert np.isfinite(_value(result.metrics, "d1", "alpha", "tpr"))
    assert any("d1: no scores on test set beta" in note for note in result.notes)
    assert any("d1: 50 of 110" in note for note in result.notes)
    assert result.comparisons.empty


def test_abstentions_are_counted(two):
    two[0].score[0, 60:63] = np.nan
    metrics = evaluate(*tables(two), seed=1, n_boot=100).metrics
    assert _value(metrics, "d0", "alpha", "auc", "abstained") == 3
    assert _value(metrics, "d1", "alpha", "auc", "abstained") == 0


def test_no_scores_at_all_give_empty_tables(two):
    scores, cells = tables(two)
    result = evaluate(scores.iloc[:0], cells, seed=1, n_boot=100, reference="d0")
    assert result.metrics.empty
    assert result.comparisons.empty
    audit = cells.assign(score=0.4)
    assert set(evaluate(scores.iloc[:0], cells, seed=1, n_boot=100, audit=audit).metrics.detector) == {AUDIT}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda s, c: (pd.concat([s, s.iloc[:1]]), c), "two scores"),
        (lambda s, c: (s, pd.concat([c, c.iloc[:1]])), "twice"),
        (lambda s, c: (s.assign(prediction=1 - s.prediction), c), "not what score and threshold say"),
        (lambda s, c: (s.assign(detector=AUDIT), c), "cannot name a detector"),
        (lambda s, c: (s, c.assign(test_set="mean")), "cannot be named"),
        (lambda s, c: (s.drop(columns="score"), c), "'score' is missing"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(two, spoil, says):
    with pytest.raises(DataError, match=says):
        join_scores(*spoil(*tables(two)))

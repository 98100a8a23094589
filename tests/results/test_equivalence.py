from __future__ import annotations

import numpy as np
import pytest

from harness.results.equivalence import equivalence


def _samples(centre, spread, seed=0):
    return np.random.default_rng(seed).normal(centre, spread, 4000)


@pytest.mark.parametrize(
    ("measured", "spread", "verdict"),
    [
        (0.885, 0.001, "reproduced"),
        (0.885, 0.008, "inconclusive"),
        (0.85, 0.005, "not reproduced"),
        (0.93, 0.005, "not reproduced"),
        (0.895, 0.005, "inconclusive"),
    ],
)
def test_verdict_of_a_difference_with_its_uncertainty(measured, spread, verdict):
    result = equivalence(measured, 0.885, _samples(measured, spread), 0.01, num_images=5000)
    assert result.verdict == verdict
    assert result.difference == pytest.approx(measured - 0.885)
    assert result.low95 < result.low90 < result.difference < result.high90 < result.high95


def test_intervals_between_the_two_levels_are_inconclusive_not_refuted():
    # 95 % interval reaches into the tolerance, 90 % does not
    result = equivalence(0.0185 + 0.885, 0.885, _samples(0.9035, 0.0047), 0.01, num_images=5000)
    assert result.low95 < 0.01 < result.low90
    assert result.verdict == "inconclusive"


def test_a_perfect_score_on_few_images_is_not_certainty():
    always = np.ones(2000)
    few = equivalence(1.0, 1.0, always, 0.01, num_images=30)
    assert few.verdict == "inconclusive"
    assert few.low95 == pytest.approx(-np.log(20) / 30)
    assert equivalence(1.0, 1.0, always, 0.01, num_images=5000).verdict == "reproduced"


def test_undefined_values_are_inconclusive_with_a_reason():
    result = equivalence(float("nan"), 0.9, np.full(100, np.nan), 0.01, num_images=2)
    assert result.verdict == "inconclusive"
    assert "too few" in result.reason


def test_the_tolerance_must_be_positive():
    with pytest.raises(ValueError, match="tolerance"):
        equivalence(0.9, 0.9, np.ones(10), 0.0, num_images=10)

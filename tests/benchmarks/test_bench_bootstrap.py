"""How long the bootstrap of the paper's largest table takes (budget: 10 s on 2 cores; not asserted)."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from harness.results.bootstrap import COMPARED, SetScores, interval, paired_comparison, replicates
from harness.results.metrics import METRICS

DETECTORS, TEST_SETS, PER_CLASS = 16, 9, 5000


@pytest.fixture(scope="module")
def sets():
    """16 detectors on 9 test sets of 5,000 + 5,000 images; the photographs are the same in all."""
    rng = np.random.default_rng(0)
    photographs = [hashlib.sha256(f"p{i}".encode()).hexdigest() for i in range(PER_CLASS)]
    label = np.repeat(np.array([0, 1], np.int8), PER_CLASS)
    out = []
    for t in range(TEST_SETS):
        generated = [hashlib.sha256(f"{t} {i}".encode()).hexdigest() for i in range(PER_CLASS)]
        score = rng.normal(size=(DETECTORS, len(label))) + label * np.linspace(0.2, 2, DETECTORS)[:, None]
        out.append(
            SetScores(
                name=f"g{t}",
                sha256=np.array(photographs + generated, dtype=object),
                label=label,
                detectors=tuple(f"d{i}" for i in range(DETECTORS)),
                score=score,
                threshold=np.full(score.shape, 1.0),
                present=np.ones(score.shape, bool),
            )
        )
    return out


@pytest.mark.benchmark(group="bootstrap")
def test_intervals_of_every_metric_of_16_detectors_on_9_test_sets_of_10000_images(benchmark, sets):
    def intervals():
        draws = replicates(sets, seed=2024)
        means = np.mean(list(draws.values()), axis=0)
        return [interval(values) for values in (*draws.values(), means)]

    low, high = benchmark.pedantic(intervals, rounds=1, iterations=1)[0]
    assert low.shape == (DETECTORS, len(METRICS))
    assert (low <= high).all()


@pytest.mark.benchmark(group="bootstrap")
def test_comparisons_of_15_detectors_with_the_reference(benchmark, sets):
    def compare():
        return paired_comparison(sets, "d0", detectors=[f"d{i}" for i in range(1, DETECTORS)], seed=2024)

    assert len(benchmark.pedantic(compare, rounds=1, iterations=1)) == 15 * len(COMPARED)

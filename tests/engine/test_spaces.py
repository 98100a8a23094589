"""Spaces of a sweep: what can be drawn from each, that a draw depends on nothing else, and what cannot be meant."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.api.errors import ConfigError
from harness.engine.spaces import KINDS, MAX_TRIALS, Space, drawn, space_of

FINITE = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-6)
POSITIVE = st.floats(1e-8, 1e6)
SEEDS = st.integers(0, 2**32)


def space(kind: str, *values: Any, key: str = "lr") -> Space:
    return space_of(key, {kind: list(values)}, "sweep s")


def draws(one: Space, count: int = 40, seed: int = 0) -> list[Any]:
    return [one.draw(np.random.default_rng((seed, i))) for i in range(count)]


@given(FINITE, FINITE, SEEDS)
def test_uniform_draws_stay_within_and_are_floats(low: float, high: float, seed: int) -> None:
    assume(low < high)
    for value in draws(space("uniform", low, high), 5, seed):
        assert isinstance(value, float)
        assert low <= value <= high
        assert value in (low, high) or value == float(f"{value:.6g}")


@given(POSITIVE, POSITIVE, SEEDS)
def test_loguniform_draws_stay_within(low: float, high: float, seed: int) -> None:
    assume(low < high)
    assert all(low <= value <= high for value in draws(space("loguniform", low, high), 5, seed))


def test_loguniform_is_uniform_in_the_logarithm() -> None:
    found = np.log10(draws(space("loguniform", 1e-5, 1e-2), 4000))
    counts, _ = np.histogram(found, bins=6, range=(-5, -2))
    assert counts.min() > 560
    assert counts.max() < 780


@given(st.integers(-1000, 1000), st.integers(1, 1000), SEEDS)
def test_randint_leaves_high_out(low: int, width: int, seed: int) -> None:
    found = draws(space("randint", low, low + width), 20, seed)
    assert all(isinstance(v, int) and low <= v < low + width for v in found)
    if width == 1:
        assert set(found) == {low}


@given(st.integers(1, 1000), st.integers(1, 100_000), SEEDS)
def test_lograndint_gives_whole_numbers_within(low: int, width: int, seed: int) -> None:
    found = draws(space("lograndint", low, low + width), 20, seed)
    assert all(isinstance(v, int) and low <= v < low + width for v in found)


@given(st.integers(-50, 50), st.integers(1, 50), st.sampled_from([0.1, 0.25, 0.5, 1.0, 3.0]), SEEDS)
def test_quniform_gives_multiples_within_the_range(first: int, more: int, step: float, seed: int) -> None:
    low, high = first * step, (first + more) * step
    for value in draws(space("quniform", low, high, step), 10, seed):
        assert low - 1e-9 <= value <= high + 1e-9
        assert math.isclose(value / step, round(value / step), abs_tol=1e-6)
        assert len(repr(value)) < 15  # 0.3, not 0.30000000000000004


def test_steps_reach_both_ends_and_stay_within_a_range_that_is_no_multiple() -> None:
    assert set(draws(space("quniform", 0.1, 0.3, 0.1), 200)) == {0.1, 0.2, 0.3}
    assert set(draws(space("qrandint", 5, 21, 8), 200)) == {8, 16}
    assert all(isinstance(v, int) for v in draws(space("qrandint", 8, 64, 8)))
    assert set(draws(space("qloguniform", 0.01, 0.035, 0.01), 200)) == {0.01, 0.02, 0.03}


def test_choice_draws_every_value_as_it_stands() -> None:
    found = draws(space("choice", "exact", 2, None, [1, 2]), 200)
    assert {str(v) for v in found} == {"exact", "2", "None", "[1, 2]"}


def test_numbers_that_yaml_reads_as_words_are_numbers() -> None:
    assert space("loguniform", "1e-5", "1e-2").values == (1e-5, 1e-2)
    assert space("grid", "1e-4", "cosine").values == (1e-4, "cosine")


SPACES = st.lists(
    st.sampled_from([
        ("loguniform", (1e-5, 1e-2)), ("uniform", (0.0, 1.0)), ("randint", (1, 9)), ("choice", ("a", "b", "c")),
        ("quniform", (0.0, 1.0, 0.1)), ("grid", (1, 2, 3)), ("grid", ("x", "y")),
    ]),
    min_size=1, max_size=5,
)  # fmt: skip


def some(kinds: list[tuple[str, tuple[Any, ...]]]) -> list[Space]:
    return [Space(f"settings.k{i}", kind, values) for i, (kind, values) in enumerate(kinds)]


@given(SPACES, st.integers(1, 6), st.integers(1, 6), SEEDS)
def test_more_samples_are_the_same_trials_and_more(
    kinds: list[tuple[str, tuple[Any, ...]]], few: int, more: int, seed: int
) -> None:
    spaces = some([*kinds, ("uniform", (0.0, 1.0))])
    short, long = drawn(spaces, few, seed), drawn(spaces, few + more, seed)
    assert long[: len(short)] == short
    assert drawn(spaces, few, seed) == short
    assert all(list(trial) == [s.key for s in spaces] for trial in long)


@given(SPACES, SEEDS)
def test_another_key_moves_no_draw(kinds: list[tuple[str, tuple[Any, ...]]], seed: int) -> None:
    spaces = [s for s in some(kinds) if s.kind != "grid"]
    assume(spaces)
    alone = drawn(spaces, 3, seed)
    beside = drawn([Space("epochs", "randint", (1, 99)), *spaces], 3, seed)
    assert [{k: v for k, v in t.items() if k != "epochs"} for t in beside] == alone


def test_another_seed_moves_the_draws() -> None:
    spaces = [space("uniform", 0, 1)]
    assert drawn(spaces, 5, 1) != drawn(spaces, 5, 2)


def test_the_points_of_a_grid_share_the_draws_of_their_sample() -> None:
    spaces = [space("loguniform", 1e-5, 1e-2), space("grid", 1, 2, key="epochs"), space("grid", "a", "b", key="step")]
    trials = drawn(spaces, 3, 7)
    assert len(trials) == 12
    assert [(t["epochs"], t["step"]) for t in trials[:4]] == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert [len({t["lr"] for t in trials[i : i + 4]}) for i in (0, 4, 8)] == [1, 1, 1]
    assert len({t["lr"] for t in trials}) == 3


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"loguniform": [0, 1]}, "above 0"),
        ({"loguniform": [-1, 1]}, "above 0"),
        ({"lograndint": [0, 5]}, "above 0"),
        ({"uniform": [1, 1]}, "not below high"),
        ({"uniform": [2, 1]}, "not below high"),
        ({"uniform": [1]}, "2 numbers, low and high"),
        ({"uniform": [1, 2, 3]}, "2 numbers"),
        ({"uniform": ["a", "b"]}, "2 numbers"),
        ({"uniform": [0, math.inf]}, "2 numbers"),
        ({"uniform": [False, True]}, "2 numbers"),
        ({"quniform": [0, 1]}, "3 numbers, low, high and step"),
        ({"quniform": [0, 1, 0]}, "step of 0"),
        ({"quniform": [0.1, 0.2, 5]}, "no multiple of 5"),
        ({"randint": [0.5, 2]}, "whole numbers"),
        ({"choice": []}, "choice of nothing"),
        ({"grid": []}, "grid of nothing"),
        ({"grid": [1, 1]}, "names 1 twice"),
        ({"grid": 3}, "are a list"),
        ({"loguniform": "1e-5"}, "are a list"),
        ({"logunifrom": [1, 2]}, "did you mean 'loguniform'"),
        ({"uniform": [0, 1], "grid": [1]}, "one kind"),
        ({}, "one kind"),
        (3, "one kind"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_message_that_names_the_key(document: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        space_of("settings.lambda_lr", document, "sweep s")
    assert "space.settings.lambda_lr" in str(caught.value)


def test_every_kind_can_be_drawn_or_gone_through() -> None:
    values = {"choice": [1], "grid": [1]}
    for kind in KINDS:
        numbers = [1, 9, 2] if kind.startswith("q") else [1, 9]
        made = space(kind, *values.get(kind, numbers))
        assert len(drawn([made], 1, 0)) == 1


def test_trials_that_would_be_equal_or_too_many_or_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="equal trials"):
        drawn([space("grid", 1, 2)], 2, 0)
    with pytest.raises(ConfigError, match="at most"):
        drawn([space("grid", *range(200)), space("grid", *range(200), key="epochs")], 1, 0)
    with pytest.raises(ConfigError, match="no key"):
        drawn([], 1, 0)
    assert MAX_TRIALS == 10_000

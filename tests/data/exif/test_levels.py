"""Cut points: as near to equal parts as ties allow, never between equal values; explicit ones are kept."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.api.errors import ConfigError, DataError
from harness.data.exif.labels import ORDINAL
from harness.data.exif.levels import choose_cuts, cuts_document, level_of, quantile_cuts, read_cuts

some = st.lists(st.integers(1, 12).map(float), min_size=1, max_size=40)


def cost(values: np.ndarray, points: tuple[float, ...], levels: int) -> float:
    return sum((float((values <= p).mean()) - k / levels) ** 2 for k, p in enumerate(points, 1))


@given(some, st.sampled_from((3, 5)))
def test_no_other_choice_of_cuts_is_nearer_to_equal_parts(numbers: list[float], levels: int) -> None:
    values = np.array(numbers)
    points = quantile_cuts(values, levels)
    distinct = sorted(set(numbers))
    assert len(points) == min(levels, len(distinct)) - 1
    others = itertools.combinations(distinct[:-1], len(points))
    assert cost(values, points, levels) <= min(cost(values, other, levels) for other in others) + 1e-12


@given(some, st.sampled_from((3, 5)), st.randoms())
def test_levels_follow_order_keep_ties_together_and_are_all_used(
    numbers: list[float], num: int, random: object
) -> None:
    points = quantile_cuts(np.array(numbers), num)
    levels = level_of(np.array(numbers), points)
    for a, b in itertools.combinations(range(len(numbers)), 2):
        assert np.sign(levels[a] - levels[b]) in (0, np.sign(numbers[a] - numbers[b]))
        assert numbers[a] != numbers[b] or levels[a] == levels[b]
    assert set(levels.tolist()) == set(range(min(num, len(set(numbers)))))
    shuffled = list(numbers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert quantile_cuts(np.array(shuffled), num) == points


def test_tertiles_without_ties() -> None:
    assert quantile_cuts(np.arange(1.0, 10.0), 3) == (3.0, 6.0)
    assert quantile_cuts(np.arange(1.0, 11.0), 5) == (2.0, 4.0, 6.0, 8.0)


def test_exposure_time_is_a_duration() -> None:
    low, high = level_of(np.array([1 / 125, 1 / 60]), (0.01,))
    assert (low, high) == (0, 1)


def test_unknown_values_are_minus_one_and_a_cut_belongs_below() -> None:
    assert level_of(np.array([np.nan, 100.0, 100.1]), (100.0, 400.0)).tolist() == [-1, 0, 1]


def columns(**values: list[float]) -> dict[str, np.ndarray]:
    return {name: np.array(values.get(name, []), np.float64) for name in ORDINAL}


def test_an_empty_level_is_said() -> None:
    cuts = choose_cuts(columns(iso=[100, 100, 200, np.nan], aperture=[2.0]), 3, {"focal_length": (10, 20)})
    assert (cuts["iso"].points, cuts["iso"].counts, cuts["iso"].empty) == ((100.0,), (2, 1, 0), (2,))
    assert cuts["aperture"].empty == (1, 2)
    assert (cuts["exposure_time"].points, cuts["exposure_time"].counts) == ((), (0, 0, 0))
    assert cuts["focal_length"].given
    assert not cuts["iso"].given


@pytest.mark.parametrize("points", [(100,), (100, 100), (400, 100), (0, 100), (100, float("inf")), (1, 2, 3)])
def test_explicit_cuts_must_fit(points: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="cut points of iso"):
        choose_cuts(columns(), 3, {"iso": points})


def test_other_names_and_counts_are_refused() -> None:
    with pytest.raises(ConfigError, match="no ordinal tag"):
        choose_cuts(columns(), 3, {"make": (1, 2)})
    with pytest.raises(ConfigError, match="3 or 5"):
        choose_cuts(columns(), 4)


def test_cuts_are_read_as_words_and_from_the_file_that_is_written(tmp_path: Path) -> None:
    assert read_cuts(["iso=100,400", "exposure_time=1/125, 1/30"]) == {
        "iso": (100.0, 400.0),
        "exposure_time": (1 / 125, 1 / 30),
    }
    cuts = choose_cuts(columns(iso=[100, 200, 400], aperture=[2, 4, 8]), 3)
    file = tmp_path / "exif_cuts.json"
    file.write_text(json.dumps(cuts_document(cuts, 3, {"make": ("a",)}, 3)))
    assert read_cuts([str(file)]) == {"iso": (100.0, 200.0), "aperture": (2.0, 4.0)}
    file.write_text('{"iso": [1, 2]}')
    assert read_cuts([str(file), "iso=3,4"]) == {"iso": (3.0, 4.0)}


def test_unreadable_cuts(tmp_path: Path) -> None:
    for word in ("iso=a,b", "iso=1/0,2", "iso="):
        with pytest.raises(ConfigError, match="no number"):
            read_cuts([word])
    with pytest.raises(DataError, match="no such file"):
        read_cuts(["absent.json"])
    for text in ('{"iso": "1,2"}', '{"iso": [true, 2]}', '{"cuts": 5}', '{"cuts": {"iso": null}}'):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(ConfigError):
            read_cuts([str(tmp_path / "c.json")])

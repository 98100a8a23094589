"""Who is stopped at a rung: Ray Tune's rule on trials in the order of their numbers, and a function of values alone."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.engine.halving import Course, Halving, standings

VALUES = st.floats(-10, 10, allow_nan=False)


def whole(table: list[list[float]], epochs: int) -> list[Course]:
    return [Course(epochs, {e + 1: v for e, v in enumerate(row)}, ended=True) for row in table]


def stops(courses: list[Course], rule: Halving) -> list[int | None]:
    return [None if s.stopped is None else s.stopped.epoch for s in standings(courses, rule)]


@pytest.mark.parametrize(
    ("grace", "reduction", "epochs", "rungs"),
    [(1, 3, 27, (1, 3, 9)), (1, 3, 28, (1, 3, 9, 27)), (4, 2, 20, (4, 8, 16)), (2, 1.5, 8, (2, 3, 5, 7)),
     (5, 2, 5, ()), (1, 1.2, 4, (1, 2, 3)), (20, 2, 4, ())],
)  # fmt: skip
def test_rungs_lie_below_the_last_epoch(grace: int, reduction: float, epochs: int, rungs: tuple[int, ...]) -> None:
    assert Halving(grace, reduction).rungs(epochs) == rungs


@given(
    st.integers(1, 9).flatmap(lambda epochs: st.lists(
        st.lists(VALUES, min_size=epochs, max_size=epochs), min_size=1, max_size=12
    )),
    st.integers(1, 3), st.sampled_from([2.0, 3.0, 4.0]), st.sampled_from(["max", "min"]),
)  # fmt: skip
@settings(deadline=None)  # importing Ray takes seconds
@example([[0.5] * 4, [0.5] * 4, [0.4] * 4], 1, 2.0, "max")
def test_it_is_rays_asha_when_trials_come_in_the_order_of_their_numbers(
    table: list[list[float]], grace: int, reduction: float, mode: str
) -> None:
    schedulers = pytest.importorskip("ray.tune.schedulers")
    epochs = len(table[0])
    if grace > epochs:
        return
    theirs = schedulers.ASHAScheduler(
        time_attr="epoch", metric="value", mode=mode, max_t=epochs, grace_period=grace, reduction_factor=reduction
    )
    found: list[int | None] = []
    for number, row in enumerate(table):
        trial, stop = SimpleNamespace(trial_id=str(number)), None
        theirs.on_trial_add(None, trial)
        for epoch, value in enumerate(row[:-1], 1):
            if theirs.on_trial_result(None, trial, {"epoch": epoch, "value": value}) == "STOP":
                stop = epoch
                break
        found.append(stop)
    rule = Halving(grace, reduction, 1.0 if mode == "max" else -1.0)
    assert stops(whole(table, epochs), rule) == found


@given(st.data())
def test_a_judgement_never_changes_whatever_becomes_known_in_which_order(data: st.DataObject) -> None:
    table = data.draw(st.lists(st.lists(VALUES, min_size=8, max_size=8), min_size=1, max_size=7))
    rule = Halving(1, 2.0)
    final = standings(whole(table, 8), rule)
    known = [0] * len(table)
    while True:
        courses = [
            Course(8, {e + 1: v for e, v in enumerate(row[:n])}, ended=n == 8)
            for row, n in zip(table, known, strict=True)
        ]
        for now, then in zip(standings(courses, rule), final, strict=True):
            assert now.judgements == then.judgements[: len(now.judgements)]
        left = [i for i, n in enumerate(known) if n < 8]
        if not left:
            break
        known[data.draw(st.sampled_from(left))] += 1
    assert standings(courses, rule) == final


def test_a_trial_waits_for_lower_numbers_alone() -> None:
    rule = Halving(2, 2.0)
    first, second = Course(6, {1: 0.1}), Course(6, {1: 0.1, 2: 0.9})
    assert [s.waits_at for s in standings([first, second], rule)] == [None, 2]
    ahead = standings([second, first], rule)
    assert ahead[0].waits_at is None
    assert ahead[0].at(2) is not None


@pytest.mark.parametrize("gone", [Course(6, {}, ended=True), Course(6, {}, ended=True, repeats=True)])
def test_a_trial_that_failed_or_repeats_another_is_waited_for_by_nobody(gone: Course) -> None:
    found = standings([gone, Course(6, {2: 0.1}), Course(6, {2: 0.2})], Halving(2, 2.0))
    assert found[0].judgements == ()
    assert found[1].at(2).cutoff is None
    assert found[2].at(2).cutoff == 0.1


def test_a_trial_that_was_stopped_is_held_against_others_no_more() -> None:
    rule = Halving(1, 2.0)
    table = [[0.9, 0.9, 0.9], [0.1, 5.0, 5.0], [0.95, 0.95, 0.95]]
    found = standings(whole(table, 3), rule)
    assert stops(whole(table, 3), rule) == [None, 1, None]
    assert found[2].at(2).cutoff == 0.9


def test_what_is_not_a_number_is_stopped_and_stops_nobody() -> None:
    found = standings(whole([[math.nan, 1, 1], [0.3, 1, 1], [0.2, 1, 1]], 3), Halving(1, 2.0))
    assert found[0].stopped is not None
    assert "not a number" in found[0].stopped.text()
    assert found[1].stopped is None
    assert found[2].stopped is not None
    assert found[2].stopped.text() == "stopped after epoch 1: 0.2 against 0.3"


def test_trials_of_other_lengths_are_judged_at_the_rungs_they_have() -> None:
    rule = Halving(2, 2.0)
    short, long = Course(2, {1: 0.1, 2: 0.1}, ended=True), Course(8, dict.fromkeys(range(1, 9), 0.5), ended=True)
    found = standings([short, long], rule)
    assert found[0].judgements == ()
    assert [j.epoch for j in found[1].judgements] == [2, 4]
    assert found[1].judgements[0].cutoff is None

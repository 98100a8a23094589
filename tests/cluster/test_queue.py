"""The work list without Ray: every image once, whatever is lost; what ends workers is found, nothing else is blamed."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.engine.cluster.queue import Queue


class Simulation:
    """Workers that take pieces, end them in any order, and die over some places; ``leave`` is the share of calls after
    which a worker's node goes away."""

    def __init__(self, queue: Queue, poison: set[int], random: Random, workers: int, leave: float = 0.0) -> None:
        self.queue, self.poison, self.random, self.leave = queue, poison, random, leave
        self.workers = list(range(workers))
        self.next = workers
        self.done: Counter[int] = Counter()
        self.ended_over: Counter[int] = Counter()
        self.now = 0.0
        self.longest = 0

    def replace(self, worker: int, blame: bool) -> None:
        self.queue.lost(worker, "died", blame=blame)
        self.workers[self.workers.index(worker)] = self.next
        self.next += 1

    def step(self) -> None:
        self.now += self.random.random()
        worker = self.random.choice(self.workers)
        while self.queue.take(worker, len(self.workers), self.now) is not None:
            self.longest = max(self.longest, len(self.queue.line(worker)))
        line = self.queue.line(worker)
        if any(piece.suspect for piece in line):
            assert len(line) == 1
        if not line:
            return
        if self.random.random() < self.leave:
            self.replace(worker, blame=False)
        elif self.poison & set(line[0].places.tolist()):
            self.ended_over.update(line[0].places.tolist())
            self.replace(worker, blame=True)
        else:
            self.done.update(self.queue.done(worker, self.now).places.tolist())

    def run(self) -> None:
        for _ in range(200_000):
            if self.queue.finished:
                return
            self.step()
        raise AssertionError("it does not end")


@settings(max_examples=60, deadline=None)
@given(
    total=st.integers(1, 400), step=st.integers(1, 33), most=st.integers(1, 64), tries=st.integers(1, 4),
    in_flight=st.integers(1, 3), workers=st.integers(1, 5), random=st.randoms(use_true_random=False),
    share=st.sampled_from([0.0, 0.005, 0.05, 1.0]), leave=st.sampled_from([0.0, 0.2]),
)  # fmt: skip
def test_every_place_is_done_once_and_what_ends_workers_is_set_aside(
    total: int, step: int, most: int, tries: int, in_flight: int, workers: int, random: Random, share: float,
    leave: float,
) -> None:  # fmt: skip
    poison = {place for place in range(total) if random.random() < share}
    queue = Queue(total, step=step, most=most, tries=tries, in_flight=in_flight)
    simulation = Simulation(queue, poison, random, workers, leave)
    simulation.run()
    assert set(queue.aside) == poison
    assert simulation.done == Counter(set(range(total)) - poison)
    assert queue.done_count == total - len(poison)
    assert simulation.longest <= in_flight
    assert all(simulation.ended_over[place] >= tries for place in poison)
    assert all(queue.line(worker) == () for worker in simulation.workers)


def test_three_strikes_then_halves_then_three_of_its_own() -> None:
    queue = Queue(8, step=8, in_flight=1)
    taken = []
    while not queue.finished:
        piece = queue.take("worker", 1, 0.0)
        assert piece is not None
        taken.append((piece.places.tolist(), piece.strikes))
        if 5 in piece.places:
            queue.lost("worker", "died")
        else:
            queue.done("worker", 0.0)
    whole = list(range(8))
    assert taken[:3] == [(whole, 0), (whole, 1), (whole, 2)]
    assert ([4, 5, 6, 7], 2) in taken
    assert ([4, 5], 2) in taken
    assert [strikes for places, strikes in taken if places == [5]] == [0, 1, 2]
    assert queue.aside == {5: "died"}
    assert len([1 for places, _ in taken if 5 in places]) == 3 + 1 + 1 + 3


def test_a_node_that_goes_away_is_no_fault_of_what_ran_there() -> None:
    queue = Queue(1)
    for number in range(20):
        assert queue.take(number, 1, 0.0) is not None
        queue.lost(number, "node gone", blame=False)
    piece = queue.take("last", 1, 0.0)
    assert piece is not None
    assert not piece.suspect
    assert queue.aside == {}


def test_what_waited_behind_a_piece_is_not_suspected() -> None:
    queue = Queue(64, step=4, most=8)
    first, second = queue.take("a", 2, 0.0), queue.take("a", 2, 0.0)
    assert first is not None
    assert second is not None
    queue.lost("a", "died")
    suspect = queue.take("b", 2, 0.0)
    assert suspect is not None
    assert suspect.places.tolist() == first.places.tolist()
    assert queue.take("b", 2, 0.0) is None, "a suspect runs alone"
    other = queue.take("c", 2, 0.0)
    assert other is not None
    assert other.places.tolist() == second.places.tolist()
    assert not other.suspect


def test_a_worker_with_work_is_given_no_suspect_and_nothing_more_until_it_is_free() -> None:
    queue = Queue(64, step=4, most=8)
    queue.take("a", 2, 0.0)
    queue.take("b", 2, 0.0)
    queue.lost("a", "died")
    assert queue.take("b", 2, 0.0) is None
    queue.done("b", 1.0)
    piece = queue.take("b", 2, 1.0)
    assert piece is not None
    assert piece.suspect


def test_what_a_lost_worker_had_stored_is_not_given_out_again() -> None:
    queue = Queue(10, step=10)
    queue.take("a", 1, 0.0)
    queue.lost("a", "died", left=lambda places: places[places >= 7])
    assert queue.done_count == 7
    piece = queue.take("b", 1, 0.0)
    assert piece is not None
    assert piece.places.tolist() == [7, 8, 9]
    queue.lost("b", "died", left=lambda places: places[:0])
    assert queue.finished
    assert queue.aside == {}


def test_a_piece_is_overdue_from_when_it_began_not_from_when_it_was_given() -> None:
    queue = Queue(8, step=1, most=1, timeout=10.0)
    queue.take("a", 1, 0.0)
    queue.take("a", 1, 0.0)
    assert queue.overdue(9.0) == []
    queue.done("a", 9.0)
    assert queue.overdue(18.0) == []
    assert queue.overdue(19.5) == ["a"]
    queue.lost("a", "hung")
    assert queue.overdue(1000.0) == []


def test_pieces_follow_the_measured_speed_in_whole_micro_batches() -> None:
    queue = Queue(1_000_000, step=32, most=100_000, seconds=10.0, in_flight=1)
    sizes = []
    now = 0.0
    for _ in range(12):
        piece = queue.take("a", 1, now)
        assert piece is not None
        sizes.append(len(piece.places))
        now += len(piece.places) / 50.0  # 50 images a second
        queue.done("a", now)
    assert sizes[0] == 4 * 32
    assert sizes[1] == 480  # 10 seconds' work, in whole micro-batches
    assert all(size % 32 == 0 for size in sizes)


@pytest.mark.parametrize("workers", [1, 4, 32])
def test_the_end_of_the_list_is_shared_out(workers: int) -> None:
    queue = Queue(10_000, step=1, most=100_000, seconds=1e9, in_flight=1)
    queue.take("first", workers, 0.0)
    queue.done("first", 1.0)
    piece = queue.take("second", workers, 1.0)
    assert piece is not None
    assert len(piece.places) <= 10_000 // (2 * workers)


def test_memory_does_not_follow_the_length_of_the_list() -> None:
    def peak(total: int) -> int:
        tracemalloc.start()
        queue = Queue(total, step=32)
        for number in range(200):
            queue.take(number % 4, 4, float(number))
            queue.done(number % 4, number + 0.5)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(10**6)
    assert peak(10**12) < 2 * peak(10**6)


def test_places_are_numbers_that_index_arrays() -> None:
    piece = Queue(3).take("a", 1, 0.0)
    assert piece is not None
    assert np.arange(3)[piece.places].tolist() == [0]

"""A pool of workers on a real Ray cluster: those that are unfit, those that cannot start, shares of a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from harness.api.errors import ClusterError, StoreError
from harness.data.edits import InputEdits
from harness.engine.cluster import pool as pools
from harness.engine.cluster.connect import connected
from harness.engine.cluster.nodes import left_word
from harness.engine.cluster.pool import Pool, Size, Work
from harness.engine.cluster.queue import Piece, Queue
from harness.engine.cluster.worker import Answer, Surroundings
from harness.results.store import Store

pytestmark = pytest.mark.slow

TORCH = ".".join(version("torch").split(".")[:2])
ONE_CPU = Size(1, 0)


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Surroundings]:
    """Of a worker that does no stage."""
    Store(tmp_path / "store")
    with left_word(tmp_path / "store") as word:
        yield Surroundings(word, str(tmp_path), InputEdits(), "cpu", 1, 0, (), TORCH)


def pieces(count: int, answers: list[Answer] | None = None, name: str = "pieces") -> Work:
    """So many pieces of one, each a call that does little."""
    heard = [] if answers is None else answers

    def send(actor: Any, piece: Piece) -> Any:
        return actor.begin.remote()

    def done(piece: Piece, answer: Answer) -> None:
        assert answer.failure is None
        heard.append(answer)

    return Work(name, Queue(count, most=1), send, done)


def silent(event: Any) -> None:
    """Nobody listens."""


def test_a_worker_that_turns_out_unfit_after_its_stage_is_over_ends_the_run(cluster: Any, around: Surroundings) -> None:
    cluster.add_node(num_cpus=2, include_dashboard=False)
    with connected(cluster.address) as ray:
        pool = Pool(ray, ONE_CPU, None, around, silent)
        pool.run(pieces(1))
        pool.around = replace(around, torch="0.1")  # what the next worker finds on its node
        pool.run(pieces(2))
        assert sorted(member.up for member in pool.members.values()) == [False, True], "it was to start too late"
        with pytest.raises(ClusterError, match=rf"this node has torch {TORCH}, the run was planned with 0\.1"):
            pool.run(pieces(1_000_000))
        assert pool.members == {}


def test_a_node_that_joins_without_the_store_ends_the_run_and_gets_no_store(
    cluster: Any, around: Surroundings, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=1, include_dashboard=False)
    with connected(cluster.address) as ray:
        pool = Pool(ray, ONE_CPU, None, around, silent)
        pool.run(pieces(1))
        pool.around = replace(around, word=replace(around.word, root=str(tmp_path / "unmounted")))
        cluster.add_node(num_cpus=1)
        with pytest.raises(StoreError, match=r"a node does not see the store[\s\S]*unmounted[\s\S]*all nodes share"):
            pool.run(pieces(1_000_000))
    assert not (tmp_path / "unmounted").exists()


def test_a_node_that_joins_without_the_images_ends_the_run(cluster: Any, around: Surroundings, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1, include_dashboard=False)
    absent = replace(around.word, files=(str(tmp_path / "absent.png"),))
    with connected(cluster.address) as ray:
        pool = Pool(ray, ONE_CPU, None, replace(around, word=absent), silent)
        with pytest.raises(ClusterError, match=r"a node lacks 1 files that it needs, .*absent\.png first"):
            pool.run(pieces(1))


def test_when_no_worker_starts_it_is_said_what_is_asked_for(
    cluster: Any, around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "START_SECONDS", 3.0)
    cluster.add_node(num_cpus=1, include_dashboard=False)

    class Other:
        def here(self) -> bool:
            return True

    with connected(cluster.address) as ray:
        other = ray.remote(Other).options(num_cpus=1).remote()
        assert ray.get(other.here.remote())
        with pytest.raises(ClusterError, match=r"no worker with 1 CPUs has started in 3 s[\s\S]*wait until"):
            Pool(ray, ONE_CPU, None, around, silent).run(pieces(1))


def test_workers_share_a_gpu_by_their_fractions_and_no_more_than_fit_are_started(
    cluster: Any, around: Surroundings
) -> None:
    """The GPU is only said to be there: Ray counts it, nothing is computed on it."""
    cluster.add_node(num_cpus=4, num_gpus=1, include_dashboard=False)
    with connected(cluster.address) as ray:
        free: list[float] = []
        answers: list[Answer] = []
        pool = Pool(ray, Size(0.5, 0.25), None, around, silent)
        work = pieces(1_000_000, answers)

        def done(piece: Piece, answer: Answer) -> None:
            work.done(piece, answer)
            if len({a.pid for a in answers}) == 4:
                deadline = time.monotonic() + 30  # Ray counts with a delay
                while ray.available_resources().get("GPU", 0.0) > 0 and time.monotonic() < deadline:
                    time.sleep(0.1)
                free.append(ray.available_resources().get("GPU", 0.0))
                raise InterruptedError

        with pytest.raises(InterruptedError):
            pool.run(replace(work, done=done))
        assert free == [0.0]
        assert pool._room == 4

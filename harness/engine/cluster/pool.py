"""Workers of one size on the nodes of a cluster: started, fed from a queue, watched, replaced when they are lost."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from harness.api.errors import ClusterError
from harness.api.events import Event, Listener
from harness.engine.cluster.nodes import alive_nodes, held, nodes_text, worded
from harness.engine.cluster.queue import Left, Piece, Queue
from harness.engine.cluster.worker import Answer, Surroundings, Worker

LOOK = 0.5
"""Seconds between two looks at the clock while no worker has anything to say."""
COUNT_SECONDS = 5.0
"""Seconds between two counts of the cluster's nodes."""
LOST_IN_A_ROW = 3
"""Workers that may be lost one after another while they start, or while they load a stage, before that is an error."""
START_SECONDS = 300.0
"""How long to wait for a first worker (the cluster may be busy), and for a stage's weights at least."""
NODE_GONE = "its node has died"
"""What Ray says of an actor whose node went away: that is no fault of what it did."""


@dataclass(frozen=True)
class Size:
    """What a worker reserves; fractions are shares of a CPU or GPU."""

    cpus: float
    gpus: float

    @property
    def needs(self) -> dict[str, float]:
        """By Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus}

    def __str__(self) -> str:
        return worded(self.needs)

    def on(self, resources: Mapping[str, float]) -> int:
        """How many workers a node with these resources holds."""
        return held(resources, self.needs)


@dataclass(frozen=True, eq=False)
class Work:
    """A queue with what its pieces mean.

    Attributes:
        name: for messages.
        queue: the pieces.
        send: calls the worker's method for a piece.
        done: is told each answer; it raises, or keeps, a failure.
        left: what of a lost piece is still to do (None: all).
        load: what a worker must do before its first piece (None: nothing).
        unit: of what a piece holds, for people.
    """

    name: str
    queue: Queue
    send: Callable[[Any, Piece], Any]
    done: Callable[[Piece, Answer], None]
    left: Left | None = None
    load: Callable[[Any], Any] | None = None
    unit: str = "images"


@dataclass(frozen=True)
class _Call:
    """A call under way or waiting: a piece of the queue, or else (``piece`` false) a start or a load. ``again``: in its
    place, a call that tells what became of a worker which could not be reached."""

    ref: Any
    work: Work
    piece: bool = False
    again: bool = False


@dataclass
class _Member:
    """A worker as the driver knows it. Its ``calls`` are done in their order; starts and loads come before pieces.
    ``since``: when its first call began, if that is a load."""

    number: int
    actor: Any
    since: float = field(default_factory=time.monotonic)
    calls: deque[_Call] = field(default_factory=deque)
    up: bool = False
    node: str = ""
    pid: int = 0

    @property
    def ready(self) -> bool:
        """Whether pieces may be sent."""
        return all(call.piece for call in self.calls)


class Pool:
    """Workers of one size.

    Args:
        ray: the module, connected.
        most: workers at most (None: as many as the cluster holds).
    """

    def __init__(self, ray: Any, size: Size, most: int | None, around: Surroundings, emit: Listener) -> None:
        self.ray, self.size, self.most, self.around, self.emit = ray, size, most, around, emit
        self.members: dict[int, _Member] = {}
        self._numbers = itertools.count()
        self._room, self._counted = 0, -math.inf
        self._lost_starting = self._lost_loading = 0
        self._here = ray.get_runtime_context().get_node_id()
        self._actor = ray.remote(Worker)

    def close(self) -> None:
        """End all workers; what they stored stays."""
        for member in self.members.values():
            self._end(member)
        self.members.clear()

    # starting and counting -------------------------------------------------------------------------------------------

    def _count(self, now: float) -> None:
        if now - self._counted > COUNT_SECONDS:
            self._room = sum(self.size.on(node["Resources"]) for node in alive_nodes(self.ray))
            self._counted = now

    def _grow(self, work: Work, now: float) -> None:
        self._count(now)
        wanted = min(self._room, self.most or self._room, work.queue.workers_wanted)
        while len(self.members) < wanted:
            actor = self._actor.options(
                num_cpus=self.size.cpus, num_gpus=self.size.gpus, max_restarts=0, max_task_retries=0
            ).remote(self.around)
            member = _Member(next(self._numbers), actor)
            member.calls.append(_Call(actor.begin.remote(), work))
            self._load(member, work)
            self.members[member.number] = member

    def _check_room(self) -> None:
        """Ray would wait for ever for what no node has."""
        if self._room > 0 or self.members:
            return
        raise ClusterError(
            f"no node has room for a worker, which takes {self.size}", where=nodes_text(self.ray),
            fix="use less --threads, or state execution.cpus and execution.gpus in the suite",
        )  # fmt: skip

    # working ---------------------------------------------------------------------------------------------------------

    def run(self, work: Work) -> None:
        """Until the queue is finished.

        Raises:
            ClusterError: no node has room, or no worker comes up.
            WorkerKiller: loading ends every worker.
            Exception: what ``work.done`` raises.
        """
        began, self._lost_loading = time.monotonic(), 0
        for member in self.members.values():
            self._load(member, work)
        try:
            while not work.queue.finished:
                now = time.monotonic()
                self._grow(work, now)
                self._check_room()
                for member in self.members.values():
                    self._feed(member, work, now)
                self._listen(work)
                self._end_hanging(work, began)
        except self.ray.exceptions.RayError as error:
            self.close()
            what = f"Ray failed: {_last_line(error)}"
            raise ClusterError(what, where=work.name, fix="run again; what was computed is stored") from error
        except BaseException:
            self.close()  # pieces of this work are still under way
            raise

    def _load(self, member: _Member, work: Work) -> None:
        if work.load is not None:
            if not member.calls:
                member.since = time.monotonic()
            member.calls.append(_Call(work.load(member.actor), work))

    def _feed(self, member: _Member, work: Work, now: float) -> None:
        while member.ready and member.up:
            piece = work.queue.take(member.number, len(self.members), now)
            if piece is None:
                return
            member.calls.append(_Call(work.send(member.actor, piece), work, piece=True))

    def _listen(self, work: Work) -> None:
        """Hear whoever speaks first, or look up after a while."""
        firsts = {member.calls[0].ref: member for member in self.members.values() if member.calls}
        if not firsts:
            time.sleep(LOOK)
            return
        ready, _ = self.ray.wait(list(firsts), num_returns=1, timeout=LOOK)
        for ref in ready:
            member = firsts[ref]
            try:
                answer = self.ray.get(ref)
            except self.ray.exceptions.ActorUnavailableError:
                # of a node that vanishes this is heard first, and only many seconds later that the node has died
                member.calls[0] = replace(member.calls[0], ref=member.actor.begin.remote(), again=True)
                time.sleep(LOOK)
            except self.ray.exceptions.RayError as error:
                gone = NODE_GONE in str(error)
                self._lose(member, work, NODE_GONE if gone else _last_line(error), blame=not gone)
            else:
                call = member.calls.popleft()
                if call.again:
                    self._lose(member, work, "it could not be reached for a while", blame=False)
                else:
                    self._heard(member, call, answer, work)

    def _heard(self, member: _Member, call: _Call, answer: Answer, work: Work) -> None:
        now = member.since = time.monotonic()
        for text in answer.warnings:
            self.emit(Event("warning", {"text": text}))
        if call.piece:
            work.done(work.queue.done(member.number, now), answer)
            return
        # what failed to load for a stage that is over matters to nobody; a worker that is unfit is so for every stage
        if answer.failure is not None and (call.work is work or not member.up):
            raise answer.failure.raised()
        if not member.up:
            member.up, member.node, member.pid, self._lost_starting = True, answer.node, answer.pid, 0
        elif call.work is work:
            self._lost_loading = 0

    # losing ----------------------------------------------------------------------------------------------------------

    def _end_hanging(self, work: Work, began: float) -> None:
        now, limit = time.monotonic(), work.queue.timeout
        overdue = set(work.queue.overdue(now))
        for member in list(self.members.values()):
            loads = member.up and member.calls and not member.calls[0].piece
            if member.number in overdue or (loads and now - member.since > max(limit, START_SECONDS)):
                self._kill(member)
                self._lose(member, work, f"it hung for {limit:g} s", blame=True)
        waiting = [m for m in self.members.values() if not m.up]
        if waiting and len(waiting) == len(self.members) and now - max(began, waiting[0].since) > START_SECONDS:
            fix = "wait until the cluster has room, or use less --threads"
            raise ClusterError(f"no worker with {self.size} has started in {START_SECONDS:g} s", "--engine ray", fix)

    def _lose(self, member: _Member, work: Work, why: str, *, blame: bool) -> None:
        """A worker is gone or useless: end it, give its pieces to others; another starts when there is room."""
        self.members.pop(member.number)
        self._end(member)
        self._counted = -math.inf
        struck = work.queue.lost(member.number, why, blame=blame, left=work.left)
        if not member.up:
            self._lost_starting += blame
            if self._lost_starting >= LOST_IN_A_ROW:
                fix = "install the same packages on every node; Ray's logs say more"
                raise ClusterError(f"workers end while they start: {why}", where="--engine ray", fix=fix)
            return
        strike = f"; strike {struck.strikes} against {len(struck.places)} {work.unit}" if struck is not None else ""
        text = f"{work.name}: a worker was lost ({why}{strike}); what it had goes to another"
        self.emit(Event("warning", {"text": text}))
        if not member.ready and member.calls[0].work is work:
            self._lost_loading += blame
            if self._lost_loading >= LOST_IN_A_ROW:
                raise WorkerKiller(f"loading it ended {LOST_IN_A_ROW} processes: {why}")

    def _end(self, member: _Member) -> None:
        with suppress(self.ray.exceptions.RayError, ValueError):
            self.ray.kill(member.actor)

    def _kill(self, member: _Member) -> None:
        """A process that is stopped does not hear Ray; here it can be ended all the same."""
        if member.pid and member.node == self._here:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(member.pid, signal.SIGKILL)


class WorkerKiller(RuntimeError):
    """Something ends every process that does it."""


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

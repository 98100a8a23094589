"""The work list of one stage: cut into pieces, handed to workers, tried again when a worker is lost. No Ray here.

A piece whose worker dies or hangs while it runs gets a *strike* and another worker, and from then on it runs alone: a
worker that has it is given nothing else. After ``tries`` strikes it is cut in two; each half needs one more strike to
be cut again. An image that is alone in its piece has ``tries`` strikes of its own, then it is set aside. So no image is
set aside for what its neighbours do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np

FIRST_STEPS = 4
"""Micro-batches of a piece while nothing is known of the speed."""

Left = Callable[[np.ndarray], np.ndarray]
"""Which of some places of the list are still to do."""


@dataclass(frozen=True)
class Piece:
    """Places ``[n] int64`` of the work list, and how often a worker was lost over them."""

    places: np.ndarray
    strikes: int = 0

    @property
    def suspect(self) -> bool:
        """Whether a worker was lost over it."""
        return self.strikes > 0


@dataclass
class _Line:
    """Pieces of one worker, in the order in which it does them; ``since``: when the first one began."""

    pieces: deque[Piece] = field(default_factory=deque)
    since: float = 0.0


class Queue:
    """Hands out the places ``0 .. total - 1``. Workers are told apart by any hashable name; times are seconds of any
    one clock. Memory: the pieces that are out or were lost, whatever ``total`` is.

    Args:
        total: length of the work list.
        step: places of a full micro-batch; pieces of new work are multiples of it.
        most: places of a piece at most.
        seconds: how long a piece should take, by the speed measured so far.
        tries: strikes before a piece is cut, or an image alone is set aside.
        in_flight: pieces that a worker has at most, the one it does included.
        timeout: seconds after which a piece counts as hanging.
    """

    def __init__(
        self, total: int, *, step: int = 1, most: int = 1024, seconds: float = 10.0, tries: int = 3, in_flight: int = 2,
        timeout: float = 600.0,
    ) -> None:  # fmt: skip
        self.total, self.step, self.most, self.seconds = total, step, max(most, step), seconds
        self.tries, self.in_flight, self.timeout = tries, in_flight, timeout
        self.done_count = 0
        self.aside: dict[int, str] = {}
        self._next = 0
        self._again: deque[Piece] = deque()
        self._suspects: deque[Piece] = deque()
        self._lines: dict[Hashable, _Line] = {}
        self._rate: float | None = None

    @property
    def left(self) -> int:
        """Places neither done nor set aside."""
        return self.total - self.done_count - len(self.aside)

    @property
    def finished(self) -> bool:
        """Whether there is nothing left."""
        return self.left == 0

    @property
    def workers_wanted(self) -> int:
        """Workers that could have something to do, a micro-batch each."""
        return math.ceil(self.left / self.step)

    def line(self, worker: Hashable) -> tuple[Piece, ...]:
        """What a worker has, in its order."""
        return tuple(self._lines[worker].pieces) if worker in self._lines else ()

    def take(self, worker: Hashable, workers: int, now: float) -> Piece | None:
        """The next piece for a worker, one of ``workers``; None when it has enough or there is none for it."""
        line = self._lines.setdefault(worker, _Line())
        if len(line.pieces) >= self.in_flight or any(piece.suspect for piece in line.pieces):
            return None
        if self._suspects and line.pieces:
            return None  # it is to end what it has and take a suspect, alone
        if self._suspects:
            piece = self._suspects.popleft()
        elif self._again:
            piece = self._again.popleft()
        elif self._next < self.total:
            stop = self._next + self._size(workers)
            piece = Piece(np.arange(self._next, stop))
            self._next = stop
        else:
            return None
        if not line.pieces:
            line.since = now
        line.pieces.append(piece)
        return piece

    def _size(self, workers: int) -> int:
        rest = self.total - self._next
        wanted = FIRST_STEPS * self.step if self._rate is None else int(self._rate * self.seconds)
        fair = rest // (2 * max(workers, 1))  # so that all end at about the same time
        size = min(wanted, fair, self.most)
        return min(rest, max(self.step, size - size % self.step))

    def done(self, worker: Hashable, now: float) -> Piece:
        """The first piece of a worker's line is done: it, for whoever asks."""
        line = self._lines[worker]
        piece = line.pieces.popleft()
        seconds = max(now - line.since, 1e-6)
        line.since = now
        self.done_count += len(piece.places)
        rate = len(piece.places) / seconds
        self._rate = rate if self._rate is None else 0.5 * (self._rate + rate)
        return piece

    def lost(self, worker: Hashable, why: str, *, blame: bool = True, left: Left | None = None) -> Piece | None:
        """A worker is gone. The piece it was doing gets a strike, unless ``blame`` is false (its node went away); the
        others of its line go to other workers. ``left`` says what of a piece is still to do: all, where it is None;
        ``aside`` keeps ``why`` by place. What was struck, with its strikes."""
        line, struck = self._lines.pop(worker, _Line()), None
        for position, piece in enumerate(line.pieces):
            places = piece.places if left is None else left(piece.places)
            self.done_count += len(piece.places) - len(places)
            if len(places) == 0:
                continue
            if position == 0 and blame:
                struck = Piece(places, piece.strikes + 1)
                self._struck(struck, why)
            else:
                (self._suspects if piece.suspect else self._again).append(Piece(places, piece.strikes))
        return struck

    def _struck(self, piece: Piece, why: str) -> None:
        if piece.strikes < self.tries:
            self._suspects.append(piece)
        elif len(piece.places) == 1:
            self.aside[int(piece.places[0])] = why
        else:
            for half in np.array_split(piece.places, 2):
                self._suspects.append(Piece(half, self.tries - 1 if len(half) > 1 else 0))

    def overdue(self, now: float) -> list[Hashable]:
        """Workers that have been doing one piece for longer than ``timeout``."""
        return [w for w, line in self._lines.items() if line.pieces and now - line.since > self.timeout]

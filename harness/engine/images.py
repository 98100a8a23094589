"""Reading images for a run: bytes -> pixels -> edits -> preprocess, ahead of the network in a few threads."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from harness.api.contract import Abstain, Preprocess
from harness.api.errors import DataError
from harness.api.images import decode, read_image_file
from harness.data.edits import InputEdits

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_NO_IMAGE = (
    "replace the image or take it away, then run again, with --manifest on a manifest written anew (`harness data "
    "index`); `harness data check` lists all images that cannot be decoded"
)


@dataclass(frozen=True)
class Reader:
    """Reads pixels of manifest paths with the run's edits applied; ``digests`` are the manifest's sha256."""

    root: Path
    paths: Sequence[str]
    digests: Sequence[str]
    edits: InputEdits

    def path(self, row: int) -> Path:
        """Where the image of a manifest row lies."""
        return self.root / self.paths[row]

    def pixels(self, row: int) -> np.ndarray:
        """uint8 RGB ``[H, W, 3]``, edited.

        Raises:
            DataError: the file is gone, changed since it was indexed, or cannot be decoded.
        """
        data = read_image_file(self.path(row))
        if hashlib.sha256(data).hexdigest() != self.digests[row]:
            what = "the image changed while the run was going on, or since its manifest was written"
            fix = "run again; with --manifest, put the image back or write the manifest anew (`harness data index`)"
            raise DataError(what, self.path(row), fix)
        try:
            return self.edits.apply(decode(data, name=str(self.path(row)), rotate=self.edits.rotate))
        except DataError as error:  # without --manifest every image was decoded once before
            raise DataError(error.what, error.where, _NO_IMAGE) from error

    def tensor(self, row: int, preprocess: Preprocess) -> Tensor | None:
        """The preprocessed tensor ``[C, h, w]``; None where the detector abstains."""
        try:
            return preprocess(self.pixels(row), preprocess.sidecar(self.path(row)))
        except Abstain:
            return None


def ahead(jobs: Sequence[int], work: Callable[[int], T], workers: int, window: int) -> Iterator[tuple[int, T]]:
    """Results of ``work`` for each job, in order; threads work at most ``window`` jobs ahead (0 workers: none)."""
    if workers == 0:
        for job in jobs:
            yield job, work(job)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="reader") as pool:
        waiting: deque[tuple[int, Future[T]]] = deque()
        try:
            for job in jobs:
                waiting.append((job, pool.submit(work, job)))
                if len(waiting) >= window:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()

"""What runs in a worker process: stages on pieces of the work list, and heads. Results go to the store.

A worker is a Ray actor that keeps the weights of one stage. Everything it is given can be sent again to another one.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.api.errors import ClusterError, HarnessError
from harness.engine.bundled import absolute
from harness.engine.cluster.nodes import Word, require_seen
from harness.engine.engines import RemoteError
from harness.engine.fitting import FitWork, made_head
from harness.engine.images import Reader
from harness.engine.inline import FLUSH_SECONDS, compute, pin_numerics
from harness.engine.plan import ItemStage
from harness.engine.source import source_digest
from harness.results.digests import NONE, as_rows, from_rows
from harness.results.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from harness.data.edits import InputEdits


CAREFUL_SECONDS = 0.25
"""Seconds between two segments of a piece over which a worker was lost."""
PART_BYTES = 64 << 10
"""Bytes that are sent with a call; Ray keeps arguments above 100 KiB in its object store."""


@dataclass(frozen=True)
class Surroundings:
    """What every worker of a run is told once.

    Attributes:
        word: what lies in the store for as long as the run lasts; it names the store's root.
        images: root of the images.
        edits: of the input.
        device, threads: of the plan's numerics class.
        readers: threads that read images.
        path: where the driver finds modules; what is not on the worker's own path is added.
        torch: version that the plan's keys name.
    """

    word: Word
    images: str
    edits: InputEdits
    device: str
    threads: int
    readers: int
    path: tuple[str, ...]
    torch: str


@dataclass(frozen=True)
class Stage:
    """An item stage as it is sent: its results' key, what runs, and the digests of the source that made the key."""

    key: str
    pickled: bytes
    sources: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, stage: ItemStage) -> Stage:
        """To be sent; without the lists of images."""
        kinds = (type(stage.stage), type(stage.preprocess))
        sources = tuple((f"{kind.__module__}.{kind.__qualname__}", source_digest(kind)) for kind in kinds)
        return cls(stage.key, pickle.dumps(_bare(stage)), sources)


def _bare(stage: ItemStage) -> ItemStage:
    """The stage without its images, with weights at absolute paths (a worker has a folder of its own)."""
    source = None if stage.source is None else _bare(stage.source)
    return replace(stage, weights=absolute(stage.weights), source=source, needed=NONE, missing=NONE)


@dataclass(frozen=True)
class Images:
    """Images of a piece, small enough to be sent with the call: digests, and paths under the root (none for maps).

    Attributes:
        items: item digests, 32 bytes each.
        shas: digests of the files where these are others (a sidecar joins the item's), else empty.
        paths: compressed, separated by NUL.
        careful: store more often, because a worker was lost over these: what is stored is no longer suspected.
    """

    items: bytes
    shas: bytes
    paths: bytes
    careful: bool

    @classmethod
    def of(cls, items: np.ndarray, shas: np.ndarray, paths: Sequence[str], *, careful: bool) -> Images:
        """Of digests ``[n] S32`` and paths."""
        mine, files = as_rows(items).tobytes(), as_rows(shas).tobytes()
        packed = zlib.compress("\0".join(paths).encode("utf-8", "surrogateescape"), 1)
        return cls(mine, b"" if files == mine else files, packed, careful)

    def digests(self) -> np.ndarray:
        """Item digests ``[n] S32``."""
        return _digests(self.items)

    def reader(self, root: Path, edits: InputEdits) -> Reader:
        """A reader of these images alone, in their order."""
        paths = zlib.decompress(self.paths).decode("utf-8", "surrogateescape").split("\0")
        files = self.shas or self.items
        return Reader(root, paths, [files[i : i + 32].hex() for i in range(0, len(files), 32)], edits)


def _digests(data: bytes) -> np.ndarray:
    return from_rows(np.frombuffer(data, np.uint8).reshape(-1, 32))


@dataclass(frozen=True)
class Failure:
    """An exception as it is sent back: itself where it is one of ours, else what it said."""

    text: str
    trace: str
    error: HarnessError | None = None

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """To be sent."""
        trace = "".join(traceback.format_exception(error))
        ours = error if isinstance(error, HarnessError) and type(error).__module__.startswith("harness.") else None
        return cls(str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}", trace, ours)

    def raised(self) -> Exception:
        """An exception that says the same here."""
        return self.error if self.error is not None else RemoteError(self.text, self.trace)


@dataclass(frozen=True)
class Answer:
    """What a call gives: how much was done, in how many seconds, what the store warned of, where and in which process;
    or a failure."""

    done: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    failure: Failure | None = None
    node: str = ""
    pid: int = 0


class Worker:
    """The actor's class. ``begin`` is its first call."""

    store: Store

    def __init__(self, around: Surroundings) -> None:
        sys.path += [entry for entry in around.path if entry not in sys.path]
        self.around = around
        self.warnings: list[str] = []
        self.loaded: tuple[str, ItemStage, Callable[[Tensor], Tensor]] | None = None
        self.parts: list[bytes] = []

    def begin(self) -> Answer:
        """Import what is slow, and open the store, which must be the driver's: nodes join while a run goes on.

        Failures: ClusterError: this node has another version of torch than the keys of the plan name, or lacks a file;
        StoreError: it does not see the store.
        """
        return self._answer(self._begin)

    def _begin(self) -> int:
        from importlib.metadata import version

        mine = ".".join(version("torch").split(".")[:2])
        if mine != self.around.torch:
            what = f"this node has torch {mine}, the run was planned with {self.around.torch}"
            raise ClusterError(what, where=os.uname().nodename, fix="install the same packages on every node")
        require_seen(self.around.word)
        self.store = Store(Path(self.around.word.root), warn=self.warnings.append)
        return 0

    def _answer(self, work: Callable[[], int]) -> Answer:
        import ray

        began, failure, done = time.monotonic(), None, 0
        try:
            pin_numerics(self.around.threads)  # Ray sets OMP_NUM_THREADS to the CPUs it reserves
            done = work()
        except Exception as error:
            failure = Failure.of(error)
        said, self.warnings[:] = tuple(self.warnings), []
        node = ray.get_runtime_context().get_node_id()
        return Answer(done, time.monotonic() - began, said, failure, node, os.getpid())

    def load(self, stage: Stage) -> Answer:
        """Load a stage's weights, in place of those of the stage before.

        Failures: as the stage's ``load``; ClusterError: this node has other source of the stage than the driver.
        """
        return self._answer(lambda: self._load(stage))

    def _load(self, stage: Stage) -> int:
        self.loaded = None
        whole: ItemStage = pickle.loads(stage.pickled)
        for kind, (name, digest) in zip((type(whole.stage), type(whole.preprocess)), stage.sources, strict=True):
            if source_digest(kind) != digest:
                raise ClusterError(
                    f"this node has other code of {name} than the machine that planned the run",
                    where=os.uname().nodename, fix="install the same packages on every node",
                )  # fmt: skip
        self.loaded = (stage.key, whole, whole.stage.load(whole.weights, self.around.device))
        return 0

    def extract(self, key: str, images: Images) -> Answer:
        """Compute the images of a piece that the store lacks.

        Failures: as ``harness.engine.inline.compute``.
        """
        return self._answer(lambda: self._extract(key, images))

    def _extract(self, key: str, images: Images) -> int:
        assert self.loaded is not None
        loaded, stage, run = self.loaded
        assert loaded == key, "a piece of a stage that is not loaded"
        reader = images.reader(Path(self.around.images), self.around.edits)
        digests = images.digests()
        return compute(
            stage, run, digests, range(len(digests)), reader, self.store, device=self.around.device,
            workers=self.around.readers, flush_seconds=CAREFUL_SECONDS if images.careful else FLUSH_SECONDS,
        )  # fmt: skip

    def take(self, part: bytes) -> None:
        """A part of the next head's work (:func:`parts_of`)."""
        self.parts.append(part)

    def fit(self) -> Answer:
        """Make the head whose work was taken, and what is upstream of it, and store it.

        Failures: whatever fitting raises; LostError: stored features are gone.
        """
        packed = b"".join(self.parts)
        self.parts.clear()
        return self._answer(lambda: self._fit(packed))

    def _fit(self, packed: bytes) -> int:
        work: FitWork = pickle.loads(packed)
        made_head(work, self.store)
        return 1


def parts_of(work: FitWork) -> list[bytes]:
    """A head's work in parts that are sent with a call each: larger arguments go through Ray's object store, which may
    be full."""
    packed = pickle.dumps(work)
    return [packed[start : start + PART_BYTES] for start in range(0, len(packed), PART_BYTES)]

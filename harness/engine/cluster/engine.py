"""The engine `ray`: a plan's stages and heads on the workers of a cluster, its trainings through Ray Train."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.api.errors import PluginError
from harness.api.events import Event, Listener
from harness.engine.bundled import absolute
from harness.engine.cluster.connect import connected
from harness.engine.cluster.nodes import Word, alive_nodes, check_nodes, left_word
from harness.engine.cluster.pool import Pool, Size, Work, WorkerKiller
from harness.engine.cluster.queue import Piece, Queue
from harness.engine.cluster.worker import Answer, Images, Stage, Surroundings, parts_of
from harness.engine.engines import Computed
from harness.engine.fitting import FitWork, fit_work, making
from harness.engine.images import Reader
from harness.engine.inline import keep_rate, label_of, missing_of
from harness.engine.plan import HeadWork, ItemStage, Plan, RowPlan, Settings
from harness.engine.processes import Launcher
from harness.engine.suite import Execution
from harness.results.digests import Picked
from harness.results.store import Store

if TYPE_CHECKING:
    from types import TracebackType

PIECE_SECONDS = 10.0
"""How long a piece should take: a lost worker costs as much, and starting a piece costs milliseconds."""
PIECE_IMAGES = 1024
"""Images of a piece at most: its digests and paths then fit into a call's message, past Ray's object store."""
HEAD_PATIENCE = 12
"""A head may take so many times ``timeout_seconds``: it is one piece, however large its fit set."""
MOST_ASIDE = 20
"""Images that a stage may set aside before it is the stage that is at fault; 3 if it has done nothing else."""


def size_of(stage: ItemStage, settings: Settings, said: Execution) -> Size:
    """What a worker of a stage reserves: what the suite says of its rows, of all, or else what the stage states."""
    cuda = settings.device.startswith("cuda")
    own = [said.actors[row] for row in dict.fromkeys(stage.rows) if row in said.actors]
    cpus = max((a.cpus for a in own if a.cpus is not None), default=said.cpus)
    gpus = max((a.gpus for a in own if a.gpus is not None), default=said.gpus)
    if cpus is None:
        cpus = stage.stage.cpus
    if cpus is None:
        cpus = 1.0 if cuda else float(settings.threads)
    if gpus is None:
        gpus = stage.stage.gpus
    return Size(cpus, gpus if cuda else 0.0)


class RayEngine:
    """As ``harness.engine.engines.Engine``. Workers are kept from stage to stage while their size stays the same."""

    def __init__(
        self, plan: Plan, store: Store, reader: Reader, emit: Listener, execution: Execution, readers: int,
        address: str | None,
    ) -> None:  # fmt: skip
        self.plan, self.store, self.reader, self.emit = plan, store, reader, emit
        self.execution, self.readers, self.address = execution, readers, address
        self.start_seconds = 0.0
        self._exit = ExitStack()
        self._pool: Pool | None = None

    def __enter__(self) -> RayEngine:
        """Reach Ray and let every node show that it sees the store, an image, and the weights."""
        began = time.monotonic()
        if self.plan.recipes:  # torch shares no module with Ray and is needed next: imported while Ray starts
            threading.Thread(target=importlib.import_module, args=("torch",), daemon=True).start()
        try:
            self.ray = self._exit.enter_context(connected(self.address))
            word = self._exit.enter_context(left_word(self.store.root, self._files()))
            check_nodes(self.ray, word)
        except BaseException:
            self._exit.close()
            raise
        self.around = self._surroundings(word)
        self.start_seconds = time.monotonic() - began
        nodes = alive_nodes(self.ray)
        cpus = sum(node["Resources"].get("CPU", 0.0) for node in nodes)
        gpus = sum(node["Resources"].get("GPU", 0.0) for node in nodes)
        text = f"Ray: {len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs (ready in {self.start_seconds:.1f} s)"
        self.emit(Event("note", {"text": text}))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers, and Ray where it is ours."""
        self._release()
        self._exit.close()

    def _surroundings(self, word: Word) -> Surroundings:
        plan, reader = self.plan, self.reader
        numerics = plan.rows[0].extractor.description["numerics"] if plan.rows else {"torch": ""}
        return Surroundings(
            word, str(reader.root.resolve()), reader.edits, plan.settings.device, plan.settings.threads, self.readers,
            tuple(str(Path(p).resolve()) for p in sys.path), str(numerics["torch"]),
        )  # fmt: skip

    def _files(self) -> list[Path]:
        """An image and every weights file, as examples of what all nodes must see."""
        files = [self.reader.path(0)] if len(self.reader.paths) else []
        weights = [w.path for row in self.plan.rows for stage in row.stages for w in stage.weights.values()]
        weights += [w.path for row in self.plan.rows for w in row.head.weights.values()]
        return [path for path in [*files, *weights] if path is not None]

    def _release(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _workers(self, size: Size, most: int | None) -> Pool:
        if self._pool is None or self._pool.size != size:
            self._release()
            self._pool = Pool(self.ray, size, most, self.around, self.emit)
        self._pool.most = most
        return self._pool

    def launcher(self) -> Launcher | None:
        """Ray Train. The workers go: a training needs what they hold."""
        from harness.engine.ray_training import RayProcesses

        self._release()
        return RayProcesses(self.address)

    # item stages -----------------------------------------------------------------------------------------------------

    def items(self, stage: ItemStage, without: np.ndarray) -> Computed:
        """As ``Engine``; an image that ends or stops three workers that do nothing else is set aside.

        Raises:
            ClusterError: no worker can be had.
            PluginError: the stage ends its workers whatever the image.
        """
        missing = missing_of(stage, self.store, without)
        if len(missing) == 0:
            return Computed()
        items, label = self.store.items(stage.key), label_of(stage)
        items.describe(stage.description)
        self.emit(Event("stage_start", {
            "stage": label, "total": len(missing), "stored": len(stage.needed) - len(missing) - len(without),
        }))  # fmt: skip
        said = self.execution
        queue = Queue(
            len(missing), step=stage.micro_batch, most=PIECE_IMAGES, seconds=PIECE_SECONDS, tries=said.retries + 1,
            timeout=said.timeout_seconds,
        )  # fmt: skip
        extraction = _Extraction(self, stage, missing, queue)
        began = time.monotonic()
        try:
            self._workers(size_of(stage, self.plan.settings, said), said.max_actors).run(extraction.work(label))
        except WorkerKiller as error:
            raise PluginError(str(error), where=label, fix="try it alone with `harness detectors check`") from error
        keep_rate(stage, self.store, extraction.timed, extraction.seconds)
        self.emit(Event("stage_end", {
            "stage": label, "done": extraction.done, "seconds": time.monotonic() - began,
        }))  # fmt: skip
        return Computed(extraction.done, {missing[place]: why for place, why in sorted(queue.aside.items())})

    # heads -----------------------------------------------------------------------------------------------------------

    def heads(self, rows: Sequence[RowPlan]) -> Mapping[str, Exception]:
        """Every head that the store lacks, each a piece of work; those that others build on first."""
        failed: dict[str, Exception] = {}
        levels: dict[int, dict[str, tuple[HeadWork, RowPlan, list[str]]]] = {}
        for row in rows:
            for depth, work in _ordered(row.head):
                levels.setdefault(depth, {}).setdefault(work.key, (work, row, []))[2].append(row.row.name)
        for _, level in sorted(levels.items()):
            wanted = [entry for entry in level.values() if self.store.head(entry[0].key) is None]
            wanted = [entry for entry in wanted if not all(name in failed for name in entry[2])]
            for (_, _, names), error in zip(wanted, self._fit(wanted), strict=True):
                if error is not None:
                    failed |= dict.fromkeys(names, error)
        return failed

    def _fit(self, wanted: Sequence[tuple[HeadWork, RowPlan, list[str]]]) -> list[Exception | None]:
        """Make some heads that need none of each other; what went wrong, of each."""
        works: list[FitWork] = [_resolved(fit_work(work, self.plan, row)) for work, row, _ in wanted]
        errors: list[Exception | None] = [None] * len(works)
        for work in works:
            self.emit(Event("note", {"text": making(work)}))
        timeout = HEAD_PATIENCE * self.execution.timeout_seconds
        queue = Queue(len(works), most=1, in_flight=1, tries=self.execution.retries + 1, timeout=timeout)

        def send(actor: Any, piece: Piece) -> Any:
            for part in parts_of(works[int(piece.places[0])]):
                actor.take.remote(part)
            return actor.fit.remote()

        def done(piece: Piece, answer: Answer) -> None:
            if answer.failure is not None:
                errors[int(piece.places[0])] = answer.failure.raised()

        if works:
            settings = self.plan.settings
            cpus = self.execution.cpus or float(settings.threads)
            size = Size(cpus, 0.0) if self._pool is None else self._pool.size
            self._workers(size, self.execution.max_actors).run(Work("heads", queue, send, done, unit="head"))
        for place, why in queue.aside.items():
            what = f"making this head ended or stopped {queue.tries} workers ({why})"
            errors[place] = PluginError(what, where=works[place].row, fix="give a worker more memory, or leave it out")
        return errors


def _ordered(head: HeadWork) -> list[tuple[int, HeadWork]]:
    """A head and those upstream of it, with how many are upstream of each."""
    chain = [head]
    while chain[-1].upstream is not None:
        chain.append(chain[-1].upstream)
    return list(enumerate(reversed(chain)))


def _resolved(work: FitWork) -> FitWork:
    """With absolute paths: a worker has a folder of its own."""
    upstream = None if work.upstream is None else _resolved(work.upstream)
    return replace(work, weights=absolute(work.weights), upstream=upstream)


class _Extraction:
    """One item stage under way: what its pieces are, what came back."""

    def __init__(self, engine: RayEngine, stage: ItemStage, missing: Picked, queue: Queue) -> None:
        self.emit, self.reader = engine.emit, engine.reader
        self.stage, self.missing, self.queue = stage, missing, queue
        self.items = engine.store.items(stage.key)
        self.images = engine.plan.images
        self.label, self.done = label_of(stage), 0
        self.timed, self.seconds = 0, 0.0  # what a lost worker had stored took a time that nobody knows

    def work(self, name: str) -> Work:
        """For a pool."""
        sent = Stage.of(self.stage)

        def load(actor: Any) -> Any:
            return actor.load.remote(sent)

        return Work(name, self.queue, self._send, self._heard, self._left, load)

    def _send(self, actor: Any, piece: Piece) -> Any:
        digests = self.missing[piece.places]
        if self.stage.source is not None:
            return actor.extract.remote(self.stage.key, Images.of(digests, digests, (), careful=piece.suspect))
        rows = self.missing.rows[piece.places]
        paths = [self.reader.paths[row] for row in rows]
        sent = Images.of(digests, self.images[rows], paths, careful=piece.suspect)
        return actor.extract.remote(self.stage.key, sent)

    def _heard(self, piece: Piece, answer: Answer) -> None:
        if answer.failure is not None:
            raise answer.failure.raised()
        self.done += answer.done
        self.timed += answer.done
        self.seconds += answer.seconds
        total = len(self.missing)
        self.emit(Event("progress", {
            "stage": self.label, "done": total - self.queue.left, "total": total, "unit": "images",
        }))  # fmt: skip

    def _left(self, places: np.ndarray) -> np.ndarray:
        """Of the places of a lost piece, those whose images are not stored.

        Raises:
            PluginError: so many images were set aside that it is not the images.
        """
        aside = len(self.queue.aside)
        if aside >= MOST_ASIDE or (aside >= 3 and self.queue.done_count == 0):
            what = f"{aside} images ended or stopped every worker that they were given"
            raise PluginError(what, where=self.label, fix="it is not the images; try `harness detectors check`")
        kept = places[~self.items.stored(self.missing[places])]
        self.done += len(places) - len(kept)
        return kept

"""The trainer: drives a step object through a recipe's epochs, the same to the bit on every run.

It knows no detector, task or network. What is trained, on which batches and with which losses is the step's
(`harness.api.training.TrainStep`); how long, how fast and with which optimiser is the recipe's. It tells what
happens by events and imports no ray, mlflow or typer.
"""

from __future__ import annotations

import math
import random
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from harness.api.checkpoint import (
    Checkpoints,
    Due,
    History,
    Interrupted,
    generators_state,
    pack,
    pack_optimizer,
    read_checkpoint,
    remove_unfinished,
    set_generators,
    stop_requests,
    unpack,
    unpack_optimizer,
    write_checkpoint,
)
from harness.api.errors import ConfigError
from harness.api.events import Event, Listener, silent
from harness.api.schedule import Schedule
from harness.api.training import Place, Recipe, TrainingError, TrainStep, Update
from harness.api.world import World

Asked = Callable[[], str | None]
"""Who asks a training to stop, in words; None: nobody does."""


def nobody() -> None:
    """Nobody asks."""
    return None


@dataclass(frozen=True)
class TrainResult:
    """What a training gives.

    ``tensors`` is the weights file (``step.export()``); ``history`` one dictionary an optimiser step (step, epoch,
    lr, loss, losses by task, and what the step adds), free of clock readings and so equal between equal trainings;
    ``metrics`` the step's ``evaluate()`` of these weights: after the last epoch, or with ``early_stop`` after the best.
    """

    tensors: dict[str, Tensor]
    history: list[dict[str, Any]]
    metrics: dict[str, float]


@contextmanager
def _isolated(seed: int, device: str, threads: int | None) -> Iterator[None]:
    """Seeded global generators, pinned threads and repeatable kernels inside; all as it was outside.

    BLAS has one thread: only small products of the thread that makes batches reach it (torch has its own), and more
    threads would wait for the next one by yielding their core again and again, which the step pays for.
    """
    cuda = torch.device(device).type == "cuda"
    generators = generators_state(cuda)
    before = torch.get_num_threads()
    cudnn = torch.backends.cudnn
    flags = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32)
    try:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  (steps of others may draw from the global generator)
        if threads is not None:
            torch.set_num_threads(threads)
        if cuda:
            cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = True, False, False
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        set_generators(generators)
        torch.set_num_threads(before)
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = flags


def _optimizer(parameters: Sequence[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    return kinds[recipe.optimizer](list(parameters), lr=recipe.lr, weight_decay=recipe.weight_decay)


def _weighted(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The scalar that is minimised.

    Raises:
        ConfigError: a weight for a loss that is not there, or no losses.
    """
    spare = [name for name in weights if name not in losses]
    if spare or not losses:
        raise ConfigError(
            f"weights name no loss: {', '.join(spare)}" if spare else "the step gives no losses",
            fix=f"losses of this step: {', '.join(losses) or 'none'}",
        )
    total: Tensor | None = None
    for name, loss in losses.items():
        part = loss * float(weights.get(name, 1.0))
        total = part if total is None else total + part
    assert total is not None
    return total


def weighted_update(step: TrainStep, batch: Any, optimizer: torch.optim.Optimizer, place: Place) -> Update:
    """One optimiser step on a batch's weighted losses: what ``TrainStep.update`` is unless a step has its own.

    Raises:
        TrainingError: a loss, or the gradient, is not finite; raised before any parameter moves.
        ConfigError: a weight for a loss that is not there, or no losses.
    """
    losses = step.losses(batch)
    total = _weighted(losses, step.weights())
    values = dict(zip(losses, torch.stack([v.detach() for v in losses.values()]).tolist(), strict=True))
    require_finite(values, step.names(batch), place)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if step.world is not None:
        step.world.sum_(gradients)
    if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
        optimizer.zero_grad(set_to_none=True)
        raise place.stop(f"gradient is not finite (losses {values})", step.names(batch))
    optimizer.step()
    return Update(float(total.detach()), values)


def require_finite(losses: Mapping[str, float], names: Sequence[str], place: Place) -> None:
    """Raise the error that names the losses that are not finite, if any."""
    bad = [f"{name} = {value}" for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        raise place.stop(f"loss is not finite: {', '.join(bad)}", names)


def train(
    step: TrainStep,
    recipe: Recipe,
    *,
    emit: Listener = silent,
    device: str = "cpu",
    threads: int | None = None,
    checkpoints: Checkpoints | None = None,
    asked: Asked = nobody,
) -> TrainResult:
    """Train a step by a recipe; equal arguments give equal bits on one machine and thread count (CPU).

    The global random generators, thread count and kernel flags are as before when it returns or raises, and what
    was drawn before has no effect. Events: ``train_step`` (recipe, step, steps, epoch, epochs, lr, loss, losses, what
    the step adds, images_per_second, memory_mib as ``_peak_memory`` says) and ``progress`` (stage ``train``, unit
    ``steps``) after each step, ``train_eval`` (recipe, step, epoch, metrics) after an evaluation, ``checkpoint``
    (recipe, step, path), and ``train_end`` (recipe, steps, images, seconds, metrics) at the end.

    The next batch is made in a second thread meanwhile; batches are functions of their place, so this moves nothing.

    Args:
        step: what is trained; started afresh here.
        recipe: epochs, batch size, optimiser, rate, schedule and seed are read here; the rest built the step.
        device: a torch device. On CUDA float32 is full float32 (no TF32) and cuDNN is asked for repeatable
            kernels; other kernels may still add in another order.
        threads: intra-op threads; by default what torch has.
        checkpoints: where to keep checkpoints. One that is there is gone on from, to the same bits as if nothing had
            happened; with them SIGINT and SIGTERM end the training between two steps. The caller removes the folder
            when it has kept the result.
        asked: says after each step who else asks to stop, or None; with ``checkpoints``.

    Raises:
        TrainingError: a loss or gradient is not finite: names the step, the task and the images; or the processes
            that train together no longer hold the same.
        ConfigError: nothing to optimise, no batch, a weight without a loss, a watched metric that is not there, or a
            step that several processes cannot make.
        Interrupted: a signal or ``asked`` asked to stop; the checkpoint is written.
        StoreError: a checkpoint cannot be written.

    Several processes (torchrun, Ray Train) train together where each calls this with equal arguments inside an
    initialised process group: each works on its part of every batch, the losses are those of the whole, and parameters
    stay equal, which is checked with every checkpoint and at the end. The first process alone writes checkpoints and
    tells.

    *Deviation*: weight decay is on every parameter, as released (FIDELITY A33), not on matrices alone.
    """
    with _isolated(recipe.seed, device, threads), ThreadPoolExecutor(1, "batches") as ahead:
        return _Training(step, recipe, emit, device, checkpoints, asked).run(ahead)


class _Training:
    """One training under way: what is saved, and the loop over one step number."""

    def __init__(
        self,
        step: TrainStep,
        recipe: Recipe,
        emit: Listener,
        device: str,
        checkpoints: Checkpoints | None,
        asked: Asked,
    ) -> None:
        self.step, self.recipe, self.emit, self.where, self.asked = step, recipe, emit, checkpoints, asked
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.world = World.here()
        self.world.part(recipe.batch_size)  # refuses a batch that cannot be shared
        step.world = self.world if self.world.size > 1 else None
        step.start(recipe.seed, device)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)  # what was trained before in this process does not count
        self._check_shared()
        parameters = [p for p in step.parameters() if p.requires_grad]
        self.per_epoch = step.num_batches(recipe.batch_size)
        if not parameters or self.per_epoch < 1:
            raise ConfigError(
                "nothing to train" if not parameters else "an epoch has no batch",
                where=f"recipe {recipe.recipe}", fix="check the recipe's detector, data and batch size",
            )  # fmt: skip
        self.optimizer = _optimizer(parameters, recipe)
        self.schedule = Schedule(recipe)
        self.steps = recipe.epochs * self.per_epoch
        self.number, self.images = 0, 0
        self.history: list[dict[str, Any]] = []
        self.metrics: dict[str, float] = {}
        self.best: dict[str, Tensor] | None = None
        self.log = History(checkpoints.folder) if checkpoints else None
        self.due = Due(checkpoints, clock=self.world.rank == 0) if checkpoints else None

    def _check_shared(self) -> None:
        reason = self.step.needs_whole_batch() if self.world.size > 1 else None
        if reason is not None:
            where = f"recipe {self.recipe.recipe}, processes"
            raise ConfigError(f"{self.world.size} processes cannot make the steps of one: {reason}", where)

    def run(self, ahead: ThreadPoolExecutor) -> TrainResult:
        begun = time.perf_counter()
        if self.where is not None:
            self.where.folder.mkdir(parents=True, exist_ok=True)
            self._resume()
            with stop_requests() as signalled:
                self._loop(ahead, lambda: signalled() or self.asked())
        else:
            self._loop(ahead, nobody)
        self._require_alike()
        if self.world.rank == 0:
            self._told_end(begun)
        tensors = self.step.export() if self.best is None else self.best
        return TrainResult(tensors, self.history, self.metrics)

    def _told_end(self, begun: float) -> None:
        ended = {"recipe": self.recipe.recipe, "steps": self.number, "images": self.images, "metrics": self.metrics}
        self.emit(Event("train_end", {**ended, "seconds": time.perf_counter() - begun}))

    def _loop(self, ahead: ThreadPoolExecutor, asked: Asked) -> None:
        def prepared(number: int) -> Future[Any]:
            return ahead.submit(
                self.step.batch, *divmod(number, self.per_epoch), self.recipe.batch_size, self.recipe.seed
            )

        if self.number >= self.steps or self.schedule.stopped:
            return
        clock, waiting = time.perf_counter(), prepared(self.number)
        while self.number < self.steps and not self.schedule.stopped:
            batch = waiting.result()
            if self.number + 1 < self.steps:
                waiting = prepared(self.number + 1)
            self._one(batch)
            size, before = len(self.step.names(batch)) * self.world.size, clock
            self.images, clock = self.images + size, time.perf_counter()
            self._tell(size / max(clock - before, 1e-9))
            epoch, place = divmod(self.number, self.per_epoch)
            if place == 0 and self.schedule.evaluates(epoch - 1):
                self._evaluate(epoch)
            signal = asked()
            asks = (signal is not None, self.due is not None and self.due.now())
            stopping, due = self.world.any(asks, str(self.step.parameters()[0].device))
            if self.where is not None and (stopping or due or self.number % self.where.every == 0):
                self._save()
            if stopping:
                raise Interrupted(
                    f"{signal or 'a signal'}: stopped after step {self.number:,} of {self.steps:,}; run again to go on"
                )

    def _one(self, batch: Any) -> None:
        epoch = self.number // self.per_epoch
        rate = self.schedule.rate(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        place = Place(self.recipe.recipe, self.number + 1, epoch + 1, rate, self.recipe.lr)
        done = self.step.update(batch, self.optimizer, place)
        self.number += 1
        row = {
            "step": place.step,
            "epoch": place.epoch,
            "lr": rate,
            "loss": done.loss,
            "losses": done.losses,
            **done.more,
        }
        self.history.append(row)
        if self.log is not None and self.world.rank == 0:
            self.log.add(row)

    def _tell(self, speed: float) -> None:
        if self.world.rank:
            return
        of = {"recipe": self.recipe.recipe, "steps": self.steps, "epochs": self.recipe.epochs}
        more = {"images_per_second": speed, "memory_mib": _peak_memory(self.device)}
        self.emit(Event("train_step", {**self.history[-1], **of, **more}))
        self.emit(Event("progress", {"stage": "train", "done": self.number, "total": self.steps, "unit": "steps"}))

    def _evaluate(self, epoch: int) -> None:
        metrics = self.world.first(self.step.evaluate() if self.world.rank == 0 else None)
        here = {"recipe": self.recipe.recipe, "step": self.number, "epoch": epoch, "metrics": metrics}
        if self.world.rank == 0:
            self.emit(Event("train_eval", here))
        if self.schedule.take(metrics):
            self.metrics = metrics
            if self.recipe.early_stop is not None:
                self.best = self.step.export()

    def _require_alike(self) -> None:
        state = self.step.training_state()
        if not self.world.alike([*self.step.parameters(), *(state[name] for name in sorted(state))]):
            raise TrainingError(
                "the processes no longer hold the same parameters and task weights",
                where=f"recipe {self.recipe.recipe}, step {self.number} of {self.steps}",
                fix="run again: it goes on from the last checkpoint, where they were equal",
            )

    def _save(self) -> None:
        assert self.where is not None
        assert self.log is not None
        assert self.due is not None
        began = time.monotonic()
        self._require_alike()
        tensors = (
            pack("model", self.step.state()) | pack("step", self.step.training_state())
            | pack("optimizer", pack_optimizer(self.optimizer)) | pack("generators", generators_state(self.cuda))
            | pack("best", self.best or {})
        )  # fmt: skip
        state = {
            "recipe": self.recipe.recipe, "schedule": self.schedule.state(), "images": self.images,
            "metrics": self.metrics, "best": self.best is not None,
        }  # fmt: skip
        if self.world.rank == 0:
            path = write_checkpoint(self.where, self.number, tensors, state, self.log)
            self.emit(Event("checkpoint", {"recipe": self.recipe.recipe, "step": self.number, "path": str(path)}))
        self.world.wait()
        self.due.written(began)

    def _resume(self) -> None:
        assert self.where is not None
        assert self.log is not None
        if self.world.rank:
            self.world.wait()  # the first one cuts the history back to the checkpoint
        else:
            remove_unfinished(self.where.folder)
        saved = read_checkpoint(self.where, self.log)
        if saved is None and self.world.rank == 0:
            self.log.read(0)
        if self.world.rank == 0:
            self.world.wait()
        if saved is None:
            return
        self.step.load_state(unpack("model", saved.tensors))
        self.step.load_training_state(unpack("step", saved.tensors))
        unpack_optimizer(self.optimizer, unpack("optimizer", saved.tensors))
        set_generators(unpack("generators", saved.tensors))
        self.schedule.load(saved.state["schedule"])
        self.number, self.images = saved.step, int(saved.state["images"])
        self.metrics, self.history = dict(saved.state["metrics"]), saved.history
        self.best = unpack("best", saved.tensors) if saved.state["best"] else None
        if self.world.rank:
            return
        text = f"recipe {self.recipe.recipe}: going on after step {self.number:,} of {self.steps:,}"
        self.emit(Event("note", {"text": text}))


def _peak_memory(device: torch.device) -> int:
    """The most memory so far, in MiB: on CUDA what tensors took of the device in this training, as torch counts it;
    else what was resident of the process, whatever it did before."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

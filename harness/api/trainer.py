"""The trainer: drives a step object through a recipe's epochs, the same to the bit on every run.

It knows no detector, task or network. What is trained, on which batches and with which losses is the step's
(`harness.api.training.TrainStep`); how long, how fast and with which optimiser is the recipe's. It tells what
happens by events and imports no ray, mlflow or typer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api.errors import ConfigError, DataError
from harness.api.events import Event, Listener, silent
from harness.api.training import Place, Recipe, TrainingImages, TrainStep, Update, epoch_order


@dataclass(frozen=True)
class TrainResult:
    """What a training gives.

    ``tensors`` is the weights file (``step.export()``); ``history`` one dictionary an optimiser step (step, epoch,
    lr, loss, losses by task, and what the step adds), free of clock readings and so equal between equal trainings;
    ``metrics`` the step's ``evaluate()`` after the last epoch.
    """

    tensors: dict[str, Tensor]
    history: list[dict[str, Any]]
    metrics: dict[str, float]


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """The rate of an epoch, from 0: constant, or cosine to 0 over the recipe's epochs, changed once an epoch.

    Source: METHOD "Bi-level step", constants. *Deviation*: it ends with the recipe, where the released scheduler,
    given more epochs than its period, rises again (FIDELITY ``epochs``, ``schedule``).
    """
    if recipe.schedule == "constant":
        return recipe.lr
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))


@contextmanager
def _isolated(seed: int, device: str, threads: int | None) -> Iterator[None]:
    """Seeded torch generators, pinned threads and repeatable kernels inside; all as it was outside."""
    cuda = torch.device(device).type == "cuda"
    devices = [torch.device(device).index or 0] if cuda else []
    before = torch.get_num_threads()
    cudnn = torch.backends.cudnn
    flags = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32)
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            if threads is not None:
                torch.set_num_threads(threads)
            if cuda:
                cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = True, False, False
            yield
    finally:
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
) -> TrainResult:
    """Train a step by a recipe; equal arguments give equal bits on one machine and thread count (CPU).

    Torch's generators, thread count and kernel flags are as before when it returns or raises, and what was drawn
    before has no effect. Emits ``train_step`` (recipe, step, steps, epoch, epochs, lr, loss, losses, what the step
    adds, images_per_second) and ``progress`` (stage ``train``, unit ``steps``) after each step, ``train_end`` (recipe,
    steps, images, seconds, metrics) at the end.

    The next batch is made in a second thread meanwhile; batches are functions of their place, so this moves nothing.

    Args:
        step: what is trained; started afresh here.
        recipe: epochs, batch size, optimiser, rate, schedule and seed are read here; the rest built the step.
        device: a torch device. On CUDA float32 is full float32 (no TF32) and cuDNN is asked for repeatable
            kernels; other kernels may still add in another order.
        threads: intra-op threads; by default what torch has.

    Raises:
        TrainingError: a loss or gradient is not finite: names the step, the task and the images.
        ConfigError: nothing to optimise, no batch, or a weight without a loss.

    *Deviation*: weight decay is on every parameter, as released (FIDELITY A33), not on matrices alone.
    """
    with _isolated(recipe.seed, device, threads), ThreadPoolExecutor(1, "batches") as ahead:
        step.start(recipe.seed, device)
        parameters = [p for p in step.parameters() if p.requires_grad]
        per_epoch = step.num_batches(recipe.batch_size)
        if not parameters or per_epoch < 1:
            raise ConfigError(
                "nothing to train" if not parameters else "an epoch has no batch",
                where=f"recipe {recipe.recipe}", fix="check the recipe's detector, data and batch size",
            )  # fmt: skip
        optimizer = _optimizer(parameters, recipe)
        steps, images, begun = recipe.epochs * per_epoch, 0, time.perf_counter()
        history: list[dict[str, Any]] = []

        def prepared(number: int) -> Future[Any]:
            return ahead.submit(step.batch, *divmod(number, per_epoch), recipe.batch_size, recipe.seed)

        clock, waiting = begun, prepared(0)
        for number in range(steps):
            epoch, rate = number // per_epoch, learning_rate(recipe, number // per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = waiting.result()
            if number + 1 < steps:
                waiting = prepared(number + 1)
            done = step.update(batch, optimizer, Place(recipe.recipe, number + 1, epoch + 1, rate, recipe.lr))
            history.append({
                "step": number + 1, "epoch": epoch + 1, "lr": rate, "loss": done.loss, "losses": done.losses,
                **done.more,
            })  # fmt: skip
            size, before = len(step.names(batch)), clock
            images, clock = images + size, time.perf_counter()
            speed = {"images_per_second": size / max(clock - before, 1e-9)}
            of = {"recipe": recipe.recipe, "steps": steps, "epochs": recipe.epochs}
            emit(Event("train_step", {**history[-1], **of, **speed}))
            emit(Event("progress", {"stage": "train", "done": number + 1, "total": steps, "unit": "steps"}))
        metrics = step.evaluate()
        ended = {"recipe": recipe.recipe, "steps": steps, "images": images, "metrics": metrics}
        emit(Event("train_end", {**ended, "seconds": time.perf_counter() - begun}))
        return TrainResult(step.export(), history, metrics)


class SupervisedBatch(NamedTuple):
    """Inputs ``[B, ...]`` float32, labels ``[B]`` int64 (1 = generated), digests of the images."""

    inputs: Tensor
    labels: Tensor
    names: tuple[str, ...]


def binary_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy with logits, mean over the batch; outputs ``[B]`` or ``[B, 1]``, labels ``[B]``."""
    return F.binary_cross_entropy_with_logits(outputs.reshape(len(labels)), labels.to(outputs.dtype))


class SupervisedStep(TrainStep):
    """Training a network to tell generated from photographic images by their labels.

    Args:
        module: the network, ``[B, ...]`` to logits, as it is to start from (a copy of its state is kept).
        images: `train` with both labels; `select` for ``evaluate``.
        preprocess: pixels ``[H, W, 3] uint8`` to a float32 tensor, of one size for all; the images' own by default.
        loss: outputs and labels ``[B] int64`` to a scalar; binary cross-entropy on one logit by default.
        rename: the module's tensors to those of the weights file; the same names by default.

    Raises:
        DataError: when `train` does not hold both classes.
    """

    def __init__(
        self,
        module: nn.Module,
        images: TrainingImages,
        *,
        preprocess: Callable[[np.ndarray], Tensor] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = binary_loss,
        rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> None:
        present = set(np.asarray(images.labels.get("train", ())).tolist())
        if present != {0, 1}:
            raise DataError(
                f"supervised training needs both classes in `train`; labels there: {sorted(present)}",
                fix="name generators in the recipe, and photographs in the data",
            )
        self.module, self.images = module, images
        self.preprocess = preprocess or images.preprocess
        self.loss, self.rename = loss, rename
        self.device = "cpu"
        self._initial = {k: v.detach().cpu().clone() for k, v in module.state_dict().items()}

    def start(self, seed: int, device: str) -> None:
        """Bring back the state the module was given in; ``seed`` moves only what the network itself draws."""
        self.device = device
        self.module.load_state_dict(self._initial)
        self.module.to(device)

    def parameters(self) -> Sequence[Tensor]:
        """The module's parameters."""
        return list(self.module.parameters())

    def num_batches(self, batch_size: int) -> int:
        """Whole batches in `train`; the rest of an epoch's order is left out, and another part each epoch."""
        return max(1, self.images.count("train") // batch_size)

    def batch(self, epoch: int, index: int, batch_size: int, seed: int) -> SupervisedBatch:
        """Images ``index * batch_size`` onwards of the epoch's order."""
        order = epoch_order(self.images.count("train"), seed, epoch)
        return self._load("train", order[index * batch_size : (index + 1) * batch_size])

    def _load(self, split: str, rows: Sequence[int] | np.ndarray) -> SupervisedBatch:
        names = tuple(self.images.digests[split][int(i)] for i in rows)
        inputs = [self.preprocess(self.images.read(split, int(i))) for i in rows]
        odd = [n for n, x in zip(names, inputs, strict=True) if x.shape != inputs[0].shape]
        if odd:
            raise DataError("images of a training batch differ in size after preprocessing", where=odd[0])
        labels = np.asarray(self.images.labels[split])[np.asarray(rows, dtype=np.int64)]
        return SupervisedBatch(torch.stack(inputs), torch.from_numpy(labels.astype(np.int64)), names)

    def names(self, batch: SupervisedBatch) -> Sequence[str]:
        """Digests of the batch's images."""
        return batch.names

    def losses(self, batch: SupervisedBatch) -> dict[str, Tensor]:
        """``{"loss": scalar}``, in training mode."""
        self.module.train()
        return {"loss": self.loss(self.module(batch.inputs.to(self.device)), batch.labels.to(self.device))}

    def evaluate(self, batch_size: int = 64) -> dict[str, float]:
        """On `select`: ``loss`` and, of one logit (> 0) or two (the larger), ``accuracy``; empty without images."""
        count = self.images.count("select")
        if count == 0:
            return {}
        self.module.eval()
        outputs, labels = [], []
        with torch.inference_mode():
            for first in range(0, count, batch_size):
                batch = self._load("select", range(first, min(first + batch_size, count)))
                outputs.append(self.module(batch.inputs.to(self.device)).cpu())
                labels.append(batch.labels)
        scores, truth = torch.cat(outputs), torch.cat(labels)
        found = {"loss": float(self.loss(scores, truth))}
        columns = scores.reshape(count, -1)
        if columns.shape[1] <= 2:
            called = columns[:, 0] > 0 if columns.shape[1] == 1 else columns[:, 1] > columns[:, 0]
            found["accuracy"] = float((called == truth.bool()).double().mean())
        return found

    def state(self) -> dict[str, Tensor]:
        """The module's parameters and buffers."""
        return dict(self.module.state_dict())

    def export(self) -> dict[str, Tensor]:
        """The module's tensors on the CPU, renamed where the step was given a rule."""
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in self.module.state_dict().items()}
        return self.rename(tensors) if self.rename else tensors

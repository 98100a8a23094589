"""Training a network to tell generated from photographic images by their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api.augment import Augmentation
from harness.api.contract import GENERATED, PHOTOGRAPHIC
from harness.api.errors import ConfigError, DataError
from harness.api.training import TrainingImages, TrainStep, epoch_order, stream


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
        augment: what is done to the pixels of `train` images first, anew each epoch (``harness.api.augment``).
        train_preprocess: in place of ``preprocess`` after ``augment`` (an augmentation has cropped already).
        loss: outputs and labels ``[B] int64`` to a scalar; binary cross-entropy on one logit by default.
        rename: the module's tensors to those of the weights file; the same names by default.
        balanced: half of each batch is generated. An epoch goes through the larger class once, and round and round the
            smaller one, in another order each round. By default classes come as often as there are images of them.

    Raises:
        DataError: when `train` does not hold both classes.
    """

    def __init__(
        self,
        module: nn.Module,
        images: TrainingImages,
        *,
        preprocess: Callable[[np.ndarray], Tensor] | None = None,
        augment: Augmentation | None = None,
        train_preprocess: Callable[[np.ndarray], Tensor] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = binary_loss,
        rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
        balanced: bool = False,
    ) -> None:
        present = set(np.asarray(images.labels.get("train", ())).tolist())
        if present != {0, 1}:
            raise DataError(
                f"supervised training needs both classes in `train`; labels there: {sorted(present)}",
                fix="name generators in the recipe, and photographs in the data",
            )
        self.module, self.images = module, images
        self.preprocess = preprocess or images.preprocess
        self.augment, self.train_preprocess = augment, train_preprocess or self.preprocess
        self.loss, self.rename, self.balanced = loss, rename, balanced
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
        """Whole batches in `train`; the rest of an epoch's order is left out, and another part each epoch. Balanced:
        as many as hold the larger class.

        Raises:
            ConfigError: balanced batches of an odd size.
        """
        if not self.balanced:
            return max(1, self.images.count("train") // batch_size)
        if batch_size % 2:
            raise ConfigError(f"balanced batches cannot have {batch_size} images", fix="give an even batch_size")
        return max(1, max(len(rows) for rows in self._classes()) // (batch_size // 2))

    def batch(self, epoch: int, index: int, batch_size: int, seed: int) -> SupervisedBatch:
        """Images ``index * batch_size`` onwards of the epoch's order; balanced: of each class half, in turn."""
        if self.balanced:
            rows = self._balanced_rows(epoch, index, batch_size // 2, seed)
        else:
            order = epoch_order(self.images.count("train"), seed, epoch)
            rows = order[index * batch_size : (index + 1) * batch_size]
        if self.world is not None:
            rows = rows[self.world.part(len(rows))]
        return self._load("train", rows, [self._augmented(int(i), seed, epoch) for i in rows])

    def _classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `train` that are photographs, and those that are generated."""
        labels = np.asarray(self.images.labels["train"])
        return np.flatnonzero(labels == PHOTOGRAPHIC), np.flatnonzero(labels == GENERATED)

    def _balanced_rows(self, epoch: int, index: int, half: int, seed: int) -> np.ndarray:
        """`[2 * half]` rows, photographs and generated images in turn (so that each process's part has both)."""
        sides = []
        for label, rows in enumerate(self._classes()):
            turns, places = np.divmod(np.arange(index * half, (index + 1) * half), len(rows))
            orders = {int(t): stream(seed, "class", label, epoch, int(t)).permutation(rows) for t in np.unique(turns)}
            sides.append([orders[int(turn)][place] for turn, place in zip(turns, places, strict=True)])
        return np.array(sides, np.int64).T.ravel()

    def _augmented(self, row: int, seed: int, epoch: int) -> Tensor:
        """A training input: a function of (seed, epoch, image)."""
        pixels = self.images.read("train", row)
        if self.augment is not None:
            pixels = self.augment(pixels, stream(seed, "augment", epoch, self.images.digests["train"][row]))
        return self.train_preprocess(pixels)

    def _load(self, split: str, rows: Sequence[int] | np.ndarray, inputs: Sequence[Tensor]) -> SupervisedBatch:
        names = tuple(self.images.digests[split][int(i)] for i in rows)
        odd = [n for n, x in zip(names, inputs, strict=True) if x.shape != inputs[0].shape]
        if odd:
            raise DataError("images of a training batch differ in size after preprocessing", where=odd[0])
        labels = np.asarray(self.images.labels[split])[np.asarray(rows, dtype=np.int64)]
        return SupervisedBatch(torch.stack(list(inputs)), torch.from_numpy(labels.astype(np.int64)), names)

    def names(self, batch: SupervisedBatch) -> Sequence[str]:
        """Digests of the batch's images."""
        return batch.names

    def losses(self, batch: SupervisedBatch) -> dict[str, Tensor]:
        """``{"loss": scalar}``, in training mode."""
        self.module.train()
        outputs, labels = self.module(batch.inputs.to(self.device)), batch.labels.to(self.device)
        if self.world is not None:
            outputs, labels = self.world.gather(outputs), self.world.gather_plain(labels)
        return {"loss": self.loss(outputs, labels)}

    def needs_whole_batch(self) -> str | None:
        """BatchNorm uses the statistics of what it sees."""
        kinds = nn.modules.batchnorm._BatchNorm
        normalises = any(isinstance(module, kinds) for module in self.module.modules())
        return "BatchNorm sees only its process's part of a batch; use processes: 1" if normalises else None

    def evaluate(self, batch_size: int = 64) -> dict[str, float]:
        """On `select`: ``loss`` and, of one logit (> 0) or two (the larger), ``accuracy``; empty without images."""
        count = self.images.count("select")
        if count == 0:
            return {}
        self.module.eval()
        outputs, labels = [], []
        with torch.inference_mode():
            for first in range(0, count, batch_size):
                rows = range(first, min(first + batch_size, count))
                batch = self._load("select", rows, [self.preprocess(self.images.read("select", i)) for i in rows])
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

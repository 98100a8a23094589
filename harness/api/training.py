"""What training is made of, for the trainer and for extractors that can be trained: images, steps, recipes."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from harness.api.errors import HarnessError

if TYPE_CHECKING:
    from torch import Tensor


class TrainingError(HarnessError):
    """A training that cannot go on: a loss or gradient that is not finite."""


def stream(seed: int, *names: object) -> np.random.Generator:
    """A random stream of its own for ``(seed, *names)``: sha256 of the words, so that no draw moves another."""
    text = "\0".join(str(part) for part in (seed, *names))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order ``[count] int64`` in which an epoch visits its images; a function of the arguments alone."""
    return stream(seed, "epoch", epoch).permutation(count)


@dataclass(frozen=True)
class TrainingImages:
    """The images a recipe may see, by split (`train`, `outer`, `select`; never `report`).

    ``read(split, i)`` gives uint8 pixels ``[H, W, 3]``; ``labels[split]`` int8 ``[N]``; ``generators[split]``
    names ("" for photographs); ``digests[split]`` the images' sha256, in the order of the split. ``preprocess`` is
    the detector's own, so that an encoder is trained on what it will be given.
    """

    read: Callable[[str, int], np.ndarray]
    labels: Mapping[str, np.ndarray]
    generators: Mapping[str, Sequence[str]]
    digests: Mapping[str, Sequence[str]]
    preprocess: Callable[[np.ndarray], Tensor]

    def count(self, split: str) -> int:
        """Number of images in a split (0 for a split that is not there)."""
        return len(self.digests.get(split, ()))


class TrainStep(ABC):
    """One training problem: what to optimise, on which batches, with which loss. Driven by ``harness.api.trainer``."""

    @abstractmethod
    def start(self, seed: int, device: str) -> None:
        """Put the model on the device in its initial state, a function of ``seed`` alone. The trainer calls this
        once, before all else; a step may be trained again and then starts afresh."""

    @abstractmethod
    def parameters(self) -> Sequence[Tensor]:
        """Everything the optimiser updates."""

    @abstractmethod
    def num_batches(self, batch_size: int) -> int:
        """Batches in one epoch."""

    @abstractmethod
    def batch(self, epoch: int, index: int, batch_size: int, seed: int) -> Any:
        """Batch ``index`` of an epoch: a function of its arguments alone, whatever came before. The trainer asks for
        the next one from a second thread, so nothing that training changes may be read."""

    @abstractmethod
    def names(self, batch: Any) -> Sequence[str]:
        """Digests of the images in a batch, one an image: for counting them and for naming them in errors."""

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Named losses (scalars) of a batch, with graph. The trainer minimises their sum weighted by ``weights``."""

    def weights(self) -> Mapping[str, float]:
        """Fixed weight of each loss; 1 for all by default."""
        return {}

    def evaluate(self) -> dict[str, float]:
        """Metrics on the `select` images, in evaluation mode; empty where there are none."""
        return {}

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Tensors of the running model (parameters and buffers) under the module's own names."""

    @abstractmethod
    def export(self) -> dict[str, Tensor]:
        """Tensors of the weights file that the extractor's ``load`` reads."""


class Recipe(BaseModel):
    """How an extractor is trained: a YAML file in ``suites/recipes``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    version: int = 1
    detector: str
    options: dict[str, Any] = Field(default_factory=dict)
    protocol: str | dict[str, Any] = "paper"
    step: Literal["joint", "supervised"] = "joint"
    settings: dict[str, Any] = Field(default_factory=dict)
    generators: tuple[str, ...] = ()
    max_images: int | None = Field(default=None, gt=0)
    epochs: int = Field(default=20, gt=0)
    batch_size: int = Field(default=48, gt=0)
    optimizer: Literal["adamw", "adam"] = "adamw"
    lr: float = Field(default=1e-5, gt=0)
    weight_decay: float = Field(default=1e-3, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    seed: int = 42

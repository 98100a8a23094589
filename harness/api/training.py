"""What training is made of, for the trainer and for extractors that can be trained: images, steps, recipes."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.api.errors import ConfigError, HarnessError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from harness.api.contract import Weights
    from harness.api.world import World


class TrainingError(HarnessError):
    """A training that cannot go on: a loss or gradient that is not finite."""


def stream(seed: int, *names: object) -> np.random.Generator:
    """A random stream of its own for ``(seed, *names)``: sha256 of the words, so that no draw moves another."""
    text = "\0".join(str(part) for part in (seed, *names))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order ``[count] int64`` in which an epoch visits its images; a function of the arguments alone."""
    return stream(seed, "epoch", epoch).permutation(count)


Pixels = Callable[[str, int], np.ndarray]
"""``(split, i)`` -> uint8 RGB pixels ``[H, W, 3]``."""


def _nothing(*_: object) -> None:
    return None


@dataclass(frozen=True)
class TrainingImages:
    """The images a recipe may see, by split (`train`, `outer`, `select`; never `report`), and what is known of them.

    What is not known of any image is left out of the mappings below ``preprocess``.

    Attributes:
        read: gives uint8 pixels ``[H, W, 3]`` of image ``i`` of a split.
        labels: int8 ``[N]`` a split, 1 = generated.
        generators: names ("" for photographs).
        digests: the images' sha256, in the order of the split.
        preprocess: the detector's own, so that an encoder is trained on what it will be given.
        tags: split -> tag -> int16 ``[N]``: the level or class of an EXIF tag, from 0; -1 = not known.
        tag_levels: how many levels the ordinal tags among them have; 0 without tags.
        boxes: float32 ``[N, 4]`` a split: the face's x0, y0, x1, y1 as fractions of width and height; NaN = none.
        landmarks: 68 points ``[68, 2]`` float32 (x, y) of the image brought to 224 x 224 pixels, the released
            files' coordinates, whatever its own size; or None.
        stored: ``(split, i, number)`` -> manipulated face made beforehand, as ``read`` would give it, or None.
    """

    read: Pixels
    labels: Mapping[str, np.ndarray]
    generators: Mapping[str, Sequence[str]]
    digests: Mapping[str, Sequence[str]]
    preprocess: Callable[[np.ndarray], Tensor]
    tags: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    tag_levels: int = 0
    boxes: Mapping[str, np.ndarray] = field(default_factory=dict)
    landmarks: Callable[[str, int], np.ndarray | None] = _nothing
    stored: Callable[[str, int, int], np.ndarray | None] = _nothing

    def count(self, split: str) -> int:
        """Number of images in a split (0 for a split that is not there)."""
        return len(self.digests.get(split, ()))

    def inputs(self, images: Sequence[np.ndarray]) -> Tensor:
        """Preprocessed images of one size, ``[B, C, H, W]`` float32: the preprocess' own ``batch`` where it has one."""
        import torch

        from harness.api.contract import Preprocess

        if isinstance(self.preprocess, Preprocess):
            return self.preprocess.batch(images)
        return torch.stack([self.preprocess(image) for image in images])


@dataclass(frozen=True)
class Place:
    """Where a training stands: what an update is told, and what its errors say.

    ``step`` and ``epoch`` count from 1; ``lr`` is this epoch's rate, ``base_lr`` the recipe's.
    """

    recipe: str
    step: int
    epoch: int
    lr: float
    base_lr: float

    def stop(self, what: str, names: Sequence[str]) -> TrainingError:
        """The error that ends a training here; the update that raises it has changed nothing."""
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return TrainingError(
            f"{what}; no parameter has moved in this step",
            where=f"recipe {self.recipe}, step {self.step} (epoch {self.epoch}), images {shown or 'unnamed'}",
            fix="lower lr, or check these images and their labels",
        )


@dataclass(frozen=True)
class Update:
    """What one update of the parameters gives: the weighted loss, the losses by name before the update, and further
    JSON values for the history and the ``train_step`` event (a step's own weights, say)."""

    loss: float
    losses: dict[str, float]
    more: dict[str, Any] = field(default_factory=dict)


class TrainStep(ABC):
    """One training problem: what to optimise, on which batches, with which loss. Driven by ``harness.api.trainer``.

    Where several processes train together the trainer sets ``world`` (``harness.api.world.World``) before ``start``:
    ``batch`` then gives this process's part of the batch, and ``losses`` those of the whole batch, from outputs
    gathered over the processes. The trainer sums gradients, and holds that ``parameters()`` and ``training_state()``
    are equal on all of them. Alone it is None.
    """

    world: World | None = None

    def begin_with(self, weights: Weights) -> None:
        """Weights that the recipe's ``start`` names, before ``start`` is called; by slot, as the step calls them.

        Raises:
            ConfigError: this step starts from random weights alone, or has no such slot.
        """
        if weights:
            raise ConfigError(f"this step starts from random weights; the recipe names {', '.join(weights)}", "start")

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
        """Weight of each loss as it stands; 1 for all by default."""
        return {}

    def update(self, batch: Any, optimizer: Optimizer, place: Place) -> Update:
        """One update of the parameters. By default one optimiser step on the weighted sum of ``losses``.

        A loss or gradient that is not finite raises ``place.stop(...)`` and leaves parameters and the optimiser's
        state as they were; a step with an update of its own also leaves what else it changes.
        """
        from harness.api.trainer import weighted_update

        return weighted_update(self, batch, optimizer, place)

    def needs_whole_batch(self) -> str | None:
        """Why several processes, each with a part of every batch, would not make the steps of one; None where they do.
        Asked for after ``start``; a training of several processes is then refused with these words."""
        return None

    def training_state(self) -> dict[str, Tensor]:
        """What training changes beside ``state()`` and the optimiser: all that a true resume needs of the step."""
        return {}

    def load_training_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Bring back what ``training_state`` gave, after ``start``.

        Raises:
            ConfigError: tensors that are not this step's.
        """
        if tensors:
            raise ConfigError(f"this step keeps no training state; got {', '.join(tensors)}")

    def evaluate(self) -> dict[str, float]:
        """Metrics on the `select` images, in evaluation mode; empty where there are none."""
        return {}

    def report(self, tensors: Mapping[str, Tensor], images: TrainingImages, split: str) -> list[dict[str, Any]]:
        """Metrics of an exported network on images that training never saw, one mapping a number: ``task``,
        ``metric``, ``value``, ``low``, ``high`` (95 %), ``chance``, ``images``. Asked for once, after training; empty
        where a step has none."""
        return []

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Tensors of the running model (parameters and buffers) under the module's own names."""

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Bring the running model back to a ``state()``, in place, so that its memory layout stays.

        Raises:
            ConfigError: other names or shapes than the model's.
        """
        import torch

        here = self.state()
        wrong = sorted(k for k in here.keys() ^ tensors.keys()) or [
            k for k, v in here.items() if v.shape != tensors[k].shape
        ]
        if wrong:
            raise ConfigError(f"a checkpoint of another model: {', '.join(wrong[:4])}", fix="train afresh")
        with torch.no_grad():
            for name, value in here.items():
                value.copy_(tensors[name])

    @abstractmethod
    def export(self) -> dict[str, Tensor]:
        """Tensors of the weights file that the extractor's ``load`` reads."""


class Watched(BaseModel):
    """A metric on `select` that training watches, by the name that the step's ``evaluate`` gives it.

    ``mode`` says which way is better; a change of at most ``min_delta`` is none; ``patience`` counts evaluations
    without a better value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    mode: Literal["max", "min"] = "max"
    min_delta: float = Field(default=0.0, ge=0)
    patience: int = Field(default=5, gt=0)


class EarlyStop(Watched):
    """Stop when the metric has not improved for ``patience`` evaluations; the result is the best one's weights."""


class Plateau(Watched):
    """Multiply the rate by ``factor`` when the metric has not improved for ``patience`` evaluations, not below
    ``min_lr``; where it is there already, training stops (CNND's rule; DETECTORS)."""

    factor: float = Field(default=0.1, gt=0, lt=1)
    min_lr: float = Field(default=1e-6, ge=0)


class RecipeData(BaseModel):
    """Where a recipe's images lie: ``suite``: the photographs of the suite's data root (`train`, `outer`, `select`);
    ``released``: the released training layout (FDF) at or below it. ``labels`` names another label file in the folder
    where the usual one lies (five levels, say). ``vocabulary`` names the shipped classes that raw EXIF of the older
    layout is mapped to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: Literal["suite", "released"] = "suite"
    labels: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]+\.json$")
    vocabulary: str = Field(default="blades", pattern=r"^[a-z0-9_]+$")


class Recipe(BaseModel):
    """How an extractor is trained: a YAML file in ``suites/recipes``.

    ``start`` names weights to begin with, by the step's slots: files below the weights root. Without it a step begins
    with random weights of ``seed``. ``evaluate_every`` epochs the step's metrics on `select` are taken (0: at the end
    alone; with ``plateau`` or ``early_stop`` after every epoch). ``processes`` share every batch in equal parts: sums
    over them have other last bits, so their number is part of the recipe.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    version: int = 1
    detector: str
    options: dict[str, Any] = Field(default_factory=dict)
    protocol: str | dict[str, Any] = "paper"
    step: Literal["joint", "supervised", "bilevel"] = "joint"
    settings: dict[str, Any] = Field(default_factory=dict)
    start: dict[str, str] = Field(default_factory=dict)
    data: RecipeData = RecipeData()
    generators: tuple[str, ...] = ()
    max_images: int | None = Field(default=None, gt=0)
    epochs: int = Field(default=20, gt=0)
    batch_size: int = Field(default=48, gt=0)
    processes: int = Field(default=1, gt=0)
    optimizer: Literal["adamw", "adam"] = "adamw"
    lr: float = Field(default=1e-5, gt=0)
    weight_decay: float = Field(default=1e-3, ge=0)
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    period: int | None = Field(default=None, gt=0)
    plateau: Plateau | None = None
    early_stop: EarlyStop | None = None
    evaluate_every: int = Field(default=0, ge=0)
    seed: int = 42

    @model_validator(mode="after")
    def _schedule_is_whole(self) -> Recipe:
        if (self.schedule == "plateau") != (self.plateau is not None):
            raise ValueError("schedule plateau and the section `plateau` belong together")
        if self.period is not None and self.schedule != "cosine":
            raise ValueError(f"a period is a cosine's, the schedule is {self.schedule}")
        return self

    @model_validator(mode="after")
    def _batches_can_be_shared(self) -> Recipe:
        if self.batch_size % self.processes:
            raise ValueError(f"a batch of {self.batch_size} cannot be shared by {self.processes} processes")
        return self

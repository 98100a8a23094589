"""The contract a detector keeps: preprocess -> transform* -> extractor -> head -> threshold rule.

Stated once, here, and nowhere else:

* label 0 = photographic, 1 = generated; *generated is the positive class*;
* a score is one float an image, higher = more likely generated; NaN = the detector abstains;
* an image is called generated when ``score > threshold`` (strict, see :func:`predict`).

A stage is a frozen dataclass whose fields are its options; together with its source code, the keys of its
inputs and the numerics class they make its key (``harness.engine.keys``). Constructing a stage is cheap and
imports no torch; ``load`` builds the runnable thing. A plugin module must therefore import torch,
scikit-learn and the like inside functions, so that listing detectors stays fast.
"""

from __future__ import annotations

import dataclasses
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from harness.api.errors import ConfigError, HarnessError, PluginError, ProtocolError
from harness.api.protocol import Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api.training import TrainingImages, TrainStep
    from harness.api.weights import ResolvedWeights

CONTRACT_VERSION = 1
PHOTOGRAPHIC, GENERATED, ABSTAINS = 0, 1, -1

Weights = Mapping[str, "ResolvedWeights"]


class Abstain(Exception):
    """Raised by a preprocess when the detector has nothing to say of an image (its score becomes NaN)."""


def predict(scores: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """Predictions ``[N] int8``: 1 generated (score > threshold), 0 photographic, -1 where the score is NaN."""
    scores = np.asarray(scores, dtype=np.float64)
    return np.where(np.isnan(scores), ABSTAINS, (scores > threshold).astype(np.int8)).astype(np.int8)


@dataclass(frozen=True)
class WeightsFile:
    """An official file that a slot of a detector loads: what to ask the user for when it is absent."""

    name: str
    where: str
    licence: str
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Facts:
    """The paper's facts of a detector, for listings and tables."""

    title: str
    citation: str
    code: str
    licence: str
    published_row: str | None = None
    notes: tuple[str, ...] = ()


class DetectorOptions(BaseModel):
    """Base of a detector's options: typed, keyword-only, frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Stage(ABC):
    """One link of the chain. Subclasses are frozen dataclasses; raise ``version`` when the result of the same
    source and options changes for a reason that neither shows (a library's behaviour, say)."""

    version: ClassVar[str] = "1"
    slots: ClassVar[tuple[str, ...]] = ()
    """Names of the weights files that ``load`` reads; each must be a key of the detector's ``weights_files``."""

    def options(self) -> dict[str, Any]:
        """The stage's options as JSON values, for its key; stages nested as fields are left to the key function."""
        if not dataclasses.is_dataclass(self):
            raise ConfigError(
                f"stage {type(self).__name__} is not a dataclass",
                fix="decorate it with @dataclass(frozen=True)",
            )
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for k, v in values.items() if not isinstance(v, Stage)}

    @property
    def num_parameters(self) -> int | None:
        """Weights and biases that ``load`` fills, for listings: 0 where there is nothing to learn, None: not stated."""
        return None


class Preprocess(Stage):
    """uint8 RGB pixels ``[H, W, 3]`` -> float32 tensor ``[C, h, w]``; images may keep their own sizes."""

    @abstractmethod
    def __call__(self, pixels: np.ndarray, sidecar: Path | None = None) -> Tensor:
        """The tensor the next stage gets; raises :class:`Abstain` when the image cannot be judged."""

    def batch(self, images: Sequence[np.ndarray]) -> Tensor:
        """``[B, C, h, w]`` of images that come out in one size; for training, where a faster path may be given.

        Must agree with calling the stage image by image to 1e-5.
        """
        import torch

        return torch.stack([self(image) for image in images])

    def sidecar(self, image: Path) -> Path | None:
        """A file beside the image that the result depends on (landmarks, say), or None; its bytes join the key."""
        return None


class Transform(Stage):
    """Image -> image map, deterministic and expensive, stored losslessly (gradients, reconstructions, residuals)."""

    micro_batch: ClassVar[int] = 32
    map_bytes: ClassVar[int] = 0
    """Bytes one stored map takes, for the disk check before a run (0: unknown)."""
    cpus: ClassVar[float | None] = None
    """CPUs that a worker of a cluster reserves (None: one a thread; with a GPU, one); a suite can say otherwise."""
    gpus: ClassVar[float] = 1.0
    """Share of a GPU that a worker reserves, where the run's device is one."""

    @abstractmethod
    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """A function ``[B, C, H, W] -> [B, C', H', W']``; row i depends on row i alone."""


class Extractor(Stage):
    """Images or maps -> features ``[N, dim]`` float32; its weights are loaded, or trained by a recipe."""

    micro_batch: ClassVar[int] = 32
    """Default number of images in one forward; state 1 where images keep their own sizes."""
    cpus: ClassVar[float | None] = None
    """As of :class:`Transform`."""
    gpus: ClassVar[float] = 1.0
    """As of :class:`Transform`."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Number of features an image."""

    @abstractmethod
    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """A function ``[B, C, H, W] -> [B, dim]``; row i depends on row i alone."""

    trained_by: ClassVar[str | Mapping[str, str] | None] = None
    """``module:Class`` of the :class:`harness.api.training.TrainStep` that trains this extractor, or one for each
    ``step`` a recipe may name, or None. Strings, not imports, so that training code is in the recipe's key and not in
    the key of the features."""

    def step_target(self, step: str = "joint") -> str:
        """What ``trained_by`` names for a recipe's ``step``: ``module:Class``.

        Raises:
            ProtocolError: when the extractor has no training of its own, or not this one.
        """
        target = self.trained_by.get(step) if isinstance(self.trained_by, Mapping) else self.trained_by
        if target is None:
            fix = "give it weights, or name a recipe of another detector"
            if isinstance(self.trained_by, Mapping):
                raise ProtocolError(
                    f"extractor {type(self).__name__} has no training step {step!r}",
                    fix=f"use one of: {', '.join(self.trained_by)}",
                )
            raise ProtocolError(f"extractor {type(self).__name__} cannot be trained", fix=fix)
        return target

    def step_class(self, step: str = "joint") -> type[TrainStep]:
        """The class of ``step_target``, imported; it is called as ``cls(extractor, settings, images, protocol)``.

        Raises:
            ProtocolError: as ``step_target``.
        """
        module, _, name = self.step_target(step).partition(":")
        cls: type[TrainStep] = getattr(importlib.import_module(module), name)
        return cls

    def train_step(
        self, settings: Mapping[str, Any], images: TrainingImages, protocol: Protocol, step: str = "joint"
    ) -> TrainStep:
        """The step object that trains this extractor by a recipe's ``step``."""
        make: Callable[..., TrainStep] = self.step_class(step)
        return make(self, settings, images, protocol)


@dataclass(frozen=True)
class FitData:
    """What a head is fitted on: features ``[N, D]`` float32 in fit order, labels ``[N]`` int8, generator names
    ``[N]`` ("" for photographs), and the fitted upstream head where the head names one."""

    features: np.ndarray
    labels: np.ndarray
    generators: Sequence[str]
    upstream: FittedHead | None = None

    @property
    def photographic(self) -> np.ndarray:
        """Features of the photographs alone, in fit order."""
        return self.features[self.labels == PHOTOGRAPHIC]


class FittedHead(ABC):
    """A head with its parameters. Subclasses restore from what ``state`` gives, on any machine."""

    @abstractmethod
    def score(self, features: np.ndarray) -> np.ndarray:
        """Scores ``[N]`` float64 of features ``[N, D]``; row i depends on row i alone. The engine never passes
        rows that are not finite: such images abstain before."""

    @abstractmethod
    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays (saved as safetensors) and JSON values that ``restore`` needs."""

    @classmethod
    @abstractmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> FittedHead:
        """The head that ``state`` described."""


class Head(Stage):
    """Features -> score. Either fitted on the fit set or loaded from a checkpoint."""

    fit_on: Literal["nothing", "photographic", "both"] = "nothing"
    """What ``fit`` needs; "nothing" heads are built by ``fit`` from weights alone (or are the identity)."""
    generators: tuple[str, ...] = ()
    """Generators whose `train` images are in the fit set when ``fit_on`` is "both"; their columns are *seen*."""
    upstream: Head | None = None
    """Another head, fitted first on the same features; equal heads share one fit whoever names them."""

    @property
    @abstractmethod
    def fitted_class(self) -> type[FittedHead]:
        """The class that restores this head's state."""

    @abstractmethod
    def fit(self, data: FitData | None, weights: Weights) -> FittedHead:
        """The fitted head; ``data`` is None exactly when ``fit_on`` is "nothing"."""

    def fit_order(self, count: int) -> np.ndarray:
        """Order ``[count]`` in which fit images (manifest order) are presented; identity by default."""
        return np.arange(count)


@dataclass(frozen=True)
class FixedThreshold(Stage):
    """A threshold that is a published number."""

    value: float = 0.5


@dataclass(frozen=True)
class QuantileThreshold(Stage):
    """A threshold that calls about the share ``fpr`` of the calibration photographs generated.

    The scores of the N calibration photographs are sorted from high to low and the one at index ``int(fpr * N)``
    is taken: equal to the released rule "log-likelihoods sorted from low to high, index int(0.05 * N)" (METHOD,
    "Detection"; AIGFD_BLO OC_GMM.py at 5f26ede), since score = -log-likelihood. ``in_sample`` calibrates on the
    photographs the head was fitted on, ``held_out`` on the `select` photographs.
    """

    fpr: float = 0.05
    calibration: Literal["in_sample", "held_out"] = "in_sample"

    def value(self, scores: np.ndarray) -> float:
        """The threshold from calibration scores ``[N]``; NaN scores (abstentions) are left out.

        Raises:
            ProtocolError: when no calibration score is left.
        """
        ranked = np.sort(scores[~np.isnan(scores)])[::-1]
        if len(ranked) == 0:
            raise ProtocolError("no calibration photograph has a score", fix="add photographs to the calibration split")
        return float(ranked[int(self.fpr * len(ranked))])


ThresholdRule = FixedThreshold | QuantileThreshold


class Detector(ABC):
    """A named chain with the paper's facts. Subclasses are plugins, registered by entry point."""

    name: ClassVar[str]
    facts: ClassVar[Facts]
    Options: ClassVar[type[DetectorOptions]] = DetectorOptions
    weights_files: ClassVar[Mapping[str, WeightsFile]] = {}
    """Slot -> official file. The slot ``weights`` is the one that ``weights: PATH`` fills."""

    def __init__(self, options: DetectorOptions | None = None, protocol: Protocol | None = None) -> None:
        self.options = options if options is not None else self.Options()
        self.protocol = protocol if protocol is not None else Protocol.named("paper")

    @abstractmethod
    def preprocess(self) -> Preprocess:
        """Pixels to tensor."""

    def transforms(self) -> Sequence[Transform]:
        """Stored image-to-image maps, in order; none for most."""
        return ()

    @abstractmethod
    def extractor(self) -> Extractor:
        """Tensor (or map) to features."""

    @abstractmethod
    def head(self) -> Head:
        """Features to score."""

    @abstractmethod
    def threshold(self) -> ThresholdRule:
        """Score to verdict."""

    def warnings(self, fit_images: int) -> Sequence[str]:
        """What the user should know of a fit on that many photographs; printed and kept in the record."""
        return ()


@dataclass(frozen=True)
class Chain:
    """A detector's stages, built once and passed around by the engine."""

    preprocess: Preprocess
    transforms: tuple[Transform, ...]
    extractor: Extractor
    head: Head
    threshold: ThresholdRule
    weights_files: Mapping[str, WeightsFile] = field(default_factory=dict)

    @classmethod
    def of(cls, detector: Detector) -> Chain:
        """The chain of a detector, with the contract checked.

        Raises:
            ConfigError: a stage of the wrong kind, or a slot that ``weights_files`` does not name.
            PluginError: the detector fails while it builds a stage.
        """
        try:
            chain = cls(
                detector.preprocess(), tuple(detector.transforms()), detector.extractor(), detector.head(),
                detector.threshold(), detector.weights_files,
            )  # fmt: skip
        except HarnessError:
            raise
        except Exception as error:  # a plugin can fail in any way; the culprit must be named
            what = f"detector {detector.name!r} fails to build its stages: {type(error).__name__}: {error}"
            raise PluginError(what, where=type(detector).__module__) from error
        kinds: tuple[tuple[Stage, type[Stage]], ...] = (
            (chain.preprocess, Preprocess),
            (chain.extractor, Extractor),
            (chain.head, Head),
        )
        for stage, kind in kinds + tuple((t, Transform) for t in chain.transforms):
            if not isinstance(stage, kind):
                raise ConfigError(f"detector {detector.name!r}: {stage!r} is no {kind.__name__}")
        if not isinstance(chain.threshold, FixedThreshold | QuantileThreshold):
            raise ConfigError(f"detector {detector.name!r}: {chain.threshold!r} is no threshold rule")
        for stage in (*chain.transforms, chain.extractor, chain.head):
            for slot in stage.slots:
                if slot not in chain.weights_files:
                    raise ConfigError(
                        f"detector {detector.name!r}: stage {type(stage).__name__} reads slot {slot!r}, "
                        "which weights_files does not name"
                    )
        return chain

    @property
    def slots(self) -> tuple[str, ...]:
        """Every weights slot that some stage reads, without repeats."""
        stages: list[Stage] = [*self.transforms, self.extractor, self.head]
        return tuple(dict.fromkeys(slot for stage in stages for slot in stage.slots))

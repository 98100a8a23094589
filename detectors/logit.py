"""What plain classifiers share: a ResNet-50 that ends in one logit, and the logit's sigmoid as the score.

The sigmoid belongs to the head and is taken in float64: in float32 every logit above 17 would be exactly 1, and
equal scores cost AUC and AP. Features stay the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from detectors.networks.sizes import resnet_parameters
from harness.api.contract import Extractor, FitData, FittedHead, Head, Weights
from harness.api.heads import check_dim, in_blocks

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FittedSigmoid(FittedHead):
    """score = p = 1 / (1 + e^−logit), in (0, 1)."""

    def score(self, features: np.ndarray) -> np.ndarray:
        """p `[N]` float64 of logits `[N, 1]`."""
        check_dim(features, 1, "the sigmoid")
        # e^(−|x|) never overflows; both branches round to at most 1
        small = in_blocks(features, lambda rows: np.exp(-np.abs(rows[:, 0])))
        return np.where(features[:, 0] >= 0, 1 / (1 + small), small / (1 + small))

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Nothing."""
        return {}, {}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> FittedSigmoid:
        """The head that `state` described."""
        return cls()


@dataclass(frozen=True)
class SigmoidHead(Head):
    """For networks that end in one logit of "generated"."""

    @property
    def fitted_class(self) -> type[FittedHead]:
        """FittedSigmoid."""
        return FittedSigmoid

    def fit(self, data: FitData | None, weights: Weights) -> FittedSigmoid:
        """Nothing to fit."""
        return FittedSigmoid()


SIZES: dict[str, dict[str, Any]] = {
    "resnet50": {},
    "small": {"stem": 16, "hidden_sizes": (64, 128, 256, 512), "depths": (2, 2, 2, 2)},
}
"""Networks by name: the official one, and one of a sixteenth of its work for trainings on a CPU."""


@dataclass(frozen=True)
class ResNetLogit(Extractor):
    """The logit of a ResNet with one output, from a file under torchvision's names; images of one size.

    Attributes:
        network: a name of `SIZES`.
    """

    network: str = "resnet50"

    slots: ClassVar[tuple[str, ...]] = ("weights",)
    trained_by: ClassVar[Mapping[str, str]] = {"supervised": "detectors.logit_training:ResNetLogitStep"}

    @property
    def dim(self) -> int:
        """1."""
        return 1

    @property
    def num_parameters(self) -> int:
        """Of the network with one output."""
        return resnet_parameters(1, **SIZES[self.network])

    def training_preprocess(self) -> Callable[[np.ndarray], Tensor] | None:
        """What `load` does to its input before the network, for `select` images in training; None: the detector's
        preprocess has done it."""
        return None

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """The frozen network as a function `[B, 3, H, W]` → `[B, 1]` float32.

        Raises:
            WeightsError: the file is absent, unsafe, or does not fit the network with one output.
        """
        from detectors.networks.resnet import ResNet, frozen

        source, sizes = weights["weights"], SIZES[self.network]
        if source.kind == "random":
            return frozen(ResNet.seeded(1, source.seed, **sizes), device)
        return frozen(ResNet.from_torchvision(source.tensors(), 1, source.path or source.label, **sizes), device)


@dataclass(frozen=True)
class NativeResNetLogit(ResNetLogit):
    """The same for images that keep their own sizes: one at a time."""

    micro_batch: ClassVar[int] = 1

"""The detector of `scale_simulation.py`: features that follow from the digest.

In a file of its own, because its source is in the keys: with the simulation's, which imports the whole engine, any edit
of the program between two runs would make the second one start anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.api.contract import (
    Detector,
    DetectorOptions,
    Extractor,
    Facts,
    FixedThreshold,
    Head,
    Preprocess,
    QuantileThreshold,
    Weights,
)
from harness.api.heads import IdentityHead, MixtureHead

if TYPE_CHECKING:
    from torch import Tensor

DIM = 16


@dataclass(frozen=True)
class Digest(Preprocess):
    """Stands for decoding: never called, for :class:`MadeReader` gives the tensor."""

    def __call__(self, pixels: np.ndarray, sidecar: Path | None = None) -> Tensor:
        """Nothing to preprocess."""
        raise NotImplementedError("there are no pixels")


@dataclass(frozen=True)
class Flat(Extractor):
    """The 16 numbers of the tensor as features."""

    @property
    def dim(self) -> int:
        """16."""
        return DIM

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """``[B, 1, 1, 16]`` to ``[B, 16]``."""
        return lambda images: images.reshape(len(images), DIM)


class Options(DetectorOptions):
    """Which head."""

    mixture: bool = True


class Made(Detector):
    """Features that follow from the digest; a mixture with a quantile, or one feature as it is."""

    name = "made"
    facts = Facts("made", "nobody", "this file", "Apache-2.0")
    Options = Options

    def preprocess(self) -> Preprocess:
        """None to speak of."""
        return Digest()

    def extractor(self) -> Extractor:
        """Shared by both rows."""
        return Flat()

    def head(self) -> Head:
        """Fitted on photographs, or nothing."""
        return MixtureHead(components=2) if self.options.mixture else IdentityHead()  # type: ignore[attr-defined]

    def threshold(self) -> QuantileThreshold | FixedThreshold:
        """5 % of the fit set, or one half."""
        return QuantileThreshold(0.05) if self.options.mixture else FixedThreshold(0.5)  # type: ignore[attr-defined]

"""The least a detector package needs: this file, and an entry point in pyproject.toml."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.api.contract import Detector, Extractor, Facts, FixedThreshold, Head, Preprocess, Weights
from harness.api.heads import IdentityHead
from harness.api.preprocess import TensorResize

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Small(Preprocess):
    """``[3, 32, 32]`` float32 in [0, 1]."""

    def __call__(self, pixels: np.ndarray, sidecar: Path | None = None) -> Tensor:
        """Bilinear."""
        return TensorResize(32, False)(pixels)


@dataclass(frozen=True)
class Mean(Extractor):
    """Mean brightness."""

    @property
    def dim(self) -> int:
        """One."""
        return 1

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """``[B, 3, H, W]`` to ``[B, 1]``."""
        return lambda images: images.mean(dim=(1, 2, 3)).unsqueeze(1)


class Brightness(Detector):
    """Bright images are called generated."""

    name = "brightness"
    facts = Facts("Brightness", "nobody: made for tests", "this file", "Apache-2.0")

    def preprocess(self) -> Preprocess:
        """A small square."""
        return Small()

    def extractor(self) -> Extractor:
        """Mean brightness."""
        return Mean()

    def head(self) -> Head:
        """The mean is the score."""
        return IdentityHead()

    def threshold(self) -> FixedThreshold:
        """Half."""
        return FixedThreshold(0.5)

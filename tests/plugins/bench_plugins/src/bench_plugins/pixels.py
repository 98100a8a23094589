"""A preprocess and an extractor that several detectors share: a small square, and statistics of its pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.api.contract import Extractor, Preprocess, Weights
from harness.api.preprocess import TensorResize

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Square(Preprocess):
    """The whole image as ``[3, side, side]`` float32 in [0, 1]."""

    side: int = 32

    def __call__(self, pixels: np.ndarray, sidecar: Path | None = None) -> Tensor:
        """Bilinear, without antialias: what makes up-sampled images stand out stays."""
        return TensorResize(self.side, False)(pixels)


@dataclass(frozen=True)
class PixelStatistics(Extractor):
    """Mean and deviation of each channel, and the mean size of horizontal, vertical and diagonal differences."""

    gain: float = 1.0
    micro_batch = 8

    @property
    def dim(self) -> int:
        """Nine."""
        return 9

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """``[B, 3, H, W]`` to ``[B, 9]``; there is nothing to load."""
        import torch

        def statistics(images: Tensor) -> Tensor:
            x = images * self.gain
            right, down = x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]
            cross = right[..., 1:, :] - right[..., :-1, :]
            sizes = [d.abs().mean(dim=(1, 2, 3)) for d in (right, down, cross)]
            return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3)), torch.stack(sizes, dim=1)], dim=1)

        return statistics

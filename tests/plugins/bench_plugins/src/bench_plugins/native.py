"""Capability: images keep their own sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench_plugins.gaussian import GaussianHead
from harness.api.contract import Detector, Extractor, Facts, Head, Preprocess, QuantileThreshold, Weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AsItIs(Preprocess):
    """The image as ``[3, H, W]`` float32 in [0, 1], in its own size."""

    def __call__(self, pixels: np.ndarray, sidecar: Path | None = None) -> Tensor:
        """Pixels / 255."""
        import torch

        return torch.tensor(pixels).permute(2, 0, 1).float() / 255


@dataclass(frozen=True)
class ResidualSpectrum(Extractor):
    """Log energy of the high-pass residual in ``bands`` rings of the spectrum; one image at a time."""

    bands: int = 6
    micro_batch = 1

    @property
    def dim(self) -> int:
        """One a ring."""
        return self.bands

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """``[1, 3, H, W]`` to ``[1, bands]``."""
        import torch
        from torch.nn import functional as F

        def spectrum(images: Tensor) -> Tensor:
            grey = images.mean(dim=1, keepdim=True)
            residual = grey - F.avg_pool2d(grey, 3, stride=1, padding=1, count_include_pad=False)
            power = torch.fft.rfft2(residual[:, 0]).abs().square()
            down = torch.fft.fftfreq(grey.shape[2])[:, None]
            across = torch.fft.rfftfreq(grey.shape[3])[None]
            ring = (2 * self.bands * torch.sqrt(down**2 + across**2)).long().clamp(max=self.bands - 1)
            rows = [power[:, ring == k].mean(dim=1) for k in range(self.bands)]
            return torch.log(torch.stack(rows, dim=1) + 1e-9)

        return spectrum


class NativeSize(Detector):
    """Distance of a residual's spectrum from that of photographs."""

    name = "native-size"
    facts = Facts("Residual spectrum", "nobody: made for tests", "this package", "Apache-2.0")

    def preprocess(self) -> Preprocess:
        """No resizing."""
        return AsItIs()

    def extractor(self) -> Extractor:
        """Six rings."""
        return ResidualSpectrum()

    def head(self) -> Head:
        """One Gaussian."""
        return GaussianHead()

    def threshold(self) -> QuantileThreshold:
        """A quantile of the fit set."""
        return QuantileThreshold(0.1, "in_sample")

"""Capability: a transform stage, whose maps are stored, with an extractor that reads maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench_plugins.gaussian import GaussianHead
from bench_plugins.pixels import Square
from harness.api.contract import (
    Detector,
    DetectorOptions,
    Extractor,
    Facts,
    Head,
    Preprocess,
    QuantileThreshold,
    Transform,
    Weights,
)

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 64


@dataclass(frozen=True)
class GradientMap(Transform):
    """Size of the brightness gradient at every pixel (Sobel)."""

    micro_batch = 4
    map_bytes = 4 * (SIDE - 2) ** 2

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """``[B, 3, H, W]`` to ``[B, 1, H - 2, W - 2]``."""
        import torch
        from torch.nn import functional as F

        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        kernels = torch.stack([across, across.T])[:, None].to(device)

        def gradient(images: Tensor) -> Tensor:
            return F.conv2d(images.mean(dim=1, keepdim=True), kernels).square().sum(dim=1, keepdim=True).sqrt()

        return gradient


@dataclass(frozen=True)
class MapStatistics(Extractor):
    """Mean, deviation, largest value, and means of ``cells`` by ``cells`` parts of a map."""

    cells: int = 2

    @property
    def dim(self) -> int:
        """Three, and one a part."""
        return 3 + self.cells**2

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """``[B, 1, H, W]`` to ``[B, dim]``."""
        import torch
        from torch.nn import functional as F

        def pool(maps: Tensor) -> Tensor:
            flat = maps.flatten(1)
            whole = torch.stack([flat.mean(dim=1), flat.std(dim=1), flat.amax(dim=1)], dim=1)
            return torch.cat([whole, F.adaptive_avg_pool2d(maps, self.cells).flatten(1)], dim=1)

        return pool


class Options(DetectorOptions):
    """Parts of the map along a side."""

    cells: int = 2


class GradientMaps(Detector):
    """Distance of gradient statistics from those of photographs."""

    name = "grad-map"
    facts = Facts("Gradient maps", "nobody: made for tests", "this package", "Apache-2.0")
    Options = Options
    options: Options

    def preprocess(self) -> Preprocess:
        """A square of 64 pixels."""
        return Square(SIDE)

    def transforms(self) -> Sequence[Transform]:
        """The gradient map."""
        return (GradientMap(),)

    def extractor(self) -> Extractor:
        """Statistics of the map."""
        return MapStatistics(self.options.cells)

    def head(self) -> Head:
        """One Gaussian."""
        return GaussianHead()

    def threshold(self) -> QuantileThreshold:
        """A quantile of the fit set, as most released code has it."""
        return QuantileThreshold(0.1, "in_sample")

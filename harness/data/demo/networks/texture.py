"""Grain: what is measured of a picture's fine texture, how it is drawn, and how a network puts it into features.

A photograph's grain depends on its ISO, so a generator must know how strong a picture's grain is to be. `texture`
measures that in twelve numbers; while training, a network is given those of a photograph and must make pictures that
measure the same; when sampling, the numbers are drawn from a Gaussian fitted to the training photographs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE = 128
MEASURES = 12
_OFFSET = 0.004


def texture(images: Tensor) -> Tensor:
    """Logarithms of the fine detail of `images` `[B, 3, H, W]` in [-1, 1]: `[B, 12]`, differentiable.

    Of luma, red - luma and blue - luma, in the two finest octaves: the mean size of what 2x2 means leave, and its
    lower quartile over 8x8 (then 4x4) blocks, which is the grain of flat regions.
    """
    red, green, blue = images.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = torch.stack([luma, red - luma, blue - luma], 1)
    found: list[Tensor] = []
    for block in (8, 4):
        small = functional.avg_pool2d(planes, 2)
        detail = (planes - functional.interpolate(small, scale_factor=2.0, mode="nearest")).abs()
        local = functional.avg_pool2d(detail, block).flatten(2)
        quartile = local.sort(2).values[..., local.shape[2] // 4]
        found += [(local.mean(2) + _OFFSET).log(), (quartile + _OFFSET).log()]
        planes = small
    return torch.cat(found, 1)


class TexturePrior(nn.Module):
    """A Gaussian over `texture` of photographs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(MEASURES))
        self.register_buffer("shape", torch.eye(MEASURES))

    @torch.no_grad()
    def fit(self, measures: Tensor) -> None:
        """Takes mean and covariance of `measures` `[N, 12]`."""
        self.get_buffer("mean").copy_(measures.mean(0))
        self.get_buffer("shape").copy_(torch.linalg.cholesky(torch.cov(measures.T) + 1e-5 * torch.eye(MEASURES)))

    def draw(self, rng: np.random.Generator) -> Tensor:
        """Measures `[1, 12]` of a picture to be made."""
        noise = torch.from_numpy(rng.standard_normal((1, MEASURES), np.float32))
        return self.get_buffer("mean") + noise @ self.get_buffer("shape").T

    def forward(self, measures: Tensor) -> Tensor:
        """Measures `[B, 12]` less their mean, in standard deviations."""
        spread = self.get_buffer("shape").pow(2).sum(1).sqrt()
        return (measures - self.get_buffer("mean")) / spread


class Grain(nn.Module):
    """Adds filtered noise to features, as strong as the wanted texture and the place ask for."""

    def __init__(self, channels: int, maps: int) -> None:
        super().__init__()
        self.maps = maps
        self.filter = nn.Conv2d(maps, channels, 3, padding=1, bias=False)
        self.gain = nn.Linear(MEASURES, channels)
        self.place = nn.Conv2d(channels, channels, 1)
        nn.init.constant_(self.gain.bias, -1.5)

    def forward(self, features: Tensor, wanted: Tensor, noise: Tensor) -> Tensor:
        """`features` `[B, C, H, W]` with grain; `wanted` `[B, 12]` standardised, `noise` `[B, maps, H, W]` normal."""
        strength = self.gain(wanted).clamp(-6, 3).exp()[:, :, None, None]
        return features + self.filter(noise) * strength * torch.sigmoid(self.place(features))


class Critic(nn.Module):
    """Real or generated: plain strided convolutions, read once for the whole picture or at every patch.

    With `fine` it also sees what a small blur removes, enlarged, so that grain weighs as much as shapes. Needed in
    training only.
    """

    def __init__(self, widths: tuple[int, ...], *, whole: bool, fine: bool = False) -> None:
        super().__init__()
        self.fine = fine
        layers: list[nn.Module] = []
        for a, b in zip((6 if fine else 3, *widths[:-1]), widths, strict=True):
            layers += [nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4 if whole else 3))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        if self.fine:
            images = torch.cat([images, 4 * (images - functional.avg_pool2d(images, 3, 1, 1))], 1)
        return self.layers(images)


def normal(rng: np.random.Generator, *shape: int) -> Tensor:
    """Standard normal float32 of that shape from a numpy stream (the same on every machine)."""
    return torch.from_numpy(rng.standard_normal(shape, np.float32))

"""A GAN of transposed convolutions, and the encoder that helps to train it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.data.demo.networks.texture import SIZE, Grain, TexturePrior, normal


class ConvGan(nn.Module):
    """Noise to faces by transposed convolutions alone (the family of DCGAN, Radford et al. 2016).

    The trunk makes 64-pixel features; `small` reads a 64-pixel picture from them (used in training only), the
    last transposed convolution makes the 128-pixel picture and takes in maps of noise for its grain.
    """

    latent = 96

    def __init__(self) -> None:
        super().__init__()
        widths = (160, 112, 80, 56, 32)
        self.first = nn.Linear(self.latent, widths[0] * 16)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False) for a, b in pairwise(widths))
        self.small = nn.Conv2d(widths[-1], 3, 3, padding=1)
        self.last = nn.ConvTranspose2d(widths[-1], 20, 4, 2, 1)
        self.grain = Grain(20, 4)
        self.colour = nn.Conv2d(20, 3, 3, padding=1)
        self.prior = TexturePrior()
        self.register_buffer("shift", torch.zeros(self.latent))
        self.register_buffer("shape", torch.eye(self.latent))

    def draw(self, noise: Tensor) -> Tensor:
        """Latents `[B, 96]` for standard normal `noise` `[B, 96]`: a Gaussian fitted to the codes of photographs."""
        return self.get_buffer("shift") + noise @ self.get_buffer("shape").T

    def trunk(self, z: Tensor) -> Tensor:
        """Features `[B, 32, 64, 64]` for latents `z` `[B, 96]`."""
        x = self.first(z).unflatten(1, (-1, 4, 4))
        x = functional.relu(self.norms[0](x))
        for up, norm in zip(self.ups, list(self.norms)[1:], strict=True):
            x = functional.relu(norm(up(x)))
        return x

    def finish(self, features: Tensor, measures: Tensor, noise: Tensor) -> Tensor:
        """The 128-pixel picture for trunk features, wanted texture `[B, 12]` and noise `[B, 4, 128, 128]`."""
        x = functional.leaky_relu(self.grain(self.last(features), self.prior(measures), noise), 0.2)
        return torch.tanh(self.colour(x))

    def sample(self, rng: np.random.Generator) -> Tensor:
        """A picture `[3, 128, 128]`; latents a little narrower than in training: fewer odd faces, less variety."""
        features = self.trunk(self.draw(0.85 * normal(rng, 1, self.latent)))
        return self.finish(features, self.prior.draw(rng), normal(rng, 1, self.grain.maps, SIZE, SIZE))[0]


class ConvEncoder(nn.Module):
    """64-pixel pictures to mean and log variance `[B, 96]` of `ConvGan`'s latents; needed in training only."""

    def __init__(self) -> None:
        super().__init__()
        widths = (32, 64, 112, 160)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise((3, *widths)))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.last = nn.Linear(widths[-1] * 16, 2 * ConvGan.latent)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images
        for down, norm in zip(self.downs, self.norms, strict=True):
            x = functional.leaky_relu(norm(down(x)), 0.2)
        mean, spread = self.last(x.flatten(1)).float().chunk(2, 1)
        return mean, spread.clamp(-8, 4)

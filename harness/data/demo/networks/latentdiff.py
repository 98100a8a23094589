"""Latent diffusion: an autoencoder of its own and a denoiser of its latents."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.data.demo.networks.diffusion import UNet, denoise, levels, sample
from harness.data.demo.networks.texture import SIZE, Grain, TexturePrior, normal


class LatentDiffusion(nn.Module):
    """Diffusion over 16x16 latents of an autoencoder, after Rombach et al. 2022, far smaller and without text.

    The decoder doubles its features by repeating pixels and ends with noise for grain at 128 pixels.
    """

    width, grid, steps = 4, 16, 18
    _decoder_parts = ("widen", "mix", "blocks", "grain", "colour")

    def __init__(self) -> None:
        super().__init__()
        self.denoiser = UNet(self.width, (64, 88))
        self.widen = nn.Conv2d(self.width, 72, 3, padding=1)
        self.mix = nn.Conv2d(72, 72, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in ((72, 64), (64, 40), (40, 20)))
        self.grain = Grain(20, 4)
        self.colour = nn.Conv2d(20, 3, 3, padding=1)
        self.prior = TexturePrior()
        self.register_buffer("centre", torch.zeros(self.width, 1, 1))
        self.register_buffer("scale", torch.ones(self.width, 1, 1))

    def parts(self, decoder: bool) -> list[nn.Parameter]:
        """The parameters of the decoder, or those of the denoiser."""
        return [p for name, p in self.named_parameters() if name.startswith(self._decoder_parts) == decoder]

    def decode(self, latents: Tensor, measures: Tensor, noise: Tensor) -> Tensor:
        """Pictures for latents `[B, 4, 16, 16]`, wanted texture `[B, 12]`, noise `[B, 4, 128, 128]`."""
        x = functional.leaky_relu(self.widen(latents), 0.2)
        x = x + functional.leaky_relu(self.mix(x), 0.2)
        for block in self.blocks:
            x = functional.leaky_relu(block(functional.interpolate(x, scale_factor=2.0, mode="nearest")), 0.2)
        x = functional.leaky_relu(self.grain(x, self.prior(measures), noise), 0.2)
        return torch.tanh(self.colour(x))

    def clean(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Latents (standardised) expected behind noisy ones."""
        return denoise(self.denoiser, x, sigma, 1.0)

    def sample(self, rng: np.random.Generator) -> Tensor:
        """A picture `[3, 128, 128]`."""
        sigmas = levels(self.steps, 0.03, 40.0)
        start = normal(rng, 1, self.width, self.grid, self.grid) * sigmas[0]
        latents = sample(lambda x, sigma: self.clean(x, torch.tensor([sigma])), start, sigmas)
        latents = latents * self.get_buffer("scale") + self.get_buffer("centre")
        return self.decode(latents, self.prior.draw(rng), normal(rng, 1, self.grain.maps, SIZE, SIZE))[0]


class LatentEncoder(nn.Module):
    """Pictures to mean and log variance `[B, 4, 16, 16]` of their latents; needed in training only."""

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 56, 96)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise((3, *widths)))
        self.mix = nn.Conv2d(96, 96, 3, padding=1)
        self.narrow = nn.Conv2d(96, 2 * LatentDiffusion.width, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images
        for down in self.downs:
            x = functional.leaky_relu(down(x), 0.2)
        x = x + functional.leaky_relu(self.mix(x), 0.2)
        mean, spread = self.narrow(x).float().chunk(2, 1)
        return mean, spread.clamp(-10, 2)

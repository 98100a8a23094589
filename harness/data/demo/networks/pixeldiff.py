"""Diffusion over pixels, four by four at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.data.demo.networks.diffusion import UNet, denoise, levels, sample
from harness.data.demo.networks.texture import SIZE, normal


class PixelDiffusion(nn.Module):
    """Diffusion over the picture itself (DDPM, Ho et al. 2020; preconditioned as EDM, Karras et al. 2022).

    *Deviation*: the U-Net sees blocks of 4x4 pixels as channels, a thirty-second of the picture a side, which makes it
    cheap enough for a CPU. There is no grain part: grain is in the data that the diffusion learns.
    """

    block, steps, spread = 4, 16, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.denoiser = UNet(3 * self.block**2, (64, 72, 72))

    def clean(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Pictures `[B, 3, 128, 128]` expected behind noisy ones, `sigma` `[B]`."""

        def blocks(pixels: Tensor, level: Tensor) -> Tensor:
            found = self.denoiser(functional.pixel_unshuffle(pixels, self.block), level)
            return functional.pixel_shuffle(found, self.block)

        return denoise(blocks, x, sigma, self.spread)

    def sample(self, rng: np.random.Generator) -> Tensor:
        """A picture `[3, 128, 128]`."""
        sigmas = levels(self.steps, 0.006, 40.0)
        start = normal(rng, 1, 3, SIZE, SIZE) * sigmas[0]
        # Ancestral: without fresh noise the few steps leave three times the grain of photographs.
        return sample(lambda x, sigma: self.clean(x, torch.tensor([sigma])), start, sigmas, rng)[0]

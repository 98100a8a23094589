"""What the two diffusion models share: a small U-Net, its preconditioning, and the sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.data.demo.networks.texture import normal

_EMBEDDING = 96


class _Block(nn.Module):
    """Two normalised convolutions round a skip, scaled and shifted by the noise level's embedding."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inside), nn.GroupNorm(8, outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.level = nn.Linear(_EMBEDDING, 2 * outside)
        self.skip = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.level(level)[:, :, None, None].chunk(2, 1)
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y) * (1 + scale) + shift))
        return self.skip(x) + y


class _Attention(nn.Module):
    """Self-attention over all places, four heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.into, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.into(self.norm(x)).flatten(2).unflatten(1, (3, 4, -1)).transpose(3, 4).unbind(1)
        seen = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(seen.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))


class UNet(nn.Module):
    """Convolutional U-Net: one block a resolution on the way down and on the way up, attention where it is coarsest."""

    def __init__(self, channels: int, widths: tuple[int, ...], frequencies: int = 16) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(-1.5, 2.5, frequencies)))
        self.embed = nn.Sequential(nn.Linear(2 * frequencies, _EMBEDDING), nn.SiLU(), nn.Linear(_EMBEDDING, _EMBEDDING))
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        inside = (widths[0], *widths[:-1])
        self.downs = nn.ModuleList(_Block(a, b) for a, b in zip(inside, widths, strict=True))
        self.attention = _Attention(widths[-1])
        self.middle = _Block(widths[-1], widths[-1])
        self.ups = nn.ModuleList(
            _Block(below + width, width) for below, width in zip((*widths[1:], widths[-1]), widths, strict=True)
        )
        self.norm = nn.GroupNorm(8, widths[0])
        self.last = nn.Conv2d(widths[0], channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        """`[B, C, H, W]` for `x` of that shape and `noise_level` `[B]` (a quarter of the logarithm of sigma)."""
        angles = noise_level[:, None] * self.get_buffer("frequencies") * 4
        level = functional.silu(self.embed(torch.cat([angles.sin(), angles.cos()], 1)))
        x = self.first(x)
        kept: list[Tensor] = []
        for index, down in enumerate(self.downs):
            x = down(functional.avg_pool2d(x, 2) if index else x, level)
            kept.append(x)
        x = self.middle(self.attention(x), level)
        for index in reversed(range(len(kept))):
            x = self.ups[index](torch.cat([x, kept[index]], 1), level)
            if index:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.last(functional.silu(self.norm(x)))


def denoise(network: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, spread: float) -> Tensor:
    """The clean picture expected behind `x` `[B, C, H, W]` = picture + `sigma` `[B]` times normal noise.

    `spread` is the standard deviation of the data. Preconditioning of Karras et al. 2022 (EDM), table 1.
    """
    s = sigma[:, None, None, None]
    total = (s**2 + spread**2).sqrt()
    found = network(x / total, sigma.log() / 4).float()
    return x * (spread / total) ** 2 + found * (s * spread / total)


def levels(steps: int, lowest: float, highest: float) -> list[float]:
    """Noise levels from `highest` to `lowest`, then 0 (EDM, equation 5, rho = 7)."""
    high, low = highest ** (1 / 7), lowest ** (1 / 7)
    return [(high + index / (steps - 1) * (low - high)) ** 7 for index in range(steps)] + [0.0]


def sample(
    clean: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: list[float], rng: np.random.Generator | None = None
) -> Tensor:
    """Follows the diffusion back from `x` (noise times `sigmas[0]`) to a picture.

    Without `rng` by DPM-Solver++(2M) (Lu et al. 2022, with sigma as time): its first order is DDIM, the second uses
    the step before. With `rng` by ancestral steps (Ho et al. 2020), which remove more noise than they should and put
    fresh noise in its place.
    """
    before: tuple[Tensor, float] | None = None
    for now, then in pairwise(sigmas):
        found = clean(x, now)
        if rng is not None:
            fresh = then * (1 - (then / now) ** 2) ** 0.5
            x = found + (x - found) * ((then**2 - fresh**2) ** 0.5 / now) + fresh * normal(rng, *x.shape)
            continue
        used = found
        if before is not None and then > 0:
            previous, above = before
            used = found + (found - previous) * (math.log(now / then) / (2 * math.log(above / now)))
        x = used + (x - used) * (then / now)
        before = (found, now)
    return x

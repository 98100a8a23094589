"""An autoencoder with a code book, a prior over its codes, and the encoder that trains it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.data.demo.networks.texture import Grain, TexturePrior, normal


class VqAutoencoder(nn.Module):
    """An autoencoder whose 8x8 latents come from a code book, and a recurrent prior over the codes.

    After VQ-VAE (van den Oord et al. 2017) and, for the decoder's adversarial finish, VQGAN (Esser et al. 2021); the
    prior is a gated recurrent network in raster order that also sees the codes above and above right, small enough to
    sample in milliseconds.
    """

    codes, width, grid = 384, 32, 8
    _prior_parts = ("embed", "place", "cell", "guess")

    def __init__(self) -> None:
        super().__init__()
        self.book = nn.Parameter(torch.randn(self.codes, self.width) * 0.5)
        widths = (96, 64, 48, 24)
        self.widen = nn.Conv2d(self.width, 96, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise((96, *widths)))
        self.mix = nn.Conv2d(96, 96, 3, padding=1)
        self.grain = Grain(24, 8)
        self.fine = nn.Conv2d(24, 32, 3, padding=1)
        self.shuffle = nn.Conv2d(32, 12, 3, padding=1)
        self.prior = TexturePrior()
        hidden = 192
        self.embed_left = nn.Embedding(self.codes + 1, 48)
        self.embed_above = nn.Embedding(self.codes + 1, 48)
        self.embed_beside = nn.Embedding(self.codes + 1, 32)
        self.place = nn.Parameter(torch.randn(self.grid**2, 32) * 0.1)
        self.cell = nn.GRU(160, hidden, batch_first=True)
        self.guess = nn.Linear(hidden, self.codes)

    def parts(self, prior: bool) -> list[nn.Parameter]:
        """The parameters of the prior over codes, or those of the decoder with its code book."""
        return [p for name, p in self.named_parameters() if name.startswith(self._prior_parts) == prior]

    def decode(self, latents: Tensor, measures: Tensor, noise: Tensor) -> Tensor:
        """Pictures for quantised latents `[B, 32, 8, 8]`, wanted texture `[B, 12]`, noise `[B, 8, 64, 64]`."""
        x = functional.leaky_relu(self.widen(latents), 0.2)
        x = x + functional.leaky_relu(self.mix(x), 0.2)
        for index, block in enumerate(self.blocks):
            x = functional.leaky_relu(block(x), 0.2)
            if index < 3:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        x = functional.leaky_relu(self.fine(self.grain(x, self.prior(measures), noise)), 0.2)
        return torch.tanh(functional.pixel_shuffle(self.shuffle(x), 2))

    def context(self, codes: Tensor) -> Tensor:
        """The prior's input `[B, 64, 160]` for codes `[B, 64]`: neighbours left, above and above right, place."""
        start = codes.new_full((len(codes), 1), self.codes)
        left = torch.cat([start, codes[:, :-1]], 1)
        above = torch.cat([start.expand(-1, self.grid), codes[:, : -self.grid]], 1)
        beside = functional.pad(above.unflatten(1, (self.grid, self.grid))[..., 1:], (0, 1), value=self.codes)
        place = self.place.expand(len(codes), -1, -1)
        return torch.cat(
            [self.embed_left(left), self.embed_above(above), self.embed_beside(beside.flatten(1)), place], 2
        )

    def predict(self, codes: Tensor) -> Tensor:
        """Logits `[B, 64, codes]` of each code given those before it."""
        return self.guess(self.cell(self.context(codes))[0])

    def sample_codes(self, uniforms: Tensor, temperature: float = 0.9) -> Tensor:
        """Codes `[1, 64]` drawn in raster order by the inverse of the cumulative probabilities; `uniforms` [64]."""
        drawn = torch.full((1, self.grid**2), self.codes, dtype=torch.long)
        state: Tensor | None = None
        for index in range(self.grid**2):
            output, state = self.cell(self.context(drawn)[:, index : index + 1], state)
            chance = torch.softmax(self.guess(output[:, 0]).double() / temperature, 1).cumsum(1)[0]
            drawn[0, index] = int(
                torch.searchsorted(chance, uniforms[index : index + 1] * chance[-1]).clamp(max=self.codes - 1)
            )
        return drawn

    def latents(self, codes: Tensor) -> Tensor:
        """Quantised latents `[B, 32, 8, 8]` of codes `[B, 64]`."""
        return self.book[codes].transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def sample(self, rng: np.random.Generator) -> Tensor:
        """A picture `[3, 128, 128]`."""
        codes = self.sample_codes(torch.from_numpy(rng.random(self.grid**2)))
        return self.decode(self.latents(codes), self.prior.draw(rng), normal(rng, 1, self.grain.maps, 64, 64))[0]


class VqEncoder(nn.Module):
    """Pictures to latents `[B, 32, 8, 8]`; needed in training only, so not among the committed weights."""

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 48, 72, 96)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise((3, *widths)))
        self.mix = nn.Conv2d(96, 96, 3, padding=1)
        self.narrow = nn.Conv2d(96, VqAutoencoder.width, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for down in self.downs:
            x = functional.leaky_relu(down(x), 0.2)
        x = x + functional.leaky_relu(self.mix(x), 0.2)
        return self.narrow(x)

"""The demo's two neural generators as torch modules: a transposed-convolution GAN and a VQ autoencoder.

Images are `[B, 3, 128, 128]` float32 in [-1, 1]. Both are small (under 1M parameters to sample from): what
matters is that their pictures carry the traces of their family: transposed convolutions' checkerboard, a
vector quantiser's patches.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE = 128


class ConvGan(nn.Module):
    """Noise to faces by transposed convolutions alone (the family of DCGAN, Radford et al. 2016).

    The trunk makes 64-pixel features; `small` reads a 64-pixel picture from them (used in training only), the
    last transposed convolution makes the 128-pixel picture and takes in a map of noise for its grain.
    """

    latent = 96

    def __init__(self) -> None:
        super().__init__()
        widths = (160, 112, 72, 48, 32)
        self.first = nn.Linear(self.latent, widths[0] * 16)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False) for a, b in pairwise(widths))
        self.small = nn.Conv2d(widths[-1], 3, 3, padding=1)
        self.last = nn.ConvTranspose2d(widths[-1], 20, 4, 2, 1)
        self.grain = nn.Parameter(torch.full((20, 1, 1), 0.05))
        self.colour = nn.Conv2d(20, 3, 3, padding=1)
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

    def finish(self, features: Tensor, noise: Tensor) -> Tensor:
        """The 128-pixel picture for trunk features and a noise map `[B, 1, 128, 128]`."""
        x = functional.leaky_relu(self.last(features) + self.grain * noise, 0.2)
        return torch.tanh(self.colour(x))

    def forward(self, z: Tensor, noise: Tensor) -> Tensor:
        return self.finish(self.trunk(self.draw(z)), noise)


class Critic(nn.Module):
    """Real or generated: plain strided convolutions, read once for the whole 64-pixel picture or at every patch."""

    def __init__(self, widths: tuple[int, ...], whole: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise((3, *widths)):
            layers += [nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4 if whole else 3))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


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


class VqAutoencoder(nn.Module):
    """An autoencoder whose 8x8 latents come from a code book, and a recurrent prior over the codes.

    After VQ-VAE (van den Oord et al. 2017); the prior is a gated recurrent network in raster order that also
    sees the code above, small enough to sample in milliseconds. *Deviation*: no adversarial term.
    """

    codes, width, grid = 384, 32, 8

    def __init__(self) -> None:
        super().__init__()
        self.book = nn.Parameter(torch.randn(self.codes, self.width) * 0.5)
        widths = (96, 64, 48, 24)
        self.widen = nn.Conv2d(self.width, 96, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise((96, *widths)))
        self.mix = nn.Conv2d(96, 96, 3, padding=1)
        self.shuffle = nn.Conv2d(24, 12, 3, padding=1)
        hidden = 176
        self.hidden = hidden
        self.embed_left = nn.Embedding(self.codes + 1, 48)
        self.embed_above = nn.Embedding(self.codes + 1, 48)
        self.place = nn.Parameter(torch.randn(self.grid**2, 32) * 0.1)
        self.cell = nn.GRU(128, hidden, batch_first=True)
        self.guess = nn.Linear(hidden, self.codes)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures for quantised latents `[B, 32, 8, 8]`."""
        x = functional.leaky_relu(self.widen(latents), 0.2)
        x = x + functional.leaky_relu(self.mix(x), 0.2)
        for index, block in enumerate(self.blocks):
            x = functional.leaky_relu(block(x), 0.2)
            if index < 3:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return torch.tanh(functional.pixel_shuffle(self.shuffle(x), 2))

    def context(self, codes: Tensor) -> Tensor:
        """The prior's input `[B, 64, 128]` for codes `[B, 64]`: left and upper neighbour, place."""
        start = codes.new_full((len(codes), 1), self.codes)
        left = torch.cat([start, codes[:, :-1]], 1)
        above = torch.cat([start.expand(-1, self.grid), codes[:, : -self.grid]], 1)
        place = self.place.expand(len(codes), -1, -1)
        return torch.cat([self.embed_left(left), self.embed_above(above), place], 2)

    def predict(self, codes: Tensor) -> Tensor:
        """Logits `[B, 64, codes]` of each code given those before it."""
        return self.guess(self.cell(self.context(codes))[0])

    def sample_codes(self, uniforms: Tensor, temperature: float = 0.9) -> Tensor:
        """Codes `[1, 64]` drawn in raster order by the inverse of the cumulative probabilities; `uniforms` [64]."""
        drawn = torch.full((1, self.grid**2), self.codes, dtype=torch.long)
        state: Tensor | None = None
        for index in range(self.grid**2):
            left = drawn[:, index - 1] if index else torch.full((1,), self.codes)
            above = drawn[:, index - self.grid] if index >= self.grid else torch.full((1,), self.codes)
            step = torch.cat([self.embed_left(left), self.embed_above(above), self.place[index : index + 1]], 1)
            output, state = self.cell(step[:, None], state)
            chance = torch.softmax(self.guess(output[:, 0]).double() / temperature, 1).cumsum(1)[0]
            drawn[0, index] = int(
                torch.searchsorted(chance, uniforms[index : index + 1] * chance[-1]).clamp(max=self.codes - 1)
            )
        return drawn

    def latents(self, codes: Tensor) -> Tensor:
        """Quantised latents `[B, 32, 8, 8]` of codes `[B, 64]`."""
        return self.book[codes].transpose(1, 2).unflatten(2, (self.grid, self.grid))


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

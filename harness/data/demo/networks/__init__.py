"""The demo's four neural generators as torch modules, one file a family.

Images are `[B, 3, 128, 128]` float32 in [-1, 1]. Each network has under 1.05 M parameters to sample from, so its
weights take under 2 MB in float16. What matters is that their pictures carry the traces of their family: transposed
convolutions, a vector quantiser and pixel shuffling, a decoder of diffused latents, diffusion over blocks of pixels.
"""

from __future__ import annotations

from harness.data.demo.networks.convgan import ConvGan
from harness.data.demo.networks.latentdiff import LatentDiffusion
from harness.data.demo.networks.pixeldiff import PixelDiffusion
from harness.data.demo.networks.vqvae import VqAutoencoder

Generator = ConvGan | VqAutoencoder | LatentDiffusion | PixelDiffusion

NETWORKS: dict[str, type[Generator]] = {
    "convgan": ConvGan,
    "vqvae": VqAutoencoder,
    "latentdiff": LatentDiffusion,
    "pixeldiff": PixelDiffusion,
}
"""Name of a generator → its network; each has `sample(rng) -> [3, 128, 128]`."""

__all__ = ["NETWORKS", "Generator"]

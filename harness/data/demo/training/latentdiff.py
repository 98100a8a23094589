"""Training of `latentdiff`: autoencoder, then decoder against a critic, then the denoiser of its latents."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from harness.data.demo.networks.latentdiff import LatentDiffusion, LatentEncoder
from harness.data.demo.networks.texture import SIZE, texture
from harness.data.demo.training.common import (
    Log,
    Stage,
    average_into,
    batches,
    channels_last,
    finish,
    measure,
    mixed,
    picture_loss,
)  # fmt: skip
from harness.data.demo.training.pixeldiff import train_denoiser

STEPS = {"autoencoder": 1000, "finish": 600, "denoiser": 4000}


def train(photographs: Tensor, scale: float, seed: int, log: Log) -> LatentDiffusion:
    """The trained decoder and denoiser; `scale` 1 is the committed one's number of steps."""
    torch.manual_seed(seed + 2)
    draws = torch.Generator().manual_seed(seed + 2)
    network, encoder = channels_last(LatentDiffusion()), channels_last(LatentEncoder())
    network.prior.fit(measure(photographs))
    _autoencoder(network, encoder, photographs, scale, draws, log)

    def make(real: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            mean, spread = encoder(real)
            latents = mean + torch.randn(mean.shape, generator=draws) * torch.exp(0.5 * spread)
        noise = torch.randn(len(real), network.grain.maps, SIZE, SIZE, generator=draws)
        return network.decode(latents, wanted, noise), functional.avg_pool2d(real, 2)

    average = copy.deepcopy(network)
    stage = Stage("latentdiff finish", STEPS["finish"] * scale, log)
    finish(
        stage, photographs, network.parts(decoder=True), make,
        lambda: average_into(average, network, stage.done, 0.995), draws,
    )  # fmt: skip
    latents = _latents(encoder, photographs)
    for part in (network, average):
        part.get_buffer("centre").copy_(latents.mean((0, 1, 3, 4))[:, None, None])
        part.get_buffer("scale").copy_(latents.std((0, 1, 3, 4))[:, None, None])
    latents = (latents - network.get_buffer("centre")) / network.get_buffer("scale")
    train_denoiser(
        Stage("latentdiff denoiser", STEPS["denoiser"] * scale, log),
        network.denoiser,
        average.denoiser,
        list(network.denoiser.parameters()),
        _latent_batches(latents, 32, draws),
        network.clean,
        spread=1.0,
        noise=(-0.4, 1.3),
        rate=8e-4,
        draws=draws,
    )
    return average


def _autoencoder(
    network: LatentDiffusion,
    encoder: LatentEncoder,
    photographs: Tensor,
    scale: float,
    draws: torch.Generator,
    log: Log,
) -> None:
    optimiser = torch.optim.Adam([*network.parts(decoder=True), *encoder.parameters()])
    stage = Stage("latentdiff autoencoder", STEPS["autoencoder"] * scale, log)
    for real in batches(photographs, 16, draws):
        stage.rate(optimiser, 1e-3)
        noise = torch.randn(len(real), network.grain.maps, SIZE, SIZE, generator=draws)
        with mixed():
            mean, spread = encoder(real)
            latents = mean + torch.randn(mean.shape, generator=draws) * torch.exp(0.5 * spread)
            made = network.decode(latents, texture(real), noise)
        information = 0.5 * (mean**2 + spread.exp() - 1 - spread).sum((1, 2, 3)).mean()
        loss = picture_loss(made.float(), real) + 2e-5 * information
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if not stage.step(loss=loss.item(), nats=information.item()):
            break


@torch.no_grad()
def _latents(encoder: LatentEncoder, photographs: Tensor) -> Tensor:
    """Mean latents of each photograph and its mirror image, `[N, 2, 4, 16, 16]`."""
    found: list[Tensor] = []
    for part in photographs.split(64):
        images = part.float() / 127.5 - 1
        with mixed():
            found.append(torch.stack([encoder(x)[0].float() for x in (images, images.flip(3))], 1))
    return torch.cat(found)


def _latent_batches(latents: Tensor, size: int, draws: torch.Generator) -> Iterator[Tensor]:
    flat = latents.flatten(0, 1)
    while True:
        batch = flat[torch.randint(len(flat), (size,), generator=draws)]
        yield batch.contiguous(memory_format=torch.channels_last)

"""Training of `vqvae`: autoencoder with code book, then decoder against a critic, then the prior over codes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.data.demo.networks.texture import texture
from harness.data.demo.networks.vqvae import VqAutoencoder, VqEncoder
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

STEPS = {"autoencoder": 2000, "finish": 600, "prior": 1000}


def train(photographs: Tensor, scale: float, seed: int, log: Log) -> VqAutoencoder:
    """The trained decoder with code book and prior; `scale` 1 is the committed one's number of steps."""
    torch.manual_seed(seed + 1)
    draws = torch.Generator().manual_seed(seed + 1)
    network, encoder = channels_last(VqAutoencoder()), channels_last(VqEncoder())
    network.prior.fit(measure(photographs))
    _autoencoder(network, encoder, photographs, scale, draws, log)
    average = copy.deepcopy(network)
    stage = Stage("vqvae finish", STEPS["finish"] * scale, log)

    def make(real: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            latents = network.latents(_nearest(encoder(real), network.book))
        noise = torch.randn(len(real), network.grain.maps, 64, 64, generator=draws)
        return network.decode(latents, wanted, noise), functional.avg_pool2d(real, 2)

    decoder = [p for p in network.parts(prior=False) if p is not network.book]
    finish(stage, photographs, decoder, make, lambda: average_into(average, network, stage.done, 0.995), draws)
    _prior(average, encoder, photographs, scale, draws, log)
    return average


def _nearest(latents: Tensor, book: Tensor) -> Tensor:
    """Codes `[B, 64]` of latents `[B, C, 8, 8]`: the nearest vectors of the book `[K, C]`."""
    flat = latents.float().flatten(2).transpose(1, 2)
    return (book.pow(2).sum(1) - 2 * flat @ book.T).argmin(2)


def _autoencoder(
    network: VqAutoencoder, encoder: VqEncoder, photographs: Tensor, scale: float, draws: torch.Generator, log: Log
) -> None:
    """Straight-through quantisation (commitment 0.25); codes that nobody uses are moved onto random latents."""
    optimiser = torch.optim.Adam([*network.parts(prior=False), *encoder.parameters()])
    used = torch.zeros(network.codes)
    stage = Stage("vqvae autoencoder", STEPS["autoencoder"] * scale, log)
    for real in batches(photographs, 16, draws):
        stage.rate(optimiser, 8e-4)
        with mixed():
            latents = encoder(real)
        latents = latents.float()
        codes = _nearest(latents.detach(), network.book.detach())
        used += torch.bincount(codes.flatten(), minlength=network.codes)
        quantised = network.latents(codes)
        noise = torch.randn(len(real), network.grain.maps, 64, 64, generator=draws)
        with mixed():
            made = network.decode(latents + (quantised - latents).detach(), texture(real), noise)
        apart = functional.mse_loss(quantised, latents.detach())
        commitment = functional.mse_loss(latents, quantised.detach())
        loss = picture_loss(made.float(), real) + apart + 0.25 * commitment
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if stage.done % 40 == 39 and stage.done < 0.7 * stage.steps:
            idle = used < 2
            flat = latents.detach().flatten(2).transpose(1, 2).flatten(0, 1)
            with torch.no_grad():
                network.book[idle] = flat[torch.randint(len(flat), (int(idle.sum()),), generator=draws)]
            used.zero_()
        if not stage.step(loss=loss.item(), apart=apart.item(), codes=len(codes.unique())):
            break


def _prior(
    network: VqAutoencoder, encoder: VqEncoder, photographs: Tensor, scale: float, draws: torch.Generator, log: Log
) -> None:
    """Cross-entropy; the state that predicts 5 % held-out photographs best is kept."""
    codes: list[Tensor] = []
    with torch.no_grad():
        for part in photographs.split(64):
            images = part.float() / 127.5 - 1
            codes += [torch.stack([_nearest(encoder(x), network.book) for x in (images, images.flip(3))], 1)]
    every = torch.cat(codes)
    held = every[: max(1, len(every) // 20)].flatten(0, 1)
    train = every[len(every) // 20 :].flatten(0, 1)
    parameters = network.parts(prior=True)
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.02)
    stage = Stage("vqvae prior", STEPS["prior"] * scale, log)
    best, kept, more = float("inf"), copy.deepcopy(network.state_dict()), True
    while more:
        stage.rate(optimiser, 3e-3)
        batch = train[torch.randint(len(train), (96,), generator=draws)]
        # One in twenty of the neighbours are wrong in training, as they will be when the prior follows its own draws.
        wrong = torch.rand(batch.shape, generator=draws) < 0.05
        noisy = torch.where(wrong, torch.randint(network.codes, batch.shape, generator=draws), batch)
        loss = functional.cross_entropy(network.predict(noisy).transpose(1, 2), batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        more = stage.step(train=loss.item())
        if stage.done % 100 == 0 or not more:
            with torch.no_grad():
                score = float(functional.cross_entropy(network.predict(held).transpose(1, 2), held))
            log(f"vqvae prior held out {score:.3f}")
            if score < best:
                best, kept = score, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)

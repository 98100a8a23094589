"""Training of `convgan`: the trunk at 64 pixels, then the last transposed convolution and its grain at 128.

The trunk is held to photographs by an encoder (a variational autoencoder, L1), alone for a third of the steps; then a
critic of whole pictures judges what it makes from noise too (hinge loss, Adam (0.5, 0.99), batch 24): a plain GAN
showed only blurs after 600 steps. Noise becomes latents by a Gaussian fitted to the photographs' codes.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional

from harness.data.demo.networks.convgan import ConvEncoder, ConvGan
from harness.data.demo.networks.texture import SIZE, Critic
from harness.data.demo.training.common import (
    Log,
    Stage,
    average_into,
    batches,
    channels_last,
    critic_step,
    finish,
    measure,
    mixed,
    veil,
)  # fmt: skip

STEPS = {"alone": 800, "trunk": 2400, "finish": 600}


class _Moments:
    """Running mean and covariance of the codes of photographs, handed on to a generator's `shift` and `shape`."""

    def __init__(self, latent: int) -> None:
        self.mean, self.covariance = torch.zeros(latent), torch.eye(latent)

    @torch.no_grad()
    def see(self, codes: Tensor, network: ConvGan) -> None:
        self.mean.lerp_(codes.mean(0), 0.01)
        apart = codes - self.mean
        self.covariance.lerp_(apart.T @ apart / len(codes), 0.01)
        network.get_buffer("shift").copy_(self.mean)
        network.get_buffer("shape").copy_(torch.linalg.cholesky(self.covariance + 1e-4 * torch.eye(len(self.mean))))


def train(photographs: Tensor, scale: float, seed: int, log: Log) -> ConvGan:
    """The trained generator; `scale` 1 is the committed one's number of steps."""
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    network = _trunk(photographs, scale, draws, log)
    network.prior.fit(measure(photographs))
    average = copy.deepcopy(network.eval())
    stage = Stage("convgan finish", STEPS["finish"] * scale, log)

    def make(real: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            features = network.trunk(network.draw(torch.randn(len(real), network.latent, generator=draws)))
            coarse = torch.tanh(network.small(features))
        noise = torch.randn(len(real), network.grain.maps, SIZE, SIZE, generator=draws)
        return network.finish(features, wanted, noise), coarse

    last = [*network.last.parameters(), *network.grain.parameters(), *network.colour.parameters()]
    finish(stage, photographs, last, make, lambda: average_into(average, network, stage.done, 0.995), draws)
    return average


def _trunk(photographs: Tensor, scale: float, draws: torch.Generator, log: Log) -> ConvGan:
    network, encoder = channels_last(ConvGan()), channels_last(ConvEncoder())
    average = copy.deepcopy(network)
    small = torch.cat(
        [functional.avg_pool2d(part.float(), 2).round().to(torch.uint8) for part in photographs.split(256)]
    )
    critic = channels_last(Critic((32, 64, 128, 160), whole=True))
    optimiser = torch.optim.Adam([*network.parameters(), *encoder.parameters()], betas=(0.5, 0.99))
    against = torch.optim.Adam(critic.parameters(), betas=(0.5, 0.99))
    stage, alone = Stage("convgan trunk", STEPS["trunk"] * scale, log), round(STEPS["alone"] * scale)
    moments = _Moments(network.latent)
    for real in batches(small, 24, draws):
        stage.rate(optimiser, 1e-3 if stage.done < alone else 3e-4)
        stage.rate(against, 3e-4)
        with mixed():
            mean, spread = encoder(real)
            codes = mean + torch.randn(mean.shape, generator=draws) * torch.exp(0.5 * spread)
            copied = torch.tanh(network.small(network.trunk(codes)))
        moments.see(codes.detach(), network)
        difference = functional.l1_loss(copied.float(), real)
        information = 0.5 * (mean**2 + spread.exp() - 1 - spread).sum(1).mean()
        loss = 10 * (difference + 0.3 * information / real[0].numel())
        judged = 0.0
        if stage.done >= alone:
            with mixed():
                latents = network.draw(torch.randn(mean.shape, generator=draws))
                fake = torch.tanh(network.small(network.trunk(latents))).float()
            strength = 0.2 * (1 - stage.done / stage.steps) + 0.03
            judged = critic_step(critic, against, veil(real, strength, draws), veil(fake.detach(), strength, draws))
            with mixed():
                loss = loss - 0.3 * critic(veil(fake, strength, draws)).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        average_into(average, network, stage.done, 0.995)
        if not stage.step(copied=difference.item(), nats=information.item(), critic=judged):
            break
    return average

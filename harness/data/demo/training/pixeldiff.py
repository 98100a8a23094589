"""Training of `pixeldiff`: the denoiser on photographs under noise of every strength."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from harness.data.demo.networks.pixeldiff import PixelDiffusion
from harness.data.demo.training.common import Log, Stage, average_into, batches, channels_last, mixed

STEPS = 3600


def train_denoiser(
    stage: Stage,
    network: nn.Module,
    average: nn.Module,
    parameters: list[nn.Parameter],
    data: Iterator[Tensor],
    clean: Callable[[Tensor, Tensor], Tensor],
    *,
    spread: float,
    noise: tuple[float, float],
    rate: float,
    draws: torch.Generator,
) -> None:
    """Teaches `clean` to find what lies behind noise; the logarithm of sigma is normal with mean and deviation `noise`.

    Adam (0.9, 0.99), gradients clipped to norm 1, losses weighted as in EDM (Karras et al. 2022, table 1); `average`
    follows `network`.
    """
    optimiser = torch.optim.Adam(parameters, betas=(0.9, 0.99))
    for real in data:
        stage.rate(optimiser, rate * min(1.0, (stage.done + 1) / 100))
        sigma = (noise[0] + noise[1] * torch.randn(len(real), generator=draws)).exp()
        s = sigma[:, None, None, None]
        noisy = real + s * torch.randn(real.shape, generator=draws)
        with mixed():
            found = clean(noisy, sigma)
        weight = (s**2 + spread**2) / (s * spread) ** 2
        loss = (weight * (found - real) ** 2).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average_into(average, network, stage.done)
        if not stage.step(loss=loss.item()):
            break


def train(photographs: Tensor, scale: float, seed: int, log: Log) -> PixelDiffusion:
    """The trained network; `scale` 1 is the committed one's number of steps."""
    torch.manual_seed(seed + 3)
    draws = torch.Generator().manual_seed(seed + 3)
    network = channels_last(PixelDiffusion())
    average = copy.deepcopy(network)
    train_denoiser(
        Stage("pixeldiff", STEPS * scale, log),
        network,
        average,
        list(network.parameters()),
        batches(photographs, 16, draws),
        network.clean,
        spread=network.spread,
        noise=(-1.0, 1.7),
        rate=8e-4,
        draws=draws,
    )
    return average

"""Trains the demo's generators from scratch on simulated photographs, on a CPU, in minutes.

    python -m harness.data.demo.train_generators --out DIR --minutes 25

Both learn from 4,096 photographs of people who are not in the corpus (series "generator-training"), 128 pixels,
through the corpus's JPEG encoder, and their mirror images. Convolutions run in bfloat16 where the processor has it.

- `convgan`: first the trunk at 64 pixels: an encoder holds it to photographs (a variational autoencoder, L1), alone for
  a third of the steps, then a critic of whole pictures judges what it makes from noise too (hinge loss, Adam (0.5,
  0.99), batch 32): a plain GAN showed only blurs after 600 steps. Noise becomes latents by a Gaussian fitted to the
  photographs' codes. Then the last transposed convolution at 128 pixels against a critic of patches, held to the
  trunk's own 64-pixel picture. Kept: an average of the weights.
- `vqvae`: L1 at three scales and on differences of neighbours, straight-through quantisation (commitment 0.25),
  codes that nobody uses are moved onto random latents; then the prior by cross-entropy, the state that predicts 5 %
  held-out photographs best is kept.

The seed fixes photographs, initial weights, batches and steps (`STEPS`, scaled by --minutes); another machine's
arithmetic still leads to other, equally good weights.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from harness.data.demo.corpus import encode, take_photograph
from harness.data.demo.generators import GENERATORS
from harness.data.demo.networks import SIZE, ConvEncoder, ConvGan, Critic, VqAutoencoder, VqEncoder

NOMINAL_MINUTES = 25.0
STEPS = {"alone": 600, "trunk": 1800, "finish": 600, "autoencoder": 3000, "prior": 1500}
"""Steps of the stages behind the committed weights."""

SERIES = "generator-training"
Log = Callable[[str], None]


def _one(index: int, seed: int) -> np.ndarray:
    image = take_photograph(seed, index, SIZE, series=SERIES).image
    return np.asarray(Image.open(BytesIO(encode(image))))


def training_photographs(count: int, seed: int, workers: int, log: Log) -> Tensor:
    """`[count, 3, 128, 128]` uint8, photographs of the series that the corpus does not show."""
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for index, image in enumerate(pool.map(partial(_one, seed=seed), range(count), chunksize=64)):
            images[index] = image
            if (index + 1) % 1024 == 0:
                log(f"photographs {index + 1}/{count}")
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


class Stage:
    """A stage of training with a set number of steps: counts them, anneals the rate, tells how it goes."""

    def __init__(self, name: str, steps: int, log: Log) -> None:
        self.name, self.steps, self.log, self.done = name, max(1, steps), log, 0

    def learning_rate(self, full: float) -> float:
        """`full`, falling linearly towards zero over the last 40 % of the stage."""
        return full * min(1.0, (1.01 - self.done / self.steps) / 0.4)

    def step(self, **values: float) -> bool:
        """Counts a step; True while there are more to do. Every hundredth is logged with its values."""
        self.done += 1
        if self.done % 100 == 0:
            shown = " ".join(f"{key} {value:.3f}" for key, value in values.items())
            self.log(f"{self.name} {self.done}/{self.steps} {shown}")
        return self.done < self.steps


def _batches(photographs: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches `[size, 3, H, W]` float32 in [-1, 1], half of them mirrored, channels last."""
    while True:
        index = torch.randint(len(photographs), (size,), generator=generator)
        batch = photographs[index].float() / 127.5 - 1
        mirrored = torch.rand(size, generator=generator) < 0.5
        batch[mirrored] = batch[mirrored].flip(3)
        yield batch.contiguous(memory_format=torch.channels_last)


_Network = TypeVar("_Network", bound=nn.Module)


def _channels_last(network: _Network) -> _Network:
    """The network with its kernels laid out as oneDNN runs them fastest (in place)."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def _mixed() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _critic_step(critic: nn.Module, optimiser: torch.optim.Optimizer, real: Tensor, fake: Tensor) -> float:
    with _mixed():
        loss = functional.relu(1 - critic(real)).mean() + functional.relu(1 + critic(fake)).mean()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.item()


def _veil(images: Tensor, strength: float, draws: torch.Generator) -> Tensor:
    """The pictures under noise, for a critic that must not tell real from generated by the last grey level."""
    return images + strength * torch.randn(images.shape, generator=draws)


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


def _average_into(average: nn.Module, network: nn.Module, keep: float) -> None:
    with torch.no_grad():
        for (_, a), (_, b) in zip(average.state_dict().items(), network.state_dict().items(), strict=True):
            if a.is_floating_point():
                a.lerp_(b, 1 - keep)
            else:
                a.copy_(b)


def train_convgan(photographs: Tensor, scale: float, seed: int, log: Log) -> ConvGan:
    """The trained generator; `scale` 1 is the committed one's number of steps."""
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    network, encoder = _channels_last(ConvGan()), _channels_last(ConvEncoder())
    average = copy.deepcopy(network)
    small = functional.interpolate(photographs.float(), scale_factor=0.5, mode="area").round().to(torch.uint8)
    critic = _channels_last(Critic((32, 64, 128, 160), whole=True))
    optimiser = torch.optim.Adam([*network.parameters(), *encoder.parameters()], betas=(0.5, 0.99))
    against = torch.optim.Adam(critic.parameters(), betas=(0.5, 0.99))
    stage, alone = Stage("convgan trunk", round(STEPS["trunk"] * scale), log), round(STEPS["alone"] * scale)
    moments = _Moments(network.latent)
    for real in _batches(small, 32, draws):
        _set_rate(optimiser, stage.learning_rate(1e-3 if stage.done < alone else 3e-4))
        _set_rate(against, stage.learning_rate(3e-4))
        with _mixed():
            mean, spread = encoder(real)
            noise = torch.randn(mean.shape, generator=draws)
            codes = mean + noise * torch.exp(0.5 * spread)
            copied = torch.tanh(network.small(network.trunk(codes)))
        moments.see(codes.detach(), network)
        difference = functional.l1_loss(copied.float(), real)
        information = 0.5 * (mean**2 + spread.exp() - 1 - spread).sum(1).mean()
        loss = 10 * (difference + 0.3 * information / real[0].numel())
        judged = 0.0
        if stage.done >= alone:
            with _mixed():
                latents = network.draw(torch.randn(mean.shape, generator=draws))
                fake = torch.tanh(network.small(network.trunk(latents))).float()
            veil = 0.2 * (1 - stage.done / stage.steps) + 0.03
            judged = _critic_step(critic, against, _veil(real, veil, draws), _veil(fake.detach(), veil, draws))
            with _mixed():
                loss = loss - 0.3 * critic(_veil(fake, veil, draws)).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        _average_into(average, network, 0.99 if stage.done > 100 else 0.9)
        if not stage.step(copied=difference.item(), nats=information.item(), critic=judged):
            break
    return _finish_convgan(average, photographs, scale, draws, log)


def _finish_convgan(network: ConvGan, photographs: Tensor, scale: float, draws: torch.Generator, log: Log) -> ConvGan:
    network.eval()
    last = [*network.last.parameters(), network.grain, *network.colour.parameters()]
    critic = _channels_last(Critic((32, 64, 96), whole=False))
    optimiser = torch.optim.Adam(last, betas=(0.5, 0.99))
    against = torch.optim.Adam(critic.parameters(), betas=(0.5, 0.99))
    average, stage = copy.deepcopy(network), Stage("convgan finish", round(STEPS["finish"] * scale), log)
    for real in _batches(photographs, 24, draws):
        _set_rate(optimiser, stage.learning_rate(1e-3))
        _set_rate(against, stage.learning_rate(4e-4))
        with torch.no_grad(), _mixed():
            features = network.trunk(network.draw(torch.randn(len(real), network.latent, generator=draws)))
            target = torch.tanh(network.small(features)).float()
        with _mixed():
            fake = network.finish(features, torch.randn(len(real), 1, SIZE, SIZE, generator=draws))
        judged = _critic_step(critic, against, _veil(real, 0.03, draws), _veil(fake.detach().float(), 0.03, draws))
        with _mixed():
            loss = -critic(_veil(fake.float(), 0.03, draws)).mean()
        held = functional.l1_loss(functional.avg_pool2d(fake.float(), 2), target)
        optimiser.zero_grad(set_to_none=True)
        (loss + 20 * held).backward()
        optimiser.step()
        _average_into(average, network, 0.99 if stage.done > 100 else 0.9)
        if not stage.step(critic=judged, held=held.item()):
            break
    return average


def _nearest(latents: Tensor, book: Tensor) -> Tensor:
    """Codes `[B, 64]` of latents `[B, C, 8, 8]`: the nearest vectors of the book `[K, C]`."""
    flat = latents.float().flatten(2).transpose(1, 2)
    return (book.pow(2).sum(1) - 2 * flat @ book.T).argmin(2)


def _picture_loss(made: Tensor, real: Tensor) -> Tensor:
    loss = torch.zeros(())
    for scale in range(3):
        a, b = (functional.avg_pool2d(x, 2**scale) if scale else x for x in (made, real))
        loss = loss + functional.l1_loss(a, b)
        loss = (
            loss + functional.l1_loss(a.diff(dim=2), b.diff(dim=2)) + functional.l1_loss(a.diff(dim=3), b.diff(dim=3))
        )
    return loss


def train_vqvae(photographs: Tensor, scale: float, seed: int, log: Log) -> VqAutoencoder:
    """The trained decoder with code book and prior; `scale` 1 is the committed one's number of steps."""
    torch.manual_seed(seed + 1)
    draws = torch.Generator().manual_seed(seed + 1)
    network = _channels_last(VqAutoencoder())
    encoder = _channels_last(VqEncoder())
    decoder = [p for name, p in network.named_parameters() if not name.startswith(("embed", "place", "cell", "guess"))]
    optimiser = torch.optim.Adam([*decoder, *encoder.parameters()])
    used = torch.zeros(network.codes)
    stage = Stage("vqvae autoencoder", round(STEPS["autoencoder"] * scale), log)
    for real in _batches(photographs, 32, draws):
        _set_rate(optimiser, stage.learning_rate(8e-4))
        with _mixed():
            latents = encoder(real)
        latents = latents.float()
        codes = _nearest(latents.detach(), network.book.detach())
        used += torch.bincount(codes.flatten(), minlength=network.codes)
        quantised = network.latents(codes)
        with _mixed():
            made = network.decode(latents + (quantised - latents).detach())
        apart = functional.mse_loss(quantised, latents.detach())
        commitment = functional.mse_loss(latents, quantised.detach())
        loss = _picture_loss(made.float(), real) + apart + 0.25 * commitment
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
    _train_prior(network.eval(), encoder.eval(), photographs, scale, draws, log)
    return network


def _train_prior(
    network: VqAutoencoder, encoder: VqEncoder, photographs: Tensor, scale: float, draws: torch.Generator, log: Log
) -> None:
    codes: list[Tensor] = []
    with torch.no_grad():
        for part in photographs.split(64):
            images = part.float() / 127.5 - 1
            codes += [torch.stack([_nearest(encoder(x), network.book) for x in (images, images.flip(3))], 1)]
    every = torch.cat(codes)
    held = every[: len(every) // 20].flatten(0, 1)
    train = every[len(every) // 20 :].flatten(0, 1)
    prior = [p for name, p in network.named_parameters() if name.startswith(("embed", "place", "cell", "guess"))]
    optimiser = torch.optim.AdamW(prior, weight_decay=0.02)
    stage = Stage("vqvae prior", round(STEPS["prior"] * scale), log)
    best, kept, more = float("inf"), copy.deepcopy(network.state_dict()), True
    while more:
        _set_rate(optimiser, stage.learning_rate(3e-3))
        batch = train[torch.randint(len(train), (96,), generator=draws)]
        # One in twenty of the neighbours are wrong in training, as they will be when the prior follows its own draws.
        noisy = torch.where(
            torch.rand(batch.shape, generator=draws) < 0.05,
            torch.randint(network.codes, batch.shape, generator=draws),
            batch,
        )
        loss = functional.cross_entropy(network.predict(noisy).transpose(1, 2), batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(prior, 1.0)
        optimiser.step()
        more = stage.step(train=loss.item())
        if stage.done % 100 == 0 or not more:
            with torch.no_grad():
                score = float(functional.cross_entropy(network.predict(held).transpose(1, 2), held))
            log(f"vqvae prior held out {score:.3f}")
            if score < best:
                best, kept = score, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)


def save_weights(network: nn.Module, path: Path) -> None:
    """Writes the network as safetensors, float16 but for batch-norm statistics and counters."""
    half = {
        name: (value if "running" in name or not value.is_floating_point() else value.half()).contiguous()
        for name, value in network.state_dict().items()
    }
    save_file(half, path)


def main(arguments: list[str] | None = None) -> None:
    """Command line: trains the generators named (both by default) and writes them to --out."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.data.demo.train_generators",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for NAME.safetensors and training.json")
    parser.add_argument(
        "--minutes",
        type=float,
        default=NOMINAL_MINUTES,
        help="sets the number of steps: about so many minutes on two quiet cores, rendering apart",
    )
    parser.add_argument("--photographs", type=int, default=4096)
    parser.add_argument("--only", choices=("convgan", "vqvae"), help="train one of the two")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--threads", type=int, default=2, help="threads, and processes that render")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    start = time.monotonic()

    def log(line: str) -> None:
        print(f"[{time.monotonic() - start:6.0f} s] {line}", flush=True)

    photographs = training_photographs(options.photographs, options.seed, options.threads, log)
    scale = options.minutes / NOMINAL_MINUTES
    for name in (options.only,) if options.only else GENERATORS:
        train: Callable[[Tensor, float, int, Log], nn.Module] = train_convgan if name == "convgan" else train_vqvae
        save_weights(train(photographs, scale, options.seed, log), options.out / f"{name}.safetensors")
        log(f"wrote {options.out / name}.safetensors")


if __name__ == "__main__":
    main()

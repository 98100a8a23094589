"""The demo's networks: the sampler follows a known diffusion, priors are causal, grain is measured and obeyed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from harness.data.demo.generators import GENERATORS
from harness.data.demo.networks import NETWORKS
from harness.data.demo.networks.diffusion import UNet, denoise, levels, sample
from harness.data.demo.networks.texture import MEASURES, Grain, TexturePrior, texture
from harness.data.demo.networks.vqvae import VqAutoencoder


def test_every_generator_has_a_network_that_fits_in_two_megabytes_of_halves() -> None:
    assert tuple(NETWORKS) == GENERATORS
    for make in NETWORKS.values():
        assert sum(p.numel() for p in make().parameters()) * 2 < 2 * 1024**2


@pytest.mark.parametrize("name", GENERATORS)
def test_a_sample_depends_on_its_stream_alone(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    with torch.inference_mode():
        first, other, again = (network.sample(np.random.default_rng(seed)) for seed in (1, 2, 1))
    assert first.shape == (3, 128, 128)
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("ancestral", [False, True])
@pytest.mark.parametrize("mean", [0.0, 0.7])
def test_the_sampler_turns_noise_into_a_known_gaussian(mean: float, ancestral: bool) -> None:
    """For data N(mean, 0.5^2) the clean picture behind noise is known exactly, so the samples must have that law."""
    sigmas = levels(400 if ancestral else 24, 0.005, 40.0)
    rng = np.random.default_rng(1) if ancestral else None
    noise = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    made = sample(lambda x, sigma: mean + (x - mean) * 0.25 / (0.25 + sigma**2), noise, sigmas, rng)
    assert made.mean() == pytest.approx(mean, abs=0.02)
    assert made.std() == pytest.approx(0.5, abs=0.03)


def test_noise_levels_fall_from_highest_to_lowest_and_end_at_none() -> None:
    found = levels(16, 0.006, 40.0)
    assert found[0] == pytest.approx(40)
    assert found[-2] == pytest.approx(0.006)
    assert found[-1] == 0
    assert all(a > b for a, b in pairwise(found))


def test_without_noise_the_picture_itself_is_what_lies_behind() -> None:
    x = torch.randn(2, 4, 8, 8)
    found = denoise(lambda scaled, level: torch.ones_like(scaled), x, torch.full((2,), 1e-6), 0.5)
    torch.testing.assert_close(found, x, atol=1e-5, rtol=0)
    lost = denoise(lambda scaled, level: torch.zeros_like(scaled), x, torch.full((2,), 1e4), 0.5)
    assert lost.abs().max() < 1e-6


def test_a_fresh_unet_says_the_same_of_every_place_and_keeps_the_shape() -> None:
    found = UNet(4, (16, 24))(torch.randn(2, 4, 16, 16), torch.zeros(2))
    assert found.shape == (2, 4, 16, 16)
    torch.testing.assert_close(found, found[:1, :, :1, :1].expand(found.shape))


def test_texture_rises_with_noise_and_can_be_learnt_from() -> None:
    torch.manual_seed(0)
    flat = torch.zeros(1, 3, 64, 64)
    measures = [texture(flat + sigma * torch.randn(flat.shape)) for sigma in (0.01, 0.05, 0.2)]
    assert measures[0].shape == (1, MEASURES)
    assert (measures[0] < measures[1]).all()
    assert (measures[1] < measures[2]).all()
    noise = (0.1 * torch.randn(flat.shape)).requires_grad_()
    texture(noise).sum().backward()
    assert noise.grad is not None
    assert torch.isfinite(noise.grad).all()
    assert (noise.grad != 0).float().mean() > 0.9


def test_the_texture_prior_draws_what_it_was_fitted_to() -> None:
    torch.manual_seed(1)
    wanted = torch.randn(4000, MEASURES) @ torch.randn(MEASURES, MEASURES) + 3
    prior = TexturePrior()
    prior.fit(wanted)
    rng = np.random.default_rng(0)
    drawn = torch.cat([prior.draw(rng) for _ in range(4000)])
    assert (drawn.mean(0) - wanted.mean(0)).abs().max() < 0.15 * wanted.std(0).max()
    torch.testing.assert_close(drawn.std(0), wanted.std(0), rtol=0.08, atol=0)
    assert prior(wanted).std(0).sub(1).abs().max() < 0.05


def test_grain_adds_noise_that_grows_with_what_is_wanted() -> None:
    torch.manual_seed(2)
    grain = Grain(6, 3)
    torch.nn.init.constant_(grain.gain.weight, 0.1)
    features, noise = torch.zeros(1, 6, 16, 16), torch.randn(1, 3, 16, 16)
    quiet, loud = (grain(features, torch.full((1, MEASURES), value), noise).detach().std() for value in (-1.0, 1.0))
    assert 0 < quiet < loud
    assert torch.equal(grain(features, torch.zeros(1, MEASURES), torch.zeros_like(noise)), features)


def test_the_prior_over_codes_sees_only_what_was_drawn_before() -> None:
    torch.manual_seed(3)
    network = VqAutoencoder().eval()
    codes = torch.randint(network.codes, (1, 64))
    with torch.inference_mode():
        before = network.predict(codes)
        for index in (0, 7, 20, 62):
            changed = codes.clone()
            changed[0, index] = (changed[0, index] + 1) % network.codes
            after = network.predict(changed)
            torch.testing.assert_close(after[:, : index + 1], before[:, : index + 1])
            assert not torch.allclose(after[:, index + 1 :], before[:, index + 1 :])


def test_codes_are_drawn_as_the_prior_predicts() -> None:
    torch.manual_seed(4)
    network = VqAutoencoder().eval()
    torch.nn.init.zeros_(network.guess.weight)
    with torch.no_grad():
        network.guess.bias.fill_(-50)
        network.guess.bias[[5, 9]] = 0
    with torch.inference_mode():
        low, high = (network.sample_codes(torch.full((64,), value, dtype=torch.double)) for value in (0.25, 0.75))
    assert (low == 5).all()
    assert (high == 9).all()

"""The cheap forward-mode rules and the collected statistics: torch's own values, and nothing left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from detectors.blades.config import EncoderConfig
from detectors.blades.encoder import ImageTower, batch_statistics_only
from detectors.blades.forward_mode import Outputs, convolutions_kept, quick_forward_mode
from detectors.blades.running_statistics import RunningStatistics, Statistics


def tower() -> ImageTower:
    return ImageTower.random(EncoderConfig.tiny(), 0).double().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def drawn(like: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in like.items()}


def pixels(seed: int = 0, count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("keep", [True, False])
def test_product_is_torchs_own(keep: bool) -> None:
    network, kept = tower(), Outputs()
    params = {k: p.detach() for k, p in network.named_parameters()}
    tangent, images = drawn(params, 1), pixels()
    with batch_statistics_only(network), convolutions_kept(network, kept):
        output = network(images)
    assert len(kept) == sum(isinstance(m, nn.Conv2d) for m in network.modules())

    def forward(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(network, values, (images,))

    with torch.no_grad(), batch_statistics_only(network):
        expected = torch.func.jvp(forward, (params,), (tangent,))
        with quick_forward_mode(network, kept if keep else {}):
            found = torch.func.jvp(forward, (params,), (tangent,))
    torch.testing.assert_close(found[0], output.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-10)


def test_only_some_parameters_may_have_a_tangent() -> None:
    network, images = tower(), pixels()
    params = {k: p.detach() for k, p in network.named_parameters()}
    for part in ("normalization.weight", "normalization.bias", "convolution.weight", "fc.bias"):
        tangent = {k: v if part in k else torch.zeros_like(v) for k, v in drawn(params, 2).items()}
        some = {k: v for k, v in params.items() if part in k}

        def forward(values: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(network, {**params, **values}, (images,))

        with torch.no_grad(), batch_statistics_only(network):
            expected = torch.func.jvp(forward, (params,), (tangent,))[1]
            with quick_forward_mode(network, {}):
                found = torch.func.jvp(forward, (some,), ({k: tangent[k] for k in some},))[1]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_nothing_is_left_behind() -> None:
    network, kept = tower(), Outputs()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with torch.no_grad(), convolutions_kept(network, kept), quick_forward_mode(network, {}):
        network(pixels())
    with (
        pytest.raises(ValueError, match="channel"),
        convolutions_kept(network, kept),
        quick_forward_mode(network, {}),
    ):
        network(pixels()[:, :2])
    assert all("forward" not in vars(m) and not m._forward_hooks for m in network.modules())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_collected_statistics_move_the_running_ones_as_torch_does(momentum: float | None) -> None:
    network = tower()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    plain = copy.deepcopy(network)
    statistics, batches = RunningStatistics(network), []
    before = {k: v.clone() for k, v in network.state_dict().items()}
    for seed in range(3):
        collected: Statistics = []
        with statistics.collected(collected):
            inside = network(pixels(seed))
        batches.append(collected)
        assert torch.equal(inside, plain(pixels(seed)))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    statistics.commit(batches)
    expected = plain.state_dict()
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-14)


def test_a_failed_pass_collects_nothing() -> None:
    network, collected = tower(), Statistics()
    statistics = RunningStatistics(network)
    with pytest.raises(ValueError, match="channel"), statistics.collected(collected):
        network(pixels()[:, :2])
    assert collected == []
    layer = statistics.layers[0]
    assert layer.momentum == 0.1
    assert float(layer.num_batches_tracked) == 0  # type: ignore[arg-type]

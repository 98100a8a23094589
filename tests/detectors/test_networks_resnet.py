"""ResNet under torchvision's names: the released network layer by layer, round trips, folding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from detectors.networks.resnet import ResNet, for_inference, frozen, torchvision_names
from detectors.zou25 import UNUSED
from harness.api.contract import Chain
from harness.api.errors import WeightsError
from tests.detectors.rule_r import official_keys, rule_r


def small() -> ResNet:
    network = ResNet(5, stem=8, hidden_sizes=(8, 16), depths=(2, 1))
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + (0.5 if "var" in name else -0.3))
    return network.eval()


def images(count: int = 4, side: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_names_are_exactly_the_official_ones_of_a_resnet_50(golden_dir: Path) -> None:
    official = official_keys(golden_dir / "detectors" / "zou25")
    with torch.device("meta"):
        network = ResNet(768)
    shapes = network.state_dict()
    ours = {name.theirs: list(shapes[name.ours].shape) for name in torchvision_names(network, theirs="model.visual.")}
    assert ours == {name: shape for name, shape, _ in official if name.startswith("model.visual.")}
    assert sum(value.numel() for value in network.parameters()) == 25_081_664


def test_every_stage_equals_the_released_network(golden_dir: Path) -> None:
    from detectors.zou25 import Zou25

    torch.set_num_threads(1)
    folder = golden_dir / "detectors" / "zou25"
    golden = np.load(folder / "golden.npz", allow_pickle=False)
    tensors = rule_r(official_keys(folder), only=(".visual.",))
    network = ResNet.from_torchvision(tensors, 768, "golden", prefix="model.visual.", ignore=UNUSED).eval()
    with torch.inference_mode():
        batch = Chain.of(Zou25()).preprocess(golden["image_a"])[None]
        stages = network.net(batch, output_hidden_states=True).hidden_states[1:]
    for number, stage in enumerate(stages, 1):
        expected = golden[f"a/layer{number}_gap"]
        assert np.abs(stage[0].mean(dim=(1, 2)).numpy() - expected).max() < 1e-5 * np.abs(expected).max()


def test_what_is_written_under_their_names_is_read_back() -> None:
    network = ResNet.seeded(3, seed=0, num_channels=5)
    again = ResNet.from_torchvision(network.to_torchvision("module."), 3, "own", prefix="module.", num_channels=5)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())
    assert again.net.embedder.embedder.convolution.weight.shape == (64, 5, 7, 7)


def test_the_frozen_form_gives_the_same_outputs_for_any_place_and_size() -> None:
    torch.set_num_threads(1)
    plain = small()
    with torch.inference_mode():
        expected = plain(images())
    run = frozen(small(), "cpu")
    torch.testing.assert_close(run(images()), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(run(images().flip(0)), run(images()).flip(0))
    assert run(torch.zeros(1, 3, 47, 81)).shape == (1, 5)


def test_a_negative_variance_is_refused() -> None:
    network = small()
    network.state_dict()["net.embedder.embedder.normalization.running_var"].fill_(-1)
    with pytest.raises(WeightsError, match="running variance is negative"):
        for_inference(network)

"""Zou25: the released network's features and heads, its file and no other, the released mixture and threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.zou25 import HEADS, Zou25, Zou25Features, Zou25Options
from harness.api.contract import Chain, QuantileThreshold
from harness.api.errors import WeightsError
from harness.api.heads import MixtureHead
from harness.api.protocol import Protocol
from tests.detectors.rule_r import assert_promises, drawn_image, official_keys, random_weights, rule_r, stored

TOLERANCE = 2e-3
"""Of features up to 500 (rule.md)."""


@pytest.fixture(scope="module")
def state(golden_dir: Path) -> dict[str, Tensor]:
    torch.set_num_threads(1)
    return rule_r(official_keys(golden_dir / "detectors" / "zou25"), only=(".visual.", "fc_"))


def released(state: dict[str, Tensor]) -> dict[str, object]:
    """The released container: the model beside what its training left."""
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-5}]}
    return {"epoch": 7, "model": state, "optimizer": optimizer, "lr_sched": {"last_epoch": 7}}


def test_features_and_heads_equal_the_released_network(
    state: dict[str, Tensor], golden_dir: Path, tmp_path: Path
) -> None:
    golden = np.load(golden_dir / "detectors" / "zou25" / "golden.npz", allow_pickle=False)
    chain = Chain.of(Zou25())
    images = [golden["image_a"], drawn_image(72, 301, 247), drawn_image(73, 150, 181)]
    batch = torch.stack([chain.preprocess(image) for image in images])
    np.testing.assert_allclose(batch[0, :, ::8, ::8].numpy(), golden["a/input_sub"], rtol=0, atol=2e-6)
    features = chain.extractor.load(stored(tmp_path / "z.pth", released(state)), "cpu")(batch)
    assert features.shape == (3, chain.extractor.dim)
    np.testing.assert_allclose(features[0].numpy(), golden["a/feature"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(features[0].numpy(), golden["f64/a/feature"], rtol=0, atol=TOLERANCE)
    for head in HEADS:
        value = features[0] @ state[f"{head}.weight"][0] + state[f"{head}.bias"]
        np.testing.assert_allclose(value.numpy(), golden[f"a/{head.replace('fc', 'head')}"], rtol=0, atol=TOLERANCE)


def test_the_golden_image_is_the_one_the_rule_draws(golden_dir: Path) -> None:
    golden = np.load(golden_dir / "detectors" / "zou25" / "golden.npz", allow_pickle=False)
    np.testing.assert_array_equal(drawn_image(71, 256, 256), golden["image_a"])


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        (("fc_face.weight", "fc_face.bias"), "not the released five-head model"),
        (tuple(f"{head}.{part}" for head in HEADS for part in ("weight", "bias")), "not the released five-head"),
        (("model.visual.layer3.5.conv2.weight",), "1 missing: model.visual.layer3.5.conv2.weight"),
    ],
)
def test_a_variant_is_refused_by_name(
    state: dict[str, Tensor], tmp_path: Path, absent: tuple[str, ...], said: str
) -> None:
    content = {key: value for key, value in state.items() if key not in absent}
    with pytest.raises(WeightsError, match=said):
        Zou25Features().load(stored(tmp_path / "z.pth", released(content)), "cpu")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.visual.extra", torch.zeros(2), "1 spare: model.visual.extra"),
        ("fc_joint.weight", torch.zeros(2, 768), "1 spare: fc_joint.weight"),
        ("model.visual.fc.weight", torch.zeros(2, 2048), r"misshaped: model.visual.fc.weight is \[2, 2048\]"),
        ("model.visual.fc.bias", torch.full((768,), float("nan")), "1 not finite: model.visual.fc.bias"),
    ],
)
def test_a_spare_misshaped_or_broken_tensor_is_refused_by_name(
    state: dict[str, Tensor], tmp_path: Path, key: str, value: Tensor, said: str
) -> None:
    with pytest.raises(WeightsError, match=said):
        Zou25Features().load(stored(tmp_path / "z.pth", released({**state, key: value})), "cpu")


def test_twelve_gaussians_of_raw_features_and_the_released_threshold_unless_options_say_otherwise() -> None:
    chain = Chain.of(Zou25())
    assert chain.head == MixtureHead(components=12, normalise=False, seed=2024, order="list")
    assert chain.threshold == QuantileThreshold(0.05, "in_sample")
    chain = Chain.of(Zou25(Zou25Options(components=3, fpr=0.1), Protocol.named("released", threshold="held_out")))
    assert chain.head == MixtureHead(components=3, normalise=False, seed=2024, order="shuffled_2024")
    assert chain.threshold == QuantileThreshold(0.1, "held_out")


def test_features_are_the_same_bits_in_any_place_of_a_batch() -> None:
    torch.set_num_threads(1)
    run = Zou25Features().load(random_weights(), "cpu")
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    features = run(images)
    assert torch.equal(run(images[order]), features[order])
    torch.testing.assert_close(run(images[:1]), features[:1], rtol=0, atol=1e-5 * features.abs().max().item())


def test_few_photographs_are_warned_of() -> None:
    (warning,) = Zou25().warnings(1000)
    assert "1000 photographs are few for 12 components" in warning
    assert Zou25().warnings(25_000) == ()


@pytest.mark.slow
def test_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_promises(Zou25(), monkeypatch)

"""CLIP's image tower: equal to OpenAI's code under both names, strict, the same bits in any place of a batch."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.networks.clip import from_checkpoint, frozen, openai_names, seeded, vision_tower
from detectors.networks.sizes import VISION_SIZES, VisionSize
from harness.api.errors import WeightsError
from tests.detectors.rule_r import official_keys, rule_r

SMALL = VisionSize(width=128, layers=3, heads=2, patch=16, dim=48, image=64)


@pytest.fixture(scope="module")
def openai(golden_dir: Path) -> dict[str, Tensor]:
    """All 98 tensors of the small CLIP, by its rule."""
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("fill_rule", golden_dir / "detectors" / "fill_rule.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    keys = json.loads((golden_dir / "detectors" / "clip_small" / "keys.json").read_text())
    return {key: torch.from_numpy(np.array(value)) for key, value in module.fill("clip_small", keys).items()}


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Any:
    return np.load(golden_dir / "detectors" / "clip_small" / "golden.npz", allow_pickle=False)


def test_features_equal_openais_code(openai: dict[str, Tensor], golden: Any) -> None:
    features = frozen(from_checkpoint(openai, SMALL, "golden"), "cpu")(torch.from_numpy(golden["x"]))
    np.testing.assert_allclose(features.numpy(), golden["image_features"], rtol=0, atol=1e-5)


def test_hugging_face_names_give_the_same_features_with_or_without_the_text_tower(
    openai: dict[str, Tensor], golden: Any
) -> None:
    from transformers import CLIPConfig, CLIPModel

    tower = from_checkpoint(openai, SMALL, "golden")
    own = {key: value.clone() for key, value in tower.state_dict().items()}
    config = CLIPConfig(vision_config=tower.config.to_dict(), projection_dim=48, text_config={
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    })  # fmt: skip
    whole = CLIPModel(config).state_dict()
    assert set(own) < set(whole)
    old = {"vision_model.embeddings.position_ids": torch.arange(17)[None],
           "text_model.embeddings.position_ids": torch.arange(77)[None]}  # fmt: skip
    images = torch.from_numpy(golden["x"])
    expected = frozen(tower, "cpu")(images)
    for tensors in (own, {**whole, **own, **old}):
        assert torch.equal(frozen(from_checkpoint(tensors, SMALL, "hf"), "cpu")(images), expected)


def test_half_precision_files_and_the_archives_three_sizes_are_taken(openai: dict[str, Tensor], golden: Any) -> None:
    half = {key: value.half() for key, value in openai.items()}
    sizes = {key: torch.tensor(1) for key in ("input_resolution", "context_length", "vocab_size")}
    tower = from_checkpoint({**half, **sizes}, SMALL, "ViT.pt")
    assert {value.dtype for value in tower.state_dict().values()} == {torch.float32}
    features = frozen(tower, "cpu")(torch.from_numpy(golden["x"]))
    scale = np.abs(golden["image_features"]).max()
    np.testing.assert_allclose(features.numpy(), golden["image_features"], rtol=0, atol=0.01 * scale)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"visual.proj": None}, "1 missing: visual.proj"),
        ({"visual.proj": torch.zeros(48, 128)}, r"visual.proj is \[128, 48\], expected \[48, 128\]"),
        ({"visual.other": torch.zeros(1)}, "1 spare: visual.other"),
        ({"visual.mask_token": torch.zeros(128)}, "1 spare: visual.mask_token"),
        ({"visual.ln_pre.bias": torch.full((128,), float("inf"))}, "1 not finite: visual.ln_pre.bias"),
        ({"visual.transformer.resblocks.2.attn.in_proj_weight": torch.zeros(128, 128)}, r"expected \[384, 128\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    openai: dict[str, Tensor], change: dict[str, Tensor | None], said: str
) -> None:
    tensors = {key: value for key, value in {**openai, **change}.items() if value is not None}
    with pytest.raises(WeightsError, match=said):
        from_checkpoint(tensors, SMALL, "file")


def test_another_networks_file_is_refused_with_the_way_out(openai: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match="network option"):
        from_checkpoint(openai, VISION_SIZES["vit-b-16"], "file")
    with pytest.raises(WeightsError, match="holds no image tower of CLIP"):
        from_checkpoint({"conv1.weight": torch.zeros(1)}, SMALL, "file")


def test_features_are_the_same_bits_in_any_place_of_a_batch() -> None:
    torch.set_num_threads(1)
    run = frozen(seeded(SMALL, 0), "cpu")
    images = torch.randn(32, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    features = run(images)
    assert torch.equal(run(images[order]), features[order])
    padded = images.clone()
    padded[5:] = 0
    assert torch.equal(run(padded)[:5], features[:5])
    torch.testing.assert_close(run(images[:1]), features[:1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("network", "parameters"), [("vit-b-16", 86_192_640), ("vit-l-14", 303_966_208)])
def test_official_sizes_have_the_official_number_of_parameters(network: str, parameters: int) -> None:
    assert sum(value.numel() for value in vision_tower(VISION_SIZES[network]).parameters()) == parameters


def test_names_of_a_base_network_are_exactly_the_official_ones(golden_dir: Path) -> None:
    tower = vision_tower(VISION_SIZES["vit-b-16"])
    official = {name for name, _, _ in official_keys(golden_dir / "detectors" / "farl") if name.startswith("visual.")}
    assert {name.theirs for name in openai_names(tower)} == official
    assert len(official) == 152


def reference(tensors: dict[str, Tensor], images: Tensor, heads: int) -> Tensor:
    """OpenAI's forward written out from the key names alone, as a second opinion at full size."""
    w = {key.removeprefix("visual."): value for key, value in tensors.items() if key.startswith("visual.")}
    width = w["proj"].shape[0]

    def norm(x: Tensor, at: str) -> Tensor:
        return F.layer_norm(x, (width,), w[f"{at}.weight"], w[f"{at}.bias"])

    patches = F.conv2d(images, w["conv1.weight"], stride=w["conv1.weight"].shape[-1]).flatten(2).transpose(1, 2)
    tokens = torch.cat([w["class_embedding"].expand(len(images), 1, -1), patches], dim=1) + w["positional_embedding"]
    x = norm(tokens, "ln_pre")
    for number in range(len([key for key in w if key.endswith("attn.in_proj_weight")])):
        at = f"transformer.resblocks.{number}"
        stacked = F.linear(norm(x, f"{at}.ln_1"), w[f"{at}.attn.in_proj_weight"], w[f"{at}.attn.in_proj_bias"])
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in stacked.chunk(3, dim=-1))
        mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
        x = x + F.linear(mixed.transpose(1, 2).flatten(2), w[f"{at}.attn.out_proj.weight"],
                         w[f"{at}.attn.out_proj.bias"])  # fmt: skip
        hidden = F.linear(norm(x, f"{at}.ln_2"), w[f"{at}.mlp.c_fc.weight"], w[f"{at}.mlp.c_fc.bias"])
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        x = x + F.linear(hidden, w[f"{at}.mlp.c_proj.weight"], w[f"{at}.mlp.c_proj.bias"])
    return norm(x[:, 0], "ln_post") @ w["proj"]


@pytest.mark.slow
def test_a_full_size_network_by_the_rule_equals_the_forward_written_out(golden_dir: Path) -> None:
    torch.set_num_threads(1)
    tensors = rule_r(official_keys(golden_dir / "detectors" / "farl"), only=("visual.",))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    features = frozen(from_checkpoint(tensors, VISION_SIZES["vit-b-16"], "rule"), "cpu")(images)
    with torch.inference_mode():
        expected = reference(tensors, images, heads=12)
    assert (features - expected).abs().max() < 2e-5 * expected.abs().max()
    assert expected.std() > 1e-3


def test_the_second_opinion_is_itself_equal_to_openais_code(openai: dict[str, Tensor], golden: Any) -> None:
    expected = reference(openai, torch.from_numpy(golden["x"]), heads=2)
    np.testing.assert_allclose(expected.numpy(), golden["image_features"], rtol=0, atol=1e-5)

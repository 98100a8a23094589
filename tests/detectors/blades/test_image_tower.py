"""The stages that OC and BC share: released preprocess, equal features by either file, a small closure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.blades.encoder import EncoderConfig, JointEncoder
from detectors.blades.image_tower import BladesImageTower, BladesPreprocess
from harness.api.errors import WeightsError
from harness.api.weights import ResolvedWeights, file_digest

RANDOM = {"weights": ResolvedWeights("random", "random:0", seed=0)}


def stored(path: Path, tensors: dict[str, Tensor]) -> dict[str, ResolvedWeights]:
    torch.save({"model": tensors, "epoch": 19}, path)
    return {"weights": ResolvedWeights("file", file_digest(path), path)}


def batch(count: int, size: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", ["1024x1024", "h200w256"])
def test_preprocess_equals_the_released_test_transform(golden_dir: Path, case: str) -> None:
    golden = np.load(golden_dir / "preprocess.npz", allow_pickle=False)
    out = BladesPreprocess()(golden[f"test/{case}/in"])
    np.testing.assert_allclose(out.numpy(), golden[f"test/{case}/out"], rtol=0, atol=1e-6)
    assert not torch.allclose(BladesPreprocess(antialias=True)(golden[f"test/{case}/in"]), out, atol=1e-3)


def test_features_are_unit_norm_float32_and_the_same_bits_in_any_place_of_a_full_batch() -> None:
    run = BladesImageTower("demo").load(RANDOM, "cpu")
    images = batch(32)
    features = run(images)
    assert (features.shape, features.dtype) == ((32, BladesImageTower("demo").dim), torch.float32)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(32), rtol=0, atol=1e-6)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(run(images[order]), features[order])
    padded = images.clone()
    padded[9:] = padded[0]
    assert torch.equal(run(padded)[:9], features[:9])
    alone = torch.cat([run(image[None]) for image in images])
    torch.testing.assert_close(alone, features, rtol=0, atol=1e-5)


def test_the_same_encoder_in_either_container_or_as_safetensors_gives_the_same_features(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    encoder = JointEncoder.random(EncoderConfig.tiny(), seed=4)
    head = {"fc1.weight": torch.zeros(3, 6), "fc1.bias": torch.zeros(3), "fc2.weight": torch.zeros(2, 3),
            "fc2.bias": torch.zeros(2)}  # fmt: skip
    save_file({k: v.contiguous().clone() for k, v in encoder.to_authors().items()}, tmp_path / "own.safetensors")
    sources = [
        stored(tmp_path / "OC.pth", encoder.to_authors()),
        stored(tmp_path / "BC.pth", {**encoder.to_authors("model.model."), **head}),
        {"weights": ResolvedWeights("recipe", "0" * 64, tmp_path / "own.safetensors")},
    ]
    features = [BladesImageTower("tiny").load(source, "cpu")(batch(4)) for source in sources]
    with torch.inference_mode():
        plain = encoder.eval().features(batch(4))
    for other in features:
        assert torch.equal(other, features[0])
        torch.testing.assert_close(other, plain, rtol=0, atol=1e-6)


def test_a_file_of_another_size_is_refused_with_the_way_out(tmp_path: Path) -> None:
    source = stored(tmp_path / "OC.pth", JointEncoder.random(EncoderConfig.demo(), seed=0).to_authors())
    with pytest.raises(WeightsError, match="set the encoder size"):
        BladesImageTower("tiny").load(source, "cpu")


def test_random_weights_are_those_of_the_seed() -> None:
    other = {"weights": ResolvedWeights("random", "random:1", seed=1)}
    one, same, different = (BladesImageTower("tiny").load(w, "cpu")(batch(2)) for w in (RANDOM, RANDOM, other))
    assert torch.equal(one, same)
    assert not torch.equal(one, different)


def test_the_source_that_keys_features_holds_no_text_tower_no_losses_and_no_training() -> None:
    from harness.engine.source import closure

    ours = {name for name in closure(BladesImageTower) if name.startswith("detectors.")}
    networks = {f"detectors.networks.{name}" for name in ("resnet", "sizes", "states")}
    packages = {"detectors", "detectors.blades", "detectors.networks"}
    assert ours - packages == networks | {
        f"detectors.blades.{name}" for name in ("config", "image_tower", "states", "vision")
    }

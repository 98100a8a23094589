"""CLIP: OpenAI's preprocessing, files of either name, archives refused, the mixture of BLADES-OC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectors import clip
from detectors.clip import Clip, ClipFeatures, ClipOptions
from detectors.networks.clip import seeded
from detectors.networks.sizes import VISION_SIZES, VisionSize
from harness.api.contract import Chain, QuantileThreshold
from harness.api.errors import WeightsError
from harness.api.heads import MixtureHead
from harness.api.preprocess import CLIP_MEAN, CLIP_STD
from harness.api.weights import ResolvedWeights, file_digest
from tests.detectors.rule_r import assert_promises, drawn_image, random_weights, stored

TINY = VisionSize(width=64, layers=2, heads=1, patch=16, dim=8, image=32)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> ClipFeatures:
    """The extractor with a network small enough to write to disk often."""
    torch.set_num_threads(1)
    monkeypatch.setitem(clip.VISION_SIZES, "vit-b-16", TINY)
    return ClipFeatures()


@pytest.mark.parametrize(("width", "height"), [(301, 247), (150, 181), (224, 224), (500, 230)])
def test_preprocess_is_openais(width: int, height: int) -> None:
    pixels = drawn_image(3, width, height)
    short = min(width, height)
    size = (224, int(224 * height / short)) if width <= height else (int(224 * width / short), 224)
    resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    left, top = round((resized.width - 224) / 2), round((resized.height - 224) / 2)
    cropped = np.asarray(resized.crop((left, top, left + 224, top + 224)), np.float32) / 255
    expected = (cropped - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    out = Chain.of(Clip()).preprocess(pixels)
    assert (out.shape, out.dtype) == ((3, 224, 224), torch.float32)
    np.testing.assert_allclose(out.permute(1, 2, 0).numpy(), expected, rtol=0, atol=1e-6)
    squashed = Chain.of(Clip(ClipOptions(framing="squash"))).preprocess(pixels)
    assert squashed.shape == (3, 224, 224)


def test_one_network_in_three_files_gives_one_feature(tiny: ClipFeatures, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = seeded(TINY, 3).state_dict()
    (tmp_path / "hf").mkdir()
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "hf" / "model.safetensors")
    path = tmp_path / "hf" / "model.safetensors"
    sources = [
        {"weights": ResolvedWeights("file", file_digest(path), path)},
        stored(tmp_path / "pytorch_model.bin", state),
        random_weights(3),
    ]
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first, *others = (tiny.load(source, "cpu")(images) for source in sources)
    assert first.shape == (3, tiny.dim)
    assert all(torch.equal(first, other) for other in others)


def test_a_torchscript_archive_is_refused_and_says_to_convert_it(tiny: ClipFeatures, tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-16.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(WeightsError, match=r"TorchScript archive must first be converted to safetensors"):
        tiny.load({"weights": ResolvedWeights("file", file_digest(path), path)}, "cpu")


def test_a_file_of_another_network_is_refused_and_names_the_option(tiny: ClipFeatures, tmp_path: Path) -> None:
    source = stored(tmp_path / "model.bin", seeded(TINY, 3).state_dict())
    with pytest.raises(WeightsError, match="network option"):
        ClipFeatures("vit-b-32").load(source, "cpu")


def test_width_of_the_feature_follows_the_network() -> None:
    dims = {name: Chain.of(Clip(ClipOptions(network=name))).extractor.dim for name in VISION_SIZES}  # type: ignore[arg-type]
    assert dims == {"vit-b-32": 512, "vit-b-16": 512, "vit-l-14": 768}


def test_ten_gaussians_of_unit_norm_features_at_five_percent() -> None:
    chain = Chain.of(Clip())
    assert chain.head == MixtureHead(components=10, normalise=True, seed=2024, order="list")
    assert chain.threshold == QuantileThreshold(0.05, "in_sample")


def test_listing_it_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, detectors.clip, detectors.farl, detectors.zou25, detectors.eal; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_promises(Clip(), monkeypatch)

"""The encoder at the start of a training: which part comes from which file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from detectors.blades.config import EncoderConfig
from detectors.blades.encoder import JointEncoder
from detectors.blades.start import begun_encoder
from harness.api.errors import ConfigError, WeightsError
from harness.api.weights import ResolvedWeights, file_digest

TINY = EncoderConfig.tiny()
TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection", "logit_scale")


def kept(tmp_path: Path, tensors: dict[str, Tensor], name: str = "w") -> ResolvedWeights:
    path = tmp_path / f"{name}.safetensors"
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path)
    return ResolvedWeights("file", file_digest(path), path=path)


def theirs(seed: int) -> dict[str, Tensor]:
    return JointEncoder.random(TINY, seed).to_authors()


def eal(seed: int) -> dict[str, Tensor]:
    """EAL's file: the image tower in a container, and a text part of another model."""
    visual = {k: v for k, v in theirs(seed).items() if k.startswith("model.visual.")}
    return visual | {"model.transformer.resblocks.0.ln_1.weight": torch.ones(99)}


def clip(seed: int) -> dict[str, Tensor]:
    """CLIP RN50's file: halves, an attention-pooled image tower, and numbers that are no weights."""
    bare = {k.removeprefix("model."): v for k, v in theirs(seed).items()}
    text = {k: v.half() for k, v in bare.items() if k.startswith(TEXT)}
    return text | {"visual.attnpool.positional_embedding": torch.ones(3), "input_resolution": torch.tensor(224)}


def imagenet(seed: int) -> dict[str, Tensor]:
    """torchvision's file: bare names, 1,000 classes."""
    visual = {k.removeprefix("model.visual."): v for k, v in theirs(seed).items() if k.startswith("model.visual.")}
    return visual | {"fc.weight": torch.ones(1000, TINY.hidden_sizes[-1]), "fc.bias": torch.ones(1000)}


def test_towers_come_from_their_files_and_new_layers_are_random(tmp_path: Path) -> None:
    weights = {"image": kept(tmp_path, eal(1), "eal"), "text": kept(tmp_path, clip(2), "clip")}
    found = begun_encoder(TINY, 3, weights).to_authors()
    for name, value in found.items():
        if name.startswith("model.visual."):
            wanted = theirs(1)[name]
        elif name.startswith("model.text_fc."):
            wanted = theirs(3)[name]
        else:
            wanted = theirs(2)[name].half().float()
        assert torch.equal(value, wanted), name
    assert all(p.requires_grad and p.dtype == torch.float32 for p in begun_encoder(TINY, 3, weights).parameters())


def test_of_imagenets_weights_the_last_layer_is_new(tmp_path: Path) -> None:
    found = begun_encoder(TINY, 3, {"image": kept(tmp_path, imagenet(1))}).to_authors()
    for name, value in found.items():
        source = 1 if name.startswith("model.visual.") and ".fc." not in name else 3
        assert torch.equal(value, theirs(source)[name]), name


def test_a_whole_encoder_goes_on_as_it_is_and_without_files_it_is_random(tmp_path: Path) -> None:
    whole = begun_encoder(TINY, 3, {"encoder": kept(tmp_path, theirs(7))}).to_authors()
    assert all(torch.equal(v, theirs(7)[k]) for k, v in whole.items())
    plain = begun_encoder(TINY, 3, {}).to_authors()
    assert all(torch.equal(v, theirs(3)[k]) for k, v in plain.items())


def test_files_that_lack_a_part_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    cut = {k: v for k, v in eal(1).items() if "layer1.0.conv2" not in k}
    with pytest.raises(WeightsError, match=r"lacks 1 tensors of the image tower: visual.layer1.0.conv2"):
        begun_encoder(TINY, 3, {"image": kept(tmp_path, cut)})
    with pytest.raises(WeightsError, match="holds no ResNet-50"):
        begun_encoder(TINY, 3, {"image": kept(tmp_path, clip(1))})
    with pytest.raises(WeightsError, match=r"lacks .* tensors of the text tower"):
        begun_encoder(TINY, 3, {"text": kept(tmp_path, imagenet(1))})
    wide = {k: (torch.ones(9, 9) if k == "token_embedding.weight" else v) for k, v in clip(1).items()}
    with pytest.raises(WeightsError, match="misshaped"):
        begun_encoder(TINY, 3, {"text": kept(tmp_path, wide)})
    for slots in ({"visual": None}, {"encoder": None, "text": None}):
        with pytest.raises(ConfigError, match="slot"):
            begun_encoder(TINY, 3, slots)  # type: ignore[arg-type]

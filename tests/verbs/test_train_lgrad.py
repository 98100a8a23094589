"""LGrad trained through the command line: the classifier learns from the discriminator's gradient images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from detectors.lgrad import GradientImage, Lgrad, LgradPreprocess
from detectors.networks.stylegan_discriminator import StyleGanDiscriminator
from harness.api.images import decode, read_image_file
from harness.api.weights import ResolvedWeights, file_digest
from harness.data.training.cache import PixelCache

RECIPE: dict[str, Any] = {
    "recipe": "gradients", "detector": "lgrad", "step": "supervised", "generators": ["ldm"], "max_images": 6,
    "start": {"discriminator": "d.pth"}, "settings": {"balanced": True, "augment": [{"crop": 64}, {"flip": 0.5}]},
    "epochs": 2, "batch_size": 4, "optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "seed": 1,
}  # fmt: skip
FIXED = ("--device", "cpu", "--threads", "1", "--tracking-uri", "off")


@pytest.mark.slow
def test_the_recipe_trains_on_gradient_images_and_its_file_is_what_the_detector_reads(
    here, tmp_path: Path, data: Path
) -> None:
    """About half a minute: a gradient image takes a third of a second, and the ResNet-50 is the official one."""
    pretrained = tmp_path / "pretrained"
    pretrained.mkdir()
    torch.save(StyleGanDiscriminator.seeded(3).state_dict(), pretrained / "d.pth")
    (tmp_path / "gradients.yaml").write_text(yaml.safe_dump(RECIPE))
    words = ("train", tmp_path / "gradients.yaml", "--data-root", data, "--weights-root", pretrained, *FIXED)
    done = here(*words, "--json", "--export", "c.safetensors")
    assert done.code == 0, done.text
    assert done.document["steps"] >= 2
    _maps_are_the_discriminators(pretrained / "d.pth", data)

    discriminator = ResolvedWeights("file", file_digest(pretrained / "d.pth"), pretrained / "d.pth")
    trained = ResolvedWeights("file", file_digest(Path("c.safetensors")), Path("c.safetensors"))
    chain = Lgrad()
    maps = GradientImage().load({"discriminator": discriminator}, "cpu")(_inputs(data)[:2])
    logits = chain.extractor().load({"weights": trained}, "cpu")(maps)
    assert torch.isfinite(logits).all()
    begun = load_file("c.safetensors")
    assert not torch.equal(begun["bn1.running_mean"], torch.zeros_like(begun["bn1.running_mean"]))  # it has seen maps
    again = here(*words, "--json")
    assert again.document["trained"] is False


def _inputs(data: Path) -> torch.Tensor:
    """The photographs of the training list, preprocessed."""
    folder = data / "celeba-face"
    paths = [folder / name for name in (folder / "train.txt").read_text().split()]
    return torch.stack([LgradPreprocess()(decode(read_image_file(path), name=str(path))) for path in paths])


def _maps_are_the_discriminators(discriminator: Path, data: Path) -> None:
    """The cache that was trained from holds the transform's maps of the images, 256 pixels a side."""
    (path,) = Path(".blades-store/pixels").glob("*.pixels")
    cache = PixelCache(path)
    found = {cache[i].tobytes() for i in range(len(cache))}
    assert {cache[i].shape for i in range(len(cache))} == {(256, 256, 3)}
    torch.set_num_threads(1)
    weights = ResolvedWeights("file", file_digest(discriminator), discriminator)
    run = GradientImage().load({"discriminator": weights}, "cpu")
    with torch.no_grad():
        maps = [run(one[None])[0].permute(1, 2, 0).contiguous().numpy().tobytes() for one in _inputs(data)]
    assert len(found & set(maps)) >= 6

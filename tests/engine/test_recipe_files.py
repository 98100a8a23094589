"""Recipe files: heirs of a base, and the files that a training starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.api.contract import Transform, Weights
from harness.api.errors import ConfigError, WeightsError
from harness.api.preprocess import to_tensor
from harness.api.training import TrainingImages
from harness.api.weights import ResolvedWeights
from harness.engine.rows import absent_starts, load_recipe, start_weights
from harness.engine.training_job import mapped

BASE = """
recipe: parent
detector: blades-oc
options: {encoder: demo}
settings: {tasks: [face_coarse], work_size: 128}
start: {image: eal/wrapper.pth}
epochs: 3
"""


def test_an_heir_lays_its_keys_over_those_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(BASE)
    (tmp_path / "heir.yaml").write_text("base: parent\nrecipe: heir\nsettings: {work_size: 64}\nepochs: 5\n")
    heir = load_recipe(str(tmp_path / "heir.yaml"))
    assert (heir.recipe, heir.epochs, heir.detector) == ("heir", 5, "blades-oc")
    assert heir.settings == {"tasks": ["face_coarse"], "work_size": 64}
    (tmp_path / "shipped.yaml").write_text("base: demo_blades\nrecipe: mine\nepochs: 1\n")
    assert load_recipe(str(tmp_path / "shipped.yaml")).options == load_recipe("demo_blades").options


@pytest.mark.parametrize("base", ["nobody", "heir", "../heir", "/etc/hostname"])
def test_a_base_that_is_not_there_or_goes_round_is_refused(tmp_path: Path, base: str) -> None:
    (tmp_path / "heir.yaml").write_text(f"base: {base}\nrecipe: heir\n")
    with pytest.raises(ConfigError, match="base"):
        load_recipe(str(tmp_path / "heir.yaml"))
    (tmp_path / "one.yaml").write_text("base: two\n")
    (tmp_path / "two.yaml").write_text("base: one\n")
    with pytest.raises(ConfigError, match="base"):
        load_recipe(str(tmp_path / "one.yaml"))


def test_files_to_start_from_are_looked_for_below_the_weights_root(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(BASE)
    recipe = load_recipe(str(tmp_path / "parent.yaml"))
    root = tmp_path / "pretrained"
    with pytest.raises(WeightsError, match=r"starts from eal/wrapper.pth \(image\), which is not at"):
        start_weights(recipe, root)
    assert len(absent_starts(recipe, root)) == 1
    (root / "eal").mkdir(parents=True)
    (root / "eal" / "wrapper.pth").write_bytes(b"x")
    first = start_weights(recipe, root)["image"]
    assert first.path == root / "eal" / "wrapper.pth"
    (root / "eal" / "wrapper.pth.safetensors").write_bytes(b"y")
    second = start_weights(recipe, root)["image"]
    assert second.path == root / "eal" / "wrapper.pth.safetensors"
    assert first.identity != second.identity


class Half(Transform):
    """Twice the absolute value of an image in [-1, 1], as 8 bits; ``wide`` gives floats instead."""

    slots = ("network",)

    def __init__(self, wide: bool = False) -> None:
        self.wide = wide

    def load(self, weights: Weights, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def made(images: torch.Tensor) -> torch.Tensor:
            values = (images.abs() * 255).round()
            return values if self.wide else values.to(torch.uint8)

        return made


def test_a_detector_that_reads_maps_trains_on_maps() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    images = TrainingImages(
        read=lambda split, i: pixels, labels={}, generators={}, digests={"train": ["a"]},
        preprocess=lambda p: to_tensor(p) * 2 - 1,
    )  # fmt: skip
    weights = {"network": ResolvedWeights("random", "random:0")}
    found = mapped(images, (Half(),), weights, "cpu")
    assert np.array_equal(found.read("train", 0), np.abs(2.0 * pixels - 255).round().astype(np.uint8))
    assert found.inputs([found.read("train", 0)]).max() <= 1
    with pytest.raises(ConfigError, match="maps of float32"):
        mapped(images, (Half(wide=True),), weights, "cpu").read("train", 0)
    with pytest.raises(WeightsError, match="slot network"):
        mapped(images, (Half(),), {}, "cpu")

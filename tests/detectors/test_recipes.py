"""Every shipped recipe can be meant (detector, step, settings, protocol), and each that stands on another changes what
its name says, and nothing else. No data and no weights are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detectors.blades.joint import BladesJointStep
from detectors.blades.tasks import TASK_NAMES
from harness.api.contract import Chain
from harness.api.protocol import Protocol
from harness.api.registry import make_detector
from harness.api.training import Recipe, TrainingImages
from harness.api.yamlsafe import load_yaml
from harness.engine.rows import load_recipe, recipe_protocol
from harness.engine.suite import load_suite, suites_folder

FOLDER = suites_folder() / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
ORDINAL, CATEGORICAL, FACES = TASK_NAMES[:4], TASK_NAMES[4:9], TASK_NAMES[9:]
SIZES = [{"resize": 256}, {"crop": 224}, {"flip": 0.5}]
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "blades_fixed": ("blades", {"step": "joint"}),
    "blades_no_exif": ("blades", {"settings.tasks": [*FACES]}),
    "blades_categorical": ("blades", {"settings.tasks": [*CATEGORICAL, *FACES]}),
    "blades_ordinal": ("blades", {"settings.tasks": [*ORDINAL, *FACES]}),
    "blades_coarse_only": ("blades", {"step": "joint", "settings.tasks": ["face_coarse"]}),
    "blades_no_fine": ("blades", {"settings.tasks": [*ORDINAL, *CATEGORICAL, "face_coarse"]}),
    "blades_difference": ("blades", {"protocol.hypergradient": "finite_difference"}),
    "blades_outer_train": ("blades", {"protocol.outer_batch": "train"}),
    "blades_no_nose": ("blades", {"protocol.regions": "mouth_eye"}),
    "blades_resampled": ("blades", {"protocol.resample_photographic": True}),
    "blades_five_levels": ("blades", {"settings.levels": 5, "data.labels": "exif_labels_5.json"}),
    "faces_small_unresampled": ("faces_small", {"protocol.resample_photographic": False}),
    "cnnd_faces_plain": ("cnnd_faces", {"settings.augment": SIZES}),
}
"""What a recipe changes of which other."""


def protocol_of(recipe: Recipe) -> dict[str, Any]:
    """Its switches, without what they are called together."""
    return {f"protocol.{k}": v for k, v in recipe_protocol(recipe).model_dump(mode="json").items()}


def flat(name: str) -> dict[str, Any]:
    recipe = load_recipe(name)
    document = recipe.model_dump(mode="json", exclude={"recipe", "protocol"})
    parts = {part: document.pop(part) for part in ("settings", "data")}
    nested = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
    return document | nested | protocol_of(recipe)


def test_there_are_recipes_of_every_family() -> None:
    assert {name.partition("_")[0] for name in NAMES} >= {"blades", "cnnd", "lgrad", "demo"}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_names_a_detector_a_step_settings_and_a_protocol_that_exist(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.recipe == name
    protocol = recipe_protocol(recipe)
    extractor = Chain.of(make_detector(recipe.detector, recipe.options, protocol)).extractor
    step = extractor.step_class(recipe.step)
    if issubclass(step, BladesJointStep):
        settings = step.settings_type.of(recipe.settings)
        assert set(settings.tasks) <= set(TASK_NAMES)
        assert set(settings.tasks) & set(FACES)
        assert (recipe.data.labels is not None) == (settings.levels == 5)
        assert recipe.generators == ()
    else:  # building it settles the settings and the augmentations, and reads no pixel
        images = TrainingImages(
            read=lambda split, i: pytest.fail("a pixel was read"), labels={"train": np.array([0, 1], np.int8)},
            generators={}, digests={}, preprocess=lambda pixels: pytest.fail("a pixel was read"),
        )  # fmt: skip
        extractor.train_step(recipe.settings, images, protocol, recipe.step)
        assert recipe.generators


@pytest.mark.parametrize("name", CHANGES)
def test_a_recipe_that_stands_on_another_changes_what_its_name_says_and_nothing_else(name: str) -> None:
    base, wanted = CHANGES[name]
    before, mine = flat(base), flat(name)
    assert {key: value for key, value in mine.items() if before.get(key) != value} == wanted
    assert before.keys() <= mine.keys()


def test_the_released_recipe_is_the_papers_under_the_released_protocol() -> None:
    paper, released = flat("blades"), flat("blades_released")
    switches = {f"protocol.{k}": v for k, v in Protocol.named("released").model_dump(mode="json").items()}
    assert released == paper | switches
    assert released != paper


def test_no_heir_of_these_is_left_out_here() -> None:
    heirs = {name for name in NAMES if "base" in load_yaml(Path(FOLDER / f"{name}.yaml"))}
    assert {name for name in heirs if not name.startswith("demo_")} == {*CHANGES, "blades_released"}


def test_the_ablation_suite_trains_each_ablation_of_blades_with_the_options_of_its_recipe() -> None:
    suite = load_suite("ablation", profile="full")
    rows = {str(row.weights).removeprefix("recipe:"): row for row in suite.detectors.values() if row.weights}
    assert rows.keys() == {"blades", *(name for name, (base, _) in CHANGES.items() if base == "blades")}
    assert all(row.options == load_recipe(name).options for name, row in rows.items())
    assert all("Nothing published stands beside this table" in str(table.note) for table in suite.tables)
    assert all(table.published is None for table in suite.tables)

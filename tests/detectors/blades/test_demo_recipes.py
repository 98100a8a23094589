"""The demo's recipes: bi-level, of options and settings that exist, and each ablation one change away from the demo."""

from __future__ import annotations

from typing import Any

import pytest

from detectors.blades.bilevel_step import BilevelSettings
from detectors.blades.one_class import BladesOC
from detectors.blades.tasks import TASK_NAMES
from harness.engine.rows import load_recipe, recipe_protocol
from harness.engine.suite import load_suite

FACES = ("face_coarse", "face_fine")
ORDINAL, CATEGORICAL = TASK_NAMES[:4], TASK_NAMES[4:9]
CHANGES: dict[str, dict[str, Any]] = {
    "demo_fixed": {"settings.lambda_lr": 0},
    "demo_no_exif": {"settings.tasks": [*FACES]},
    "demo_categorical": {"settings.tasks": [*CATEGORICAL, *FACES]},
    "demo_ordinal": {"settings.tasks": [*ORDINAL, *FACES]},
    "demo_coarse_only": {"settings.tasks": ["face_coarse"], "settings.lambda_lr": 0},
    "demo_no_fine": {"settings.tasks": [*ORDINAL, *CATEGORICAL, "face_coarse"]},
    "demo_exact": {"protocol.hypergradient": "exact"},
    "demo_outer_train": {"protocol.outer_batch": "train"},
    "demo_unresampled": {"protocol.resample_photographic": False},
}
"""What each ablation changes of demo_short."""


def flat(name: str) -> dict[str, Any]:
    document = load_recipe(name).model_dump(mode="json", exclude={"recipe"})
    parts = {part: document.pop(part) for part in ("settings", "protocol")}
    return document | {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}


def test_the_demo_is_trained_bi_level_on_all_tasks_and_resamples_photographs() -> None:
    recipe = load_recipe("demo_blades")
    assert recipe.step == "bilevel"
    settings = BilevelSettings.of(recipe.settings)
    assert settings.tasks == TASK_NAMES
    assert settings.lambda_lr > 0
    assert BladesOC.Options(**recipe.options).encoder == "demo"
    protocol = recipe_protocol(recipe)
    assert protocol.resample_photographic
    assert protocol.outer_batch == "heldout"


def test_the_ablations_base_is_a_shorter_demo_and_nothing_else() -> None:
    demo, short = flat("demo_blades"), flat("demo_short")
    assert short == demo | {"epochs": short["epochs"]}
    assert short["epochs"] < demo["epochs"]


@pytest.mark.parametrize("name", CHANGES)
def test_an_ablation_changes_what_it_says_and_nothing_else(name: str) -> None:
    recipe, demo, mine = load_recipe(name), flat("demo_short"), flat(name)
    assert recipe.recipe == name
    BilevelSettings.of(recipe.settings)
    recipe_protocol(recipe)
    changed = {key: value for key, value in mine.items() if demo.get(key) != value}
    assert changed == CHANGES[name]
    assert demo.keys() <= mine.keys()


def test_the_ablation_suites_demo_trains_each_of_them() -> None:
    suite = load_suite("ablation", profile="demo")
    named = {str(row.weights).removeprefix("recipe:") for row in suite.detectors.values()}
    assert named == {"demo_short", *CHANGES}
    for row in suite.detectors.values():
        recipe = load_recipe(str(row.weights).removeprefix("recipe:"))
        assert recipe.options == {key: row.options[key] for key in recipe.options}

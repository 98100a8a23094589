"""Images of recipes in a suite: what is wrong with one recipe's is no other row's business, and each is read once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from plugin_support import Ran, engine_run, make_data, write_suite
from tiny_training import released_layout

from harness.api.errors import ConfigError
from harness.data.exif.labels import TAGS, TagLabels, write_labels
from harness.data.training import fdf
from harness.engine import execute

pytestmark = pytest.mark.usefixtures("plugins")
RECIPE: dict[str, Any] = {
    "detector": "trained-cnn", "step": "supervised", "generators": ["ldm"], "epochs": 1, "batch_size": 8, "lr": 0.01,
    "seed": 1,
}  # fmt: skip
RELEASED: dict[str, Any] = {"generators": [], "data": {"layout": "released"}}
FIVE: dict[str, Any] = {"generators": [], "data": {"layout": "released", "labels": "exif_labels_5.json"}}


fdf_root = released_layout()


def run(root: Path, recipes: dict[str, dict[str, Any]], **how: Any) -> Ran:
    """A suite with a row a recipe, and one row that needs no weights."""
    folder = root / "work"
    folder.mkdir(exist_ok=True)
    rows: dict[str, Any] = {}
    for name, changes in recipes.items():
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, "recipe": name, **changes}))
        rows[name] = {"detector": "trained-cnn", "weights": f"recipe:{path}"}
    return engine_run(write_suite(folder, {**rows, "calibrated": {}}), root, folder, **how)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The label files with which the released layout was opened, one a time."""
    calls: list[Any] = []
    original: Callable[..., Any] = fdf.open_fdf

    def counted(path: Path, **how: Any) -> Any:
        calls.append(how["labels"])
        return original(path, **how)

    monkeypatch.setattr(fdf, "open_fdf", counted)
    return calls


def test_a_recipe_without_its_label_file_leaves_its_row_out_and_the_others_run(fdf_root: Path) -> None:
    ran = run(make_data(fdf_root.parent), {"five": FIVE, "good": {}})
    assert set(ran.plan.untrainable) == {"five"}
    said = ran.plan.untrainable["five"]
    assert said.startswith("recipe five cannot be trained here: the label file is not there (")
    assert f"{fdf_root / 'exif_labels_5.json'}); make it with `harness data exif`" in said
    assert ran.failures == {}
    assert set(ran.scores["detector"]) == {"good", "calibrated"}
    assert {work.recipe.recipe for work in ran.plan.recipes.values()} == {"good"}


def test_images_that_a_training_cannot_use_fail_its_rows_alone(fdf_root: Path) -> None:
    ran = run(make_data(fdf_root.parent), {"faces": RELEASED, "good": {}})
    assert ran.plan.untrainable == {}
    assert set(ran.failures) == {"faces"}
    assert "both classes" in ran.failures["faces"]["message"]
    assert set(ran.scores["detector"]) == {"good", "calibrated"}


def test_images_that_change_while_a_training_reads_them_fail_its_rows_alone(tmp_path: Path) -> None:
    root = make_data(tmp_path)
    recipes: dict[str, dict[str, Any]] = {"one": {}, "two": {"generators": ["ddim"]}}
    plan = run(root, recipes, plan_only=True).plan
    (work,) = [w for w in plan.recipes.values() if w.recipe.recipe == "one"]
    made = [row for row in work.source.rows["train"] if plan.manifest["label"].iloc[row] == 1]
    path = root / plan.manifest["path"].iloc[made[0]]
    kept = path.read_bytes()
    original = execute.train_recipe

    def changed(work: Any, *rest: Any, **how: Any) -> Any:
        path.write_bytes(kept[:-1] if work.recipe.recipe == "one" else kept)
        return original(work, *rest, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "train_recipe", changed)
        ran = run(root, recipes)
    assert set(ran.failures) == {"one"}
    assert "changed" in ran.failures["one"]["message"]
    assert set(ran.scores["detector"]) == {"two", "calibrated"}


def test_the_released_layout_is_opened_once_for_all_recipes_that_ask_the_same_of_it(
    fdf_root: Path, opened: list[Any]
) -> None:
    root = make_data(fdf_root.parent)
    few = {**RELEASED, "max_images": 3}
    ran = run(root, {"a": RELEASED, "b": {**RELEASED, "epochs": 2}, "c": few}, plan_only=True)
    assert opened == [None]
    faces = {work.recipe.recipe: len(work.source.table.rows("train")) for work in ran.plan.recipes.values()}
    assert faces["a"] == faces["b"] > faces["c"] == 3
    run(root, {"a": FIVE, "b": {**FIVE, "epochs": 2}, "c": RELEASED}, plan_only=True)
    assert opened == [None, "exif_labels_5.json", None]  # what failed is not tried again
    run(root, {"a": RELEASED, "b": {**RELEASED, "settings": {"levels": 5}}}, plan_only=True)
    assert len(opened) == 5


def test_a_recipe_may_name_another_label_file_beside_the_photographs(tmp_path: Path) -> None:
    root = make_data(tmp_path)
    stems = tuple(f"{i:05d}" for i in range(36))
    for name, value in (("exif_labels.json", 0), ("mine.json", 2)):
        tags = {tag: np.full(36, value, np.int16) for tag in TAGS}
        write_labels(root / "celeba-face" / name, TagLabels(stems, tuple(f"x/{s}.jpg" for s in stems), tags))
    named = {"data": {"layout": "suite", "labels": "mine.json"}}
    absent = {"data": {"layout": "suite", "labels": "nobodys.json"}}
    plan = run(root, {"plain": {}, "named": named, "absent": absent}, plan_only=True).plan
    levels = {
        work.recipe.recipe: set(work.source.annotations["train"].tags["iso"].tolist()) for work in plan.recipes.values()
    }
    assert levels == {"plain": {0, -1}, "named": {2, -1}}  # generated images have none
    assert len(plan.recipes) == 2
    assert "nobodys.json); make it with" in plan.untrainable["absent"]


@pytest.mark.parametrize("name", ["../exif_labels.json", "/etc/labels.json", "a/b.json", "labels.yaml", ".."])
def test_a_label_file_outside_the_folder_cannot_be_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.labels"):
        run(make_data(tmp_path), {"r": {"data": {"layout": "suite", "labels": name}}}, plan_only=True)

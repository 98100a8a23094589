"""A detector trained on one generator: what it was trained on is not tested, and its column is marked in tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import yaml
from plugin_support import Cli, scores_file, write_suite

from harness.engine.rows import load_recipe
from harness.engine.suite import load_suite

SMALL = {
    "base": "demo_cnnd", "recipe": "small", "generators": ["ldm"], "epochs": 2, "batch_size": 8,
    "options": {"network": "small", "crop_size": 32},
    "settings": {"augment": [{"blur": 0.5}, {"jpeg": 0.5}, {"crop": 32}, {"flip": 0.5}]},
}  # fmt: skip


def test_the_shipped_suite_names_recipes_of_one_generator_and_differing_in_augmentation_alone() -> None:
    for profile, generator in (("full", "vqgan"), ("demo", "convgan")):
        suite = load_suite("seen_unseen", profile=profile)
        recipes = [load_recipe(str(suite.detectors[row].weights)[len("recipe:") :]) for row in ("cnnd", "cnnd-plain")]
        official, plain = (recipe.model_dump(exclude={"recipe"}) for recipe in recipes)
        assert official["generators"] == (generator,)
        assert suite.detectors["blades-bc"].options["generators"] == [generator]
        names = [next(iter(entry)) for entry in official["settings"].pop("augment")]
        left = [next(iter(entry)) for entry in plain["settings"].pop("augment")]
        assert [name for name in names if name not in ("blur", "jpeg")] == left
        assert {"blur", "jpeg"} <= set(names)
        assert official == plain
        for key in ("network", "crop_size"):  # the row must be built as its recipe trained it
            assert suite.detectors["cnnd"].options.get(key) == official["options"].get(key)


def test_trained_images_are_not_tested_and_the_seen_column_is_marked(cli: Cli, data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(SMALL))
    rows = {"cnnd": {"weights": f"recipe:{recipe}", "network": "small", "crop_size": 32}}
    tables = [{"kind": "auc", "title": "AUC"}, {"kind": "accuracy", "title": "Accuracy"}]
    done = cli.run(write_suite(tmp_path, rows, tables=tables), data)
    folder = scores_file(done, cli).parent
    metrics = pd.read_csv(folder / "metrics.csv")
    auc = metrics[metrics["metric"] == "auc"].set_index(["detector", "test_set"])["seen"]
    assert {place: bool(value) for place, value in auc.items() if place[1] != "mean"} == {
        ("cnnd", "ldm"): True, ("cnnd", "ddim"): False, ("format-only", "ldm"): False, ("format-only", "ddim"): False,
    }  # fmt: skip
    for name in ("auc", "accuracy"):
        text = (folder / "tables" / f"{name}.md").read_text()
        lines = {line.split("|")[1].strip(" *"): line.split("|") for line in text.splitlines() if line.count("|") > 3}
        head = [cell.strip() for cell in lines["Detector"]]
        dagger = {row: [c for c, cell in zip(head, cells, strict=True) if "†" in cell] for row, cells in lines.items()}
        assert dagger["cnnd"] == ["LDM", "Mean"]
        assert [marks for row, marks in dagger.items() if row.startswith("format-only")] == [[]]
    tested = set(pd.read_parquet(folder / "scores.parquet").query("generator == 'ldm'")["sha256"])
    manifest = pd.read_parquet(folder / "manifest.parquet").query("generator == 'ldm'").set_index("sha256")["split"]
    assert tested == set(manifest[manifest == "report"].index)
    assert len(manifest[manifest == "train"]) > 0
    [record] = folder.glob("training/*/training.json")
    assert json.loads(record.read_text())["recipe"]["generators"] == ["ldm"]

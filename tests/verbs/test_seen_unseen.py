"""A detector trained on one generator: what it was trained on is not tested, and its column is marked in tables."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
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


KINDS = ("auc", "accuracy", "sensitivity")
NETWORK = {"network": "small", "crop_size": 32}
PUBLISHED = {"accuracy": "cross_generator", "auc": "separability", "sensitivity": "sensitivity"}


def suite(folder: Path, weights: str) -> Path:
    """`cnnd` with some weights against a row that was trained on nothing, in tables of every kind."""
    rows = {"cnnd": {"weights": weights, **NETWORK}, "calibrated": {}}
    tables = [{"kind": kind, "title": kind, "published": PUBLISHED[kind]} for kind in KINDS]
    data = {"photographs": ["celeba-face"], "generators": ["ldm", "ddim"]}  # splits as `train` makes them
    return write_suite(folder, rows, tables=tables, reference="calibrated", data=data)


@dataclass(frozen=True)
class Ran:
    """A run with a trained `cnnd`: the command line with its store, the recipe, and the folder of the run."""

    cli: Cli
    recipe: Path
    folder: Path

    def seen(self) -> dict[tuple[str, str], bool]:
        """Marks of the AUC by detector and test set."""
        metrics = pd.read_csv(self.folder / "metrics.csv")
        auc = metrics[metrics["metric"] == "auc"].set_index(["detector", "test_set"])["seen"]
        return {(str(d), str(s)): bool(value) for (d, s), value in auc.items()}


@pytest.fixture(scope="module")
def ran(installed: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The recipe trained by a suite that names it; not to be written to."""
    folder = tmp_path_factory.mktemp("seen")
    recipe, cli = folder / "small.yaml", Cli(folder / "work", (installed,))
    recipe.write_text(yaml.safe_dump(SMALL))
    return Ran(cli, recipe, scores_file(cli.run(suite(folder, f"recipe:{recipe}"), data), cli).parent)


def test_trained_images_are_not_tested(ran: Ran) -> None:
    assert {place: value for place, value in ran.seen().items() if place[1] != "mean"} == {
        ("cnnd", "ldm"): True, ("cnnd", "ddim"): False, ("calibrated", "ldm"): False, ("calibrated", "ddim"): False,
        ("format-only", "ldm"): False, ("format-only", "ddim"): False,
    }  # fmt: skip
    tested = set(pd.read_parquet(ran.folder / "scores.parquet").query("generator == 'ldm'")["sha256"])
    manifest = pd.read_parquet(ran.folder / "manifest.parquet").query("generator == 'ldm'").set_index("sha256")["split"]
    assert tested == set(manifest[manifest == "report"].index)
    assert len(manifest[manifest == "train"]) > 0
    [record] = ran.folder.glob("training/*/training.json")
    assert json.loads(record.read_text())["recipe"]["generators"] == ["ldm"]


SHOWN = {
    "auc": ["LDM", "Mean"],
    "accuracy": ["LDM", "Mean"],
    "sensitivity": ["TNR↑", "FPR↓", "TPR↑", "FNR↓", "F-score↑"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_seen_columns_are_marked_in_every_rendering_of_every_table(ran: Ran, kind: str) -> None:
    stem = ran.folder / "tables" / PUBLISHED[kind]
    text = stem.with_suffix(".md").read_text()
    lines = {line.split("|")[1].strip(" *"): line.split("|") for line in text.splitlines() if line.count("|") > 3}
    head = [cell.strip() for cell in lines["Detector"]]
    dagger = {row: [c for c, cell in zip(head, cells, strict=True) if "†" in cell] for row, cells in lines.items()}
    assert dagger["cnnd"] == SHOWN[kind]
    assert dagger["calibrated"] == []
    assert [marks for row, marks in dagger.items() if row.startswith("format-only")] == [[]]
    assert text.count("† This row") == 1
    tex = stem.with_suffix(".tex").read_text()
    (line,) = [line for line in tex.splitlines() if line.startswith("cnnd & measured")]
    assert line.count(r"\dag{}") == len(SHOWN[kind])
    assert r"\dag{} This row" in tex
    table = pd.read_csv(stem.with_suffix(".csv"))
    assert set(table[table["seen"]]["detector"]) == {"cnnd"}
    assert table["seen"].sum() == len(SHOWN[kind])
    page = (ran.folder / "report.html").read_text()
    section = page[page.index(f"<h3>{kind}</h3>") :].split("</section>")[0]
    (line,) = [line for line in section.split("<tr") if ">cnnd<" in line]
    assert line.count("†") == len(SHOWN[kind])


def test_comparisons_with_the_reference_and_with_the_paper_are_marked_too(ran: Ran) -> None:
    assert "CNND †" in (ran.folder / "tables" / "comparisons.md").read_text()
    assert r"CNND \dag{}" in (ran.folder / "tables" / "comparisons.tex").read_text()
    assert pd.read_csv(ran.folder / "tables" / "comparisons.csv")["seen"].all()
    assert ">CNND †<" in (ran.folder / "report.html").read_text()
    done = ran.cli("compare", ran.folder, "--json")
    seen = {(row["table"], row["column"]) for row in done.document["rows"] if row["seen"]}
    assert ("cross_generator", "LDM") in seen
    assert not {column for _, column in seen} & {"DDIM", "VQGAN"}
    lines = ran.cli("compare", ran.folder).out.splitlines()
    assert [line for line in lines if line.lstrip().startswith("CNND") and " LDM † " in line]
    assert not [line for line in lines if "DDIM" in line and "†" in line]


@pytest.mark.parametrize("ending", [".safetensors", pytest.param(".pth", marks=pytest.mark.slow)])
def test_an_exported_file_gives_the_marks_the_images_and_the_scores_of_its_recipe(
    ran: Ran, data: Path, tmp_path: Path, ending: str
) -> None:
    file = tmp_path / f"exported{ending}"
    fixed = ("--device", "cpu", "--threads", "1", "--tracking-uri", "off", "--json", "--store", tmp_path / "store")
    trained = ran.cli("train", ran.recipe, "--data-root", data, "--export", file, *fixed)
    assert trained.code == 0, trained.text
    cli = replace(ran.cli, folder=tmp_path / "work")
    other = Ran(cli, ran.recipe, scores_file(cli.run(suite(tmp_path, str(file)), data), cli).parent)
    assert other.seen() == ran.seen()
    scores = [pd.read_parquet(folder / "scores.parquet") for folder in (ran.folder, other.folder)]
    pd.testing.assert_frame_equal(*scores)
    manifests = [pd.read_parquet(folder / "manifest.parquet") for folder in (ran.folder, other.folder)]
    pd.testing.assert_frame_equal(*manifests)
    record = json.loads((other.folder / "record.json").read_text())
    weights = record["detectors"]["cnnd"]["weights"]["weights"]
    assert weights["trained_on"] == record["detectors"]["cnnd"]["seen"] == ["ldm"]
    assert weights["recipe_key"] == trained.document["key"]
    assert not any("trained on images of" in text for text in record["warnings"])

"""A trained weights file says on which generators it was trained, and a suite that is given the file believes it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from plugin_support import Ran, engine_run, make_data, write_suite
from safetensors import safe_open
from safetensors.numpy import save

from harness.api.errors import WeightsError
from harness.api.protocol import Protocol
from harness.api.training import Recipe
from harness.api.weights import ResolvedWeights, read_tensors
from harness.engine.origins import ENTRY, Origin, images_digest, origin_warnings, read_origin, together
from harness.engine.recipes import origin_of
from harness.engine.rows import PreparedRow, prepare_row
from harness.engine.suite import DetectorRow
from harness.verbs.train import write_export

pytestmark = pytest.mark.usefixtures("plugins")
KEY, SET, OTHER = "0" * 64, "a1" * 32, "b2" * 32
RECIPE: dict[str, Any] = {
    "recipe": "tiny", "detector": "trained-cnn", "step": "supervised", "generators": ["ldm"], "epochs": 1,
    "batch_size": 8, "lr": 0.01, "seed": 1,
}  # fmt: skip


def written(path: Path, origin: Origin | None = None, **metadata: str) -> Path:
    path.write_bytes(save({"w": np.zeros(3, np.float32)}, metadata or (origin and origin.metadata()) or None))
    return path


def test_what_is_written_is_read_and_the_bytes_repeat(tmp_path: Path) -> None:
    origin = Origin(KEY, {"ldm": (SET,), "ddim": (SET, OTHER)})
    path = written(tmp_path / "a.safetensors", origin)
    found = read_origin(path)
    assert found is not None
    assert (found.key, dict(found.generators)) == (KEY, {"ddim": (SET, OTHER), "ldm": (SET,)})
    turned = Origin(KEY, {"ddim": (SET, OTHER), "ldm": (SET,)})
    assert all(written(tmp_path / "b.safetensors", turned).read_bytes() == path.read_bytes() for _ in range(20))


@pytest.mark.parametrize("content", [b"", b"\x05", b"\xff" * 8, b"\xff" * 5 + b"\0" * 3, b"\x02\0\0\0\0\0\0\0[]"])
def test_a_file_that_is_none_states_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert read_origin(path) is None


def test_files_without_an_origin_state_none(tmp_path: Path) -> None:
    assert read_origin(written(tmp_path / "plain.safetensors")) is None
    assert read_origin(written(tmp_path / "other.safetensors", format="pt")) is None
    torch.save({"model": {"w": torch.zeros(3)}}, tmp_path / "a.pth")
    assert read_origin(tmp_path / "a.pth") is None
    (tmp_path / "b.pth").write_bytes(b"PK\x03\x04 but no archive")
    assert read_origin(tmp_path / "b.pth") is None


def test_a_file_of_torch_states_its_origin_and_loads_as_before(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"model": {"w": torch.arange(3.0)}}, buffer)
    origin = Origin(KEY, {"ldm": (SET,)})
    path = tmp_path / "a.pth"
    path.write_bytes(origin.within(buffer.getvalue()))
    assert path.read_bytes() == origin.within(buffer.getvalue())
    assert read_origin(path) == origin
    assert read_tensors(path)["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "{}", json.dumps({"recipe_key": "x", "generators": {}}),
        json.dumps({"recipe_key": KEY, "generators": ["ldm"]}),
        json.dumps({"recipe_key": KEY, "generators": {"ldm": [1]}}),
        json.dumps({"recipe_key": KEY, "generators": {"a\nb": [SET]}}),
        json.dumps({"recipe_key": KEY, "generators": {f"g{i}": [SET] for i in range(1001)}}),
        "[" * 100_000,
    ],
)  # fmt: skip
def test_an_origin_that_cannot_be_meant_is_refused(tmp_path: Path, text: str) -> None:
    path = written(tmp_path / "a.safetensors", **{ENTRY: text})
    with pytest.raises(WeightsError, match="do not say on what it was trained"):
        read_origin(path)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot read weights"):
        read_origin(tmp_path / "nowhere.safetensors")


def test_origins_are_taken_together_with_every_set_once() -> None:
    assert together([{"b": (SET,)}, {"a": (SET,), "b": (OTHER, SET)}]) == {"a": (SET,), "b": (SET, OTHER)}


def test_images_that_were_not_set_apart_are_said() -> None:
    digests = [f"{i:064x}" for i in range(6)]
    images = np.array([bytes.fromhex(d) for d in digests], "S32")
    manifest = pd.DataFrame({"generator": ["", *["ldm"] * 5], "split": ["train", "train", "select", *["report"] * 3]})

    def said(**generators: tuple[str, ...]) -> list[str]:
        row = PreparedRow("r", None, None, None, {}, origins={"weights": Origin(KEY, generators)})  # type: ignore[arg-type]
        return origin_warnings([row], manifest, images)

    assert said(ldm=(images_digest(reversed(digests[1:3])),)) == []
    assert said(elsewhere=(SET,)) == []
    assert said() == []
    for sets in ((SET,), (images_digest(digests[1:3]), SET), (images_digest(digests[1:2]),)):
        assert len(said(ldm=sets)) == 1


def run(folder: Path, root: Path, weights: str, recipe: dict[str, Any] | None = None, **changes: Any) -> Ran:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**RECIPE, **(recipe or {})}))
    weights = weights or f"recipe:{folder / 'tiny.yaml'}"
    return engine_run(write_suite(folder, {"trained-cnn": {"weights": weights}}, **changes), root, folder)


def blob(ran: Ran, folder: Path) -> Path:
    assert ran.failures == {}
    (made,) = ran.outcome.recipes.values()
    return folder / "store" / "blobs" / f"{made['sha256']}.safetensors"


def drawn(ran: Ran) -> dict[str, set[str]]:
    return {str(g): set(part["sha256"]) for g, part in ran.plan.cells.groupby("generator")}


def test_a_file_of_a_recipe_gives_the_marks_the_images_and_the_scores_of_the_recipe(data: Path, tmp_path: Path) -> None:
    first = run(tmp_path / "one", data, "")
    file = shutil.copy(blob(first, tmp_path / "one"), tmp_path / "exported.safetensors")
    second = run(tmp_path / "two", data, str(file))
    assert first.plan.rows[0].row.trained_on == second.plan.rows[0].row.trained_on == ("ldm",)
    assert second.plan.rows[0].row.trains_on == ()
    assert drawn(first) == drawn(second)
    assert first.scores.equals(second.scores)
    table = second.plan.manifest
    (work,) = first.plan.recipes.values()
    used = set(table["sha256"].iloc[[i for rows in work.source.rows.values() for i in rows]])
    assert used
    assert not used & {sha for part in drawn(second).values() for sha in part}
    rows = [second.plan.rows[0].row]
    assert origin_warnings(rows, table, second.plan.images) == []
    other = run(tmp_path / "three", data, str(file), data={
        "photographs": ["celeba-face"], "generators": ["ldm", "ddim"], "splits": {"seed": 9},
    })  # fmt: skip
    (text,) = origin_warnings([other.plan.rows[0].row], other.plan.manifest, other.plan.images)
    assert "trained-cnn: its weights were trained on images of ldm" in text


def test_a_generator_that_a_file_was_trained_on_need_not_be_here(data: Path, tmp_path: Path) -> None:
    file = blob(run(tmp_path / "one", data, ""), tmp_path / "one")
    root = Path(shutil.copytree(data, tmp_path / "data"))
    shutil.rmtree(root / "ldm")
    only = {"photographs": ["celeba-face"], "generators": ["ddim"]}
    ran = run(tmp_path / "two", root, str(file), data=only)
    assert ran.failures == {}
    assert set(drawn(ran)) == {"", "ddim"}


def test_the_header_names_no_path_and_equal_trainings_of_any_name_give_one_file(data: Path, tmp_path: Path) -> None:
    one = blob(run(tmp_path / "one", data, ""), tmp_path / "one")
    moved = make_data(tmp_path / "moved")
    two = blob(run(tmp_path / "two", moved, "", {"recipe": "another-name"}), tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()
    with safe_open(one, "np") as file:
        (text,) = file.metadata().values()
    assert set(json.loads(text)) == {"generators", "recipe_key"}
    assert str(tmp_path) not in text


def test_what_a_start_was_trained_on_counts_too(tmp_path: Path) -> None:
    start = {
        "image": ResolvedWeights("file", "x", written(tmp_path / "a.safetensors", Origin(KEY, {"ddim": (OTHER,)}))),
        "text": ResolvedWeights("file", "y", written(tmp_path / "b.safetensors")),
    }  # fmt: skip
    source = SimpleNamespace(generated=lambda: {"ldm": (SET,)})
    work: Any = SimpleNamespace(key=OTHER, source=source, start=start)
    assert origin_of(work) == Origin(OTHER, {"ddim": (OTHER,), "ldm": (SET,)})


def test_a_row_whose_recipe_starts_from_a_trained_file_has_seen_what_that_file_saw(tmp_path: Path) -> None:
    written(tmp_path / "before.safetensors", Origin(KEY, {"ddim": (SET,)}))
    recipe = Recipe.model_validate({**RECIPE, "start": {"weights": "before.safetensors"}})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    row = DetectorRow.model_validate({"weights": f"recipe:{tmp_path / 'r.yaml'}"})
    made = prepare_row("trained-cnn", row, Protocol.named("paper"), tmp_path)
    assert made.trains_on == ("ldm",)
    assert made.trained_on == ("ldm", "ddim")


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_an_export_of_a_file_that_states_nothing_is_given_the_origin(tmp_path: Path, ending: str) -> None:
    origin, export = Origin(KEY, {"ldm": (SET,)}), tmp_path / f"e{ending}"
    write_export(written(tmp_path / "old.safetensors"), export, origin)
    assert read_origin(export) == origin
    assert read_tensors(export)["w"].tolist() == [0, 0, 0]
    write_export(written(tmp_path / "new.safetensors", origin), export, Origin(OTHER, {}))
    assert read_origin(export) == origin
    write_export(written(tmp_path / "bare.safetensors"), export)
    assert read_origin(export) is None

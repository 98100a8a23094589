"""What makes two results the same thing, and what does not: Merkle keys on a real plan of real plugins."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from plugin_support import engine_run, keys_of, write_suite
from safetensors.torch import save_file

from harness.api.contract import Stage
from harness.api.errors import ConfigError
from harness.data.edits import InputEdits, MatchFormat
from harness.engine.keys import Numerics, canonical, digest_of, set_digest, stage_identity, stage_key

pytestmark = pytest.mark.usefixtures("plugins")
ROWS = {"calibrated": {}, "pseudo-head": {"generators": ["ldm"]}, "grad-map": {}, "native-size": {}}


@pytest.fixture
def keys(tmp_path: Path, data: Path):
    """Keys by row of a suite over the data, planned and not run."""

    def planned(rows: Any = ROWS, root: Path = data, changes: dict[str, Any] | None = None, **how: Any):
        suite = write_suite(tmp_path, rows, **(changes or {}))
        return keys_of(engine_run(suite, root, tmp_path, plan_only=True, **how).plan)

    return planned


def changed(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> dict[str, set[str]]:
    return {row: {k for k in before[row] if before[row][k] != after[row][k]} for row in before}


NOTHING: dict[str, set[str]] = {row: set() for row in ROWS}
EVERYTHING = {
    "calibrated": {"features", "head", "threshold"},
    "pseudo-head": {"features", "head", "upstream", "threshold"},
    "grad-map": {"maps", "features", "head", "threshold"},
    "native-size": {"features", "head", "threshold"},
}


# out: what changes no result -----------------------------------------------------------------------------------


def test_planning_again_gives_the_same_keys(keys) -> None:
    assert changed(keys(), keys()) == NOTHING


def test_moved_data_keeps_every_key(keys, data: Path, tmp_path: Path) -> None:
    assert changed(keys(), keys(root=Path(shutil.copytree(data, tmp_path / "elsewhere" / "moved")))) == NOTHING


def test_renamed_files_keep_every_key(keys, data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(data, tmp_path / "renamed"))
    for name in ("ldm", "ddim"):
        for path in list((root / name).iterdir()):
            path.rename(path.with_name(f"other-{path.name}"))
    assert changed(keys(), keys(root=root)) == NOTHING


def test_renamed_rows_keep_every_key(keys) -> None:
    renamed = keys({f"my {name}": {"detector": name, **options} for name, options in ROWS.items()})
    assert changed(keys(), {name: renamed[f"my {name}"] for name in ROWS}) == NOTHING


def test_workers_test_draws_and_other_rows_are_in_no_key(keys) -> None:
    before = keys()
    changes = {"execution": {"workers": 0, "threads": 1}, "test": {"per_generator": 3, "seed": 1}, "title": "Other"}
    assert changed(before, keys(changes=changes)) == NOTHING
    assert keys({"calibrated": {}})["calibrated"] == before["calibrated"]


def test_the_order_of_rows_and_of_test_images_is_in_no_key(keys, data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(data, tmp_path / "reordered"))
    listed = root / "celeba-face/test.txt"
    listed.write_text("".join(reversed(listed.read_text().splitlines(keepends=True))))
    assert changed(keys(), keys(dict(reversed(ROWS.items())), root=root)) == NOTHING


# in: what changes a result ----------------------------------------------------------------------------------------


def test_threads_and_edits_change_every_key(keys) -> None:
    before = keys()
    assert changed(before, keys(threads=2)) == EVERYTHING
    assert changed(before, keys(edits=InputEdits(rotate=True))) == EVERYTHING
    matched = keys(edits=InputEdits(match_format=MatchFormat(size=64, quality=90)))
    assert changed(before, matched) == EVERYTHING
    assert changed(matched, keys(edits=InputEdits(match_format=MatchFormat(size=64, quality=91)))) == EVERYTHING


def test_the_micro_batch_changes_the_keys_of_what_runs_in_batches(keys) -> None:
    assert changed(keys(), keys(batch=3)) == {**EVERYTHING, "native-size": set()}
    one = {**ROWS, "calibrated": {"batch_size": 3}}
    assert changed(keys(), keys(one)) == {**NOTHING, "calibrated": EVERYTHING["calibrated"]}


def test_an_option_changes_the_keys_from_its_stage_on(keys) -> None:
    before = keys()
    rows = {**ROWS, "calibrated": {"gain": 2.0}}
    assert changed(before, keys(rows)) == {**NOTHING, "calibrated": {"features", "head", "threshold"}}
    rows = {**ROWS, "calibrated": {"shrink": 0.5}}
    assert changed(before, keys(rows)) == {**NOTHING, "calibrated": {"head", "threshold"}}
    rows = {**ROWS, "calibrated": {"fpr": 0.3}}
    assert changed(before, keys(rows)) == {**NOTHING, "calibrated": {"threshold"}}
    rows = {**ROWS, "grad-map": {"cells": 3}}
    assert changed(before, keys(rows)) == {**NOTHING, "grad-map": {"features", "head", "threshold"}}
    rows = {**ROWS, "pseudo-head": {"generators": ["ldm"], "shrink": 0.5}}
    assert changed(before, keys(rows)) == {**NOTHING, "pseudo-head": {"upstream", "head", "threshold"}}


def test_the_fit_set_and_its_order_change_heads_and_not_features(keys, data: Path, tmp_path: Path) -> None:
    heads = {row: kinds - {"features", "maps"} for row, kinds in EVERYTHING.items()}
    assert changed(keys(), keys(changes={"fit": {"dataset": "celeba-face", "count": 5}})) == heads
    root = Path(shutil.copytree(data, tmp_path / "other-order"))
    listed = root / "celeba-face/train.txt"
    listed.write_text("".join(reversed(listed.read_text().splitlines(keepends=True))))
    assert changed(keys(), keys(root=root)) == heads


def test_generators_of_a_head_change_that_head_alone(keys) -> None:
    rows = {**ROWS, "pseudo-head": {"generators": ["ddim"]}}
    assert changed(keys(), keys(rows)) == {**NOTHING, "pseudo-head": {"head", "threshold"}}


def test_calibration_photographs_change_the_threshold_alone(keys, data: Path, tmp_path: Path) -> None:
    run = engine_run(write_suite(tmp_path, ROWS), data, tmp_path, plan_only=True)
    (row,) = [row for row in run.plan.rows if row.row.name == "calibrated"]
    root = Path(shutil.copytree(data, tmp_path / "other-calibration"))
    path = root / run.plan.manifest["path"].iloc[row.calibration_rows[0]]
    Image.fromarray(np.asarray(Image.open(path).convert("RGB")) // 2).save(path)
    after = keys(root=root)
    assert changed(keys(), after)["calibrated"] == {"threshold"}
    assert changed(keys(), after)["grad-map"] == set()


def test_weights_count_by_their_bytes_and_never_by_their_path(keys, tmp_path: Path) -> None:
    from bench_plugins.cnn import network

    first, copy, other = (tmp_path / f"{name}.safetensors" for name in ("first", "copy", "other"))
    save_file(network(8, 1).state_dict(), first)
    shutil.copy(first, copy)
    save_file(network(8, 2).state_dict(), other)
    mine, same, another, drawn, redrawn = (
        keys({"trained-cnn": {"weights": str(w)}})["trained-cnn"] for w in (first, copy, other, "random:1", "random:2")
    )
    assert mine == same
    assert len({k["features"] for k in (mine, another, drawn, redrawn)}) == 4


# sharing ---------------------------------------------------------------------------------------------------------


def test_rows_with_equal_stages_share_features_and_equal_heads_share_a_fit(keys) -> None:
    found = keys({**ROWS, "again": {"detector": "calibrated", "fpr": 0.4}})
    assert found["calibrated"]["features"] == found["pseudo-head"]["features"] == found["again"]["features"]
    assert found["calibrated"]["head"] == found["pseudo-head"]["upstream"] == found["again"]["head"]
    assert found["calibrated"]["threshold"] != found["again"]["threshold"]


def test_a_subclass_that_runs_other_code_shares_nothing(keys) -> None:
    found = keys({"native-size": {}, "slow-native": {}})
    assert found["native-size"]["features"] != found["slow-native"]["features"]


# the functions -----------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4), st.randoms())
def test_a_digest_does_not_see_the_order_of_a_mapping(value, random) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert digest_of(dict(items)) == digest_of(value)


@given(JSON, JSON)
def test_values_that_differ_have_digests_that_differ(one, other) -> None:
    assert (digest_of(one) == digest_of(other)) == (repr(canonical(one)) == repr(canonical(other)))


def test_tuples_lists_and_arrays_are_one_spelling() -> None:
    assert digest_of((1, 2)) == digest_of([1, 2]) == digest_of(np.array([1, 2]))
    assert digest_of(np.float64(0.5)) == digest_of(0.5)


def test_a_set_digest_sees_images_order_labels_and_generators() -> None:
    images = np.array([b"a" * 32, b"b" * 32], "S32")
    labels, names = np.array([0, 1]), ["", "g"]
    base = set_digest(images, labels, names)
    assert base == set_digest(images.copy(), labels.astype(np.int8), list(names))
    others = [
        set_digest(images[::-1], labels, names),
        set_digest(images, labels[::-1], names),
        set_digest(images, labels, ["", "h"]),
        set_digest(images[:1], labels[:1], names[:1]),
    ]
    assert len({base, *others}) == 5


@dataclass(frozen=True)
class Odd(Stage):
    option: Any = None


def test_an_option_without_a_stable_form_names_its_stage() -> None:
    with pytest.raises(ConfigError, match=r"test_keys\.Odd has no stable form"):
        stage_identity(Odd(print), {})


def test_nested_stages_count_with_their_own_source_and_options() -> None:
    @dataclass(frozen=True)
    class Outer(Stage):
        inner: Stage

    one, other = (stage_identity(Outer(Odd(n)), {}) for n in (1, 2))
    assert one["nested"]["inner"]["options"] == {"option": 1}
    assert digest_of(one) != digest_of(other)


def test_a_raised_version_changes_the_key() -> None:
    before = stage_identity(Odd(1), {})
    assert (
        stage_key("features", before, inputs=[], numerics=None)[0]
        != (stage_key("features", {**before, "version": "2"}, inputs=[], numerics=None)[0])
    )


def test_the_numerics_class_names_no_device_number() -> None:
    assert Numerics.here("cuda:1", 8, 1) == Numerics.here("cuda:0", 8, 1)
    assert Numerics.here("cpu", 8, 1) != Numerics.here("cuda", 8, 1)

"""A run's data from a written manifest: the same as from the files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from plugin_support import write_suite

from harness.api.errors import ConfigError, DataError
from harness.api.events import Event, silent
from harness.data.manifest import build_manifest, manifest_digest, read_manifest, write_manifest
from harness.engine.data import RunData, data_spec, prepare_data
from harness.engine.rows import prepare_rows
from harness.engine.suite import load_suite
from harness.engine.written import Written, written_data
from harness.results.store import Store

pytestmark = pytest.mark.usefixtures("plugins")
PLAIN = ("calibrated",)
SEEN = {"pseudo-head": {"generators": ["ldm"]}}


@pytest.fixture
def manifest(data: Path, tmp_path: Path) -> Path:
    """Of the data root, for rows that are trained on no generator."""
    suite = load_suite(write_suite(tmp_path, PLAIN))
    return write_manifest(build_manifest(data, data_spec(suite)).require().table, tmp_path / "manifest.parquet")


def read(
    folder: Path, manifest: Path, rows: Any = PLAIN, *, data: Path = Path(), said: list[str] | None = None, **how: Any
) -> RunData:
    suite = load_suite(write_suite(folder, rows), settings=how.pop("suite", ()))

    def listen(event: Event) -> None:
        if event.kind == "warning" and said is not None:
            said.append(str(event.fields["text"]))

    options = {"settings": (), "limit": None, "allow_outside": False, "on_bad_image": "stop", "emit": listen, **how}
    return written_data(suite, data, manifest, prepare_rows(suite, Path("pretrained")), **options)


@pytest.mark.parametrize("most", [10**6, 10])
@pytest.mark.parametrize("limit", [None, 3])
def test_the_data_are_those_that_the_files_give(data: Path, manifest: Path, tmp_path: Path, most, limit) -> None:
    path = write_manifest(read_manifest(manifest), tmp_path / "parts" / "manifest.parquet", most_rows=most)
    suite = load_suite(write_suite(tmp_path, PLAIN))
    files = prepare_data(
        suite, data, Store(tmp_path / "store"), seen=[], limit=limit, allow_outside=False, on_bad_image="stop",
        workers=0, emit=silent,
    )  # fmt: skip
    found = read(tmp_path, path, data=data, limit=limit)
    assert found.images.tolist() == files.images.tolist()
    assert found.cell_rows.tolist() == files.cell_rows.tolist()
    assert (found.draws.names, found.skipped, found.root) == (files.draws.names, 0, data)
    assert [r.tolist() for r in found.draws.rows] == [r.tolist() for r in files.draws.rows]
    one, other = tmp_path / "one.parquet", tmp_path / "other.parquet"
    assert found.put_manifest(one) == files.put_manifest(other) == manifest_digest(read_manifest(manifest))
    assert read_manifest(one).equals(read_manifest(other))
    assert one.is_dir() == (most == 10)


def test_groups_of_several_images_are_in_the_digest(manifest: Path, tmp_path: Path) -> None:
    table = read_manifest(manifest)
    table.loc[:3, "group"] = table["group"][0]
    path = write_manifest(table, tmp_path / "grouped.parquet")
    assert read(tmp_path, path).put_manifest(tmp_path / "copy.parquet") == manifest_digest(table)
    assert manifest_digest(table) != manifest_digest(read_manifest(manifest))


def test_a_folder_means_the_manifest_in_it(manifest: Path) -> None:
    assert Written.at(manifest.parent).path == manifest


def test_a_manifest_that_changes_under_the_run_is_not_taken_for_the_runs(manifest: Path, tmp_path: Path) -> None:
    found = read(tmp_path, manifest)
    write_manifest(read_manifest(manifest).iloc[:-1], manifest)
    with pytest.raises(DataError, match="manifest changed while the run was going on"):
        found.put_manifest(tmp_path / "copy.parquet")


def test_generators_that_are_seen_must_have_been_seen_by_the_index(data: Path, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'pseudo-head' is trained on generator 'ldm'[\s\S]*data index --suite"):
        read(tmp_path, manifest, SEEN)
    suite = load_suite(write_suite(tmp_path, SEEN))
    table = build_manifest(data, data_spec(suite), seen=["ldm"]).require().table
    path = write_manifest(table, tmp_path / "seen.parquet")
    said: list[str] = []
    assert read(tmp_path, path, SEEN, said=said).draws.counts()["ldm"] > 0
    assert said == []
    found = read(tmp_path, path, PLAIN, said=said)
    apart = int(((table["generator"] == "ldm") & (table["split"] != "report")).sum())
    assert [text.split(":")[0] for text in said] == [f"{apart} images of ldm are not tested"]
    assert said[0] in found.notes


@pytest.mark.parametrize("path", ["/etc/face.png", "../face.png", "ldm/../../face.png"])
def test_a_path_that_leads_outside_is_refused_unless_allowed(manifest: Path, tmp_path: Path, path: str) -> None:
    table = read_manifest(manifest)
    table.loc[2, "path"] = path
    table.loc[3, "path"] = "ldm/two..dots.png"
    changed = write_manifest(table, tmp_path / "changed.parquet")
    with pytest.raises(DataError, match=r"1 paths of the manifest lead outside[\s\S]*--allow-outside"):
        read(tmp_path, changed)
    assert any("1 images lie outside" in note for note in read(tmp_path, changed, allow_outside=True).notes)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("sha256", "xy", "64 hex digits"),
        ("sha256", "ab" * 31, "64 hex digits"),
        ("split", "test", "split 'test'"),
        ("label", 2, r"labels \[0, 1, 2\]"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(manifest: Path, tmp_path: Path, column, value, message) -> None:
    table = read_manifest(manifest)
    table.loc[5, column] = value
    with pytest.raises(DataError, match=message):
        read(tmp_path, write_manifest(table, tmp_path / "changed.parquet"))


def test_what_is_no_manifest_is_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no manifest[\s\S]*harness data index"):
        read(tmp_path, tmp_path / "gone")
    pd.read_parquet(manifest).drop(columns=["width", "group"]).to_parquet(tmp_path / "narrow.parquet")
    with pytest.raises(DataError, match="lacks the columns group, width"):
        read(tmp_path, tmp_path / "narrow.parquet")
    (tmp_path / "torn.parquet").write_bytes(manifest.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path, tmp_path / "torn.parquet")


@pytest.mark.parametrize("setting", ["data.splits.select=0.2", "data.photographs=[ffhq]", "data={}"])
def test_keys_that_make_splits_are_refused_and_those_that_choose_are_not(manifest, tmp_path, setting) -> None:
    with pytest.raises(ConfigError, match="the manifest says which images"):
        read(tmp_path, manifest, settings=(setting,))
    chosen = read(tmp_path, manifest, settings=("data.generators=[ldm]",), suite=("data.generators=[ldm]",))
    assert chosen.draws.names == ("ldm",)


def test_leaving_out_bad_images_is_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--on-bad-image skip needs every image decoded"):
        read(tmp_path, manifest, on_bad_image="skip")


def test_a_roster_holds_no_words_of_single_images_but_paths(manifest: Path, tmp_path: Path) -> None:
    found = read(tmp_path, manifest)
    objects = [name for name, kind in found.manifest.dtypes.items() if kind not in (np.int8, np.int64, "category")]
    assert objects == ["path"]

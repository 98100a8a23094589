"""Damage is mended within the run, a row that fails stays alone, and a full disk stops a run with its work kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plugin_support import ALL_ROWS, engine_run, same, write_package, write_suite
from plugin_support import ENGINE_ROWS as ROWS

from harness.api import registry
from harness.api.errors import DataError, StoreError

pytestmark = pytest.mark.usefixtures("plugins")


def segment(folder: Path, key: str, ending: str = "data") -> Path:
    return sorted((folder / "store/items" / key).glob(f"*.{ending}"))[0]


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


# damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["data", "index"])
def test_damaged_features_are_computed_again_in_the_same_run_and_said(first, data, tmp_path, run, ending: str) -> None:
    folder, ran = first
    shutil.copytree(folder / "store", tmp_path / "store")
    stage = ran.plan.rows[0].extractor
    spoil(segment(tmp_path, stage.key, ending))
    mended = run()
    assert mended.computed == {"features of calibrated+pseudo-head": len(stage.needed)}
    assert mended.scores.equals(ran.scores)
    assert any("set aside" in text for text in mended.said)
    assert run().computed == {}


def test_damaged_maps_are_computed_again_where_they_are_needed(first, data, tmp_path, run) -> None:
    folder, ran = first
    shutil.copytree(folder / "store", tmp_path / "store")
    maps, features = next(row for row in ran.plan.rows if row.row.name == "grad-map").stages
    spoil(segment(tmp_path, maps.key))
    shutil.rmtree(tmp_path / "store/items" / features.key)
    mended = run()
    assert mended.failures == {}
    assert mended.computed == {"maps of grad-map": len(maps.needed), "features of grad-map": len(maps.needed)}
    assert mended.scores.equals(ran.scores)


def test_a_damaged_head_is_fitted_again(first, data, tmp_path, run) -> None:
    folder, ran = first
    shutil.copytree(folder / "store", tmp_path / "store")
    spoil(tmp_path / "store/heads" / ran.plan.rows[0].head.key / "head.safetensors")
    mended = run()
    assert mended.scores.equals(ran.scores)
    assert any("fitted again" in text for text in mended.said)


# rows that fail -----------------------------------------------------------------------------------------------------

BAD = """
from dataclasses import dataclass
from bench_plugins.calibrated import Calibrated
from bench_plugins.gaussian import GaussianHead
from bench_plugins.pixels import PixelStatistics, Square
from harness.api.contract import Facts

@dataclass(frozen=True)
class BadSquare(Square):
    def __call__(self, pixels, sidecar=None):
        raise RuntimeError("bad preprocess")

@dataclass(frozen=True)
class BadLoad(PixelStatistics):
    def load(self, weights, device):
        raise RuntimeError("bad load")

@dataclass(frozen=True)
class BadForward(PixelStatistics):
    def load(self, weights, device):
        def forward(images):
            raise RuntimeError("bad forward")
        return forward

@dataclass(frozen=True)
class BadShape(PixelStatistics):
    def load(self, weights, device):
        return lambda images: images.mean(dim=(1, 2, 3)).unsqueeze(1)

@dataclass(frozen=True)
class BadRows(PixelStatistics):
    def load(self, weights, device):
        good = super().load(weights, device)
        return lambda images: good(images)[:1]

@dataclass(frozen=True)
class BadFit(GaussianHead):
    def fit(self, data, weights):
        raise RuntimeError("bad fit")

class Bad(Calibrated):
    facts = Facts("Bad", "", "", "")
    def preprocess(self):
        return BadSquare() if self.name == "bad-preprocess" else super().preprocess()
    def extractor(self):
        kinds = {"bad-load": BadLoad, "bad-forward": BadForward, "bad-shape": BadShape, "bad-rows": BadRows}
        return kinds.get(self.name, PixelStatistics)()
    def head(self):
        return BadFit() if self.name == "bad-fit" else super().head()
"""
WAYS = ("preprocess", "load", "forward", "shape", "rows", "fit")
BAD += "".join(f'class Bad_{way}(Bad):\n    name = "bad-{way}"\n' for way in WAYS)


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    points = {f"bad-{way}": f"h7_bad:Bad_{way}" for way in WAYS}
    monkeypatch.syspath_prepend(str(write_package(tmp_path / "bad", "h7-bad", points, {"h7_bad": BAD})))
    yield
    registry._load.cache_clear()


@pytest.mark.usefixtures("bad")
def test_a_row_that_fails_in_any_way_is_recorded_and_the_rest_go_on(first, run) -> None:
    rows = {**{f"bad-{way}": {} for way in WAYS}, **ROWS}
    ran = run(rows)
    assert set(ran.failures) == {f"bad-{way}" for way in WAYS}
    assert "RuntimeError: bad preprocess" in ran.failures["bad-preprocess"]["message"]
    assert "h7_bad.py" in ran.failures["bad-fit"]["traceback"]
    assert "[8, 9]" in ran.failures["bad-shape"]["message"]
    assert "gave [1, 9]" in ran.failures["bad-rows"]["message"]
    assert same(ran, first[1])
    assert all(len(ran.of(row)) == len(first[1].of(row)) for row in ROWS)


def test_an_image_that_changes_under_the_run_stops_it_and_is_named(data: Path, tmp_path: Path, monkeypatch) -> None:
    from harness.engine.images import Reader

    root = Path(shutil.copytree(data, tmp_path / "changing"))
    original = Reader.pixels

    def changed(self: Reader, row: int) -> np.ndarray:
        Image.new("RGB", (50, 50)).save(root / "ldm/0000.png")
        return original(self, row)

    monkeypatch.setattr(Reader, "pixels", changed)
    with pytest.raises(DataError, match=r"ldm/0000\.png"):
        engine_run(write_suite(tmp_path, {"calibrated": {}}), root, tmp_path)


def test_a_full_disk_stops_the_run_and_keeps_earlier_stages(run, tmp_path: Path, first, monkeypatch) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StoreError, match="what was computed before is kept"):
            run({"calibrated": {}, "grad-map": {}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resumed = run({"calibrated": {}, "grad-map": {}})
    assert "features of calibrated" not in resumed.computed
    assert same(resumed, first[1], ["calibrated", "grad-map"])


def test_a_disk_that_is_too_small_is_known_before_anything_is_computed(run, tmp_path: Path, monkeypatch) -> None:
    from collections import namedtuple

    from harness.engine.execute import check_disk
    from harness.results.store import Store

    plan = run({"grad-map": {}}, plan_only=True).plan
    check_disk(plan, Store(tmp_path / "store"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 60 << 20))
    with pytest.raises(StoreError, match=r"GB free[\s\S]*--store"):
        check_disk(plan, Store(tmp_path / "store"))


# what a row fitted --------------------------------------------------------------------------------------------------


def test_a_fitted_folder_names_weights_and_sets_by_digest(first) -> None:
    folder, ran = first
    document = json.loads((folder / "fitted/pseudo-head/fitted.json").read_text())
    (row,) = [r for r in ran.plan.rows if r.row.name == "pseudo-head"]
    fitted = ran.plan.manifest["sha256"].iloc[row.head.fit_rows]
    assert document["fit_set"] == hashlib.sha256("".join(fitted).encode()).hexdigest()
    assert document["fit_images"] == len(fitted)
    assert document["options"]["generators"] == ["ldm"]
    assert document["threshold"] == 0.5
    assert str(folder) not in json.dumps(document)
    assert {p.name for p in (folder / "fitted").iterdir()} == set(ALL_ROWS)

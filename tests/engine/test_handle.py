"""A detector in Python, and a fitted one loaded again: the same scores to the bit as in the run that fitted it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plugin_support import engine_run, write_suite
from safetensors.torch import save_file

import harness
from harness.api.errors import ConfigError, DataError, ProtocolError, WeightsError
from harness.data.edits import InputEdits, MatchFormat
from harness.engine.handle import load_detector, load_fitted

pytestmark = pytest.mark.usefixtures("plugins")
ROWS = {
    "calibrated": {}, "pseudo-head": {"generators": ["ldm"]}, "grad-map": {}, "native-size": {}, "abstainer": {},
    "trained-cnn": {"weights": "random:3"},
}  # fmt: skip


def photographs(data: Path) -> list[Path]:
    return sorted((data / "celeba-face/imgs").iterdir())


def made(data: Path) -> list[Path]:
    return sorted(p for p in (data / "ldm").iterdir() if p.suffix != ".json")


@pytest.mark.parametrize(
    "how", [{}, {"batch": 5}, {"edits": InputEdits(match_format=MatchFormat(size=56, quality=70))}]
)
def test_every_fitted_detector_of_a_run_scores_as_in_the_run_to_the_bit(data: Path, tmp_path: Path, how) -> None:
    root = Path(shutil.copytree(data, tmp_path / "data"))
    for path in made(root)[:4]:
        side = min(Image.open(path).size)
        path.with_name(path.name + ".json").write_text(json.dumps({"box": [side - 42, side - 42, side, side]}))
    ran = engine_run(write_suite(tmp_path, ROWS), root, tmp_path, **how)
    assert ran.failures == {}
    table = ran.plan.manifest.drop_duplicates("sha256").set_index("sha256")
    for row in ROWS:
        handle = load_fitted(tmp_path / "fitted" / row)
        expected = ran.scores[ran.scores["detector"] == row]
        paths = [root / table.loc[sha, "path"] for sha in expected["sha256"]]
        assert np.array_equal(handle.score(paths), expected["score"].to_numpy(), equal_nan=True), row
        assert np.array_equal(handle.score(paths[:3]), expected["score"].to_numpy()[:3], equal_nan=True), row
        assert handle.threshold == expected["threshold"].iloc[0]


def test_fit_save_and_load_keep_every_bit(data: Path, tmp_path: Path) -> None:
    for name in ("grad-map", "native-size"):
        handle = load_detector(name).fit(photographs(data)[:20])
        again = load_fitted(handle.save(tmp_path / name))
        images = [*photographs(data)[20:], *made(data)]
        assert np.array_equal(handle.score(images), again.score(images))
        assert handle.threshold == again.threshold


def test_paths_and_arrays_and_no_image_at_all_are_images(data: Path) -> None:
    handle = load_detector("native-size").fit(photographs(data)[:10])
    path = made(data)[0]
    pixels = np.asarray(Image.open(path).convert("RGB"))
    scores = handle.score([path, str(path), pixels])
    assert scores[0] == scores[1] == scores[2]
    assert handle.score([]).shape == (0,)
    assert handle.features([]).shape == (0, 6)


def test_images_of_different_sizes_go_through_one_call(data: Path) -> None:
    handle = load_detector("native-size")
    images = [*photographs(data)[:6], *made(data)[:6]]
    together = handle.features(images)
    assert np.array_equal(together, np.concatenate([handle.features([image]) for image in images]))


def test_an_image_on_which_the_detector_abstains_has_no_score(data: Path) -> None:
    handle = load_detector("abstainer").fit(photographs(data)[4:20])
    assert [math.isnan(score) for score in handle.score(photographs(data)[3:5])] == [True, False]


def test_a_head_that_learns_from_both_needs_both(data: Path) -> None:
    handle = load_detector("pseudo-head", generators=("ldm",))
    with pytest.raises(ProtocolError, match="learns from generated images too"):
        handle.fit(photographs(data)[:12])
    assert np.isfinite(handle.fit(photographs(data)[:12], made(data)).score(made(data))).all()


def test_held_out_calibration_needs_a_suite(data: Path) -> None:
    with pytest.raises(ProtocolError, match="held-out"):
        load_detector("calibrated").fit(photographs(data)[:12])


def test_what_is_not_fitted_says_so(data: Path, tmp_path: Path) -> None:
    handle = load_detector("grad-map")
    for use in (lambda: handle.score(made(data)), lambda: handle.threshold, lambda: handle.save(tmp_path)):
        with pytest.raises(ProtocolError, match=r"not fitted[\s\S]*fit\(\)"):
            use()


def test_a_detector_with_a_fixed_threshold_and_no_fit_scores_at_once(data: Path) -> None:
    handle = load_detector("trained-cnn", "random:2")
    assert np.isfinite(handle.score(made(data))).all()
    assert handle.threshold == 0


def test_missing_weights_say_where_they_come_from_and_where_they_go(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        load_detector("trained-cnn", weights_root=tmp_path)
    assert all(word in str(caught.value) for word in ("tiny/cnn.safetensors", "the shelf of nobody", str(tmp_path)))


def test_a_fitted_folder_asks_for_its_own_weights_file(data: Path, tmp_path: Path) -> None:
    from bench_plugins.cnn import network

    path, other = tmp_path / "own.safetensors", tmp_path / "other.safetensors"
    save_file(network(8, 1).state_dict(), path)
    save_file(network(8, 2).state_dict(), other)
    folder = load_detector("trained-cnn", str(path)).save(tmp_path / "fitted")
    assert str(tmp_path) not in (folder / "fitted.json").read_text()
    with pytest.raises(WeightsError, match=r"own\.safetensors[\s\S]*weights=PATH"):
        load_fitted(folder)
    with pytest.raises(WeightsError, match="not the file"):
        load_fitted(folder, other)
    assert np.array_equal(
        load_fitted(folder, path).score(made(data)), load_detector("trained-cnn", str(path)).score(made(data))
    )


@pytest.mark.parametrize("how", ["empty", "no JSON", "no head", "damaged head", "keys gone", "not there"])
def test_what_is_no_fitted_folder_is_refused_and_named(data: Path, tmp_path: Path, how: str) -> None:
    folder = load_detector("grad-map").fit(photographs(data)[:12]).save(tmp_path / "fitted")
    if how == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == "not there":
        shutil.rmtree(folder)
    elif how == "no JSON":
        (folder / "fitted.json").write_text("{")
    elif how == "keys gone":
        (folder / "fitted.json").write_text("{}")
    elif how == "no head":
        shutil.rmtree(folder / "head")
    else:
        (folder / "head/head.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"not a fitted detector[\s\S]*fitted"):
        load_fitted(folder)


def test_unknown_names_and_options_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'grad-map'"):
        harness.load_detector("grad-mpa")
    with pytest.raises(ConfigError, match="did you mean 'cells'"):
        harness.load_detector("grad-map", cels=3)

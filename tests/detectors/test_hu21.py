"""Hu21: the authors' masks and overlap exactly, landmarks from files, and abstention where they give up."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.hu21 import Hu21, Hu21Options, pack_eyes, unpack_eyes
from detectors.hu21_landmarks import landmarks_file, read_landmarks
from detectors.hu21_steps import (
    Eye,
    Undecided,
    best_overlap,
    circle_of,
    edges_of,
    eroded,
    eye_of,
    first_pass,
    highlight_of,
    iris_of,
    overlap_of,
    padded,
)
from harness.api.contract import Abstain, Chain, predict
from harness.api.errors import ConfigError, DataError, WeightsError
from harness.api.images import decode
from harness.api.weights import ResolvedWeights, file_digest
from harness.engine.handle import DetectorHandle
from harness.engine.selfcheck import features_now

SIDES = {"L": slice(36, 42), "R": slice(42, 48)}


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(golden_dir / "detectors" / "hu21" / "golden.npz", allow_pickle=False))


def eyes(golden: dict[str, np.ndarray]) -> dict[str, Eye]:
    return {s: eye_of(golden["f0_image"], golden["f0_landmarks"][points]) for s, points in SIDES.items()}


def face(folder: Path, golden_dir: Path, golden: dict[str, np.ndarray], name: str = "face.png") -> Path:
    """The golden face with its landmarks beside it."""
    image = folder / name
    shutil.copy(golden_dir / "detectors" / "hu21" / "face0_640.png", image)
    points = golden["f0_landmarks"].tolist()
    image.with_name(f"{name}.json").write_text(json.dumps({"landmarks": points, "finder": "golden"}))
    return image


def test_every_mask_equals_the_authors(golden: dict[str, np.ndarray]) -> None:
    for side, eye in eyes(golden).items():
        np.testing.assert_array_equal(eye.crop, golden[f"f0_eye_{side}"])
        np.testing.assert_array_equal(eye.mask, golden[f"f0_eyemask_{side}"])
        np.testing.assert_array_equal(edges_of(eye), golden[f"f0_edges_{side}"])
        circle = circle_of(eye)
        iris = iris_of(eye, circle)
        sure, bright = first_pass(eye, iris)
        assert [circle.x, circle.y, circle.radius, bright, circle.found] == golden[f"f0_circle_{side}"].tolist()
        np.testing.assert_array_equal(iris, golden[f"f0_iris_{side}"])
        np.testing.assert_array_equal(sure, golden[f"f0_firstpass_{side}"])
        shrunk = eroded(eroded(iris))
        np.testing.assert_array_equal(shrunk, golden[f"f0_eroded_{side}"])
        highlight, threshold = highlight_of(eye, shrunk, sure)
        expected = golden[f"f0_highlight_{side}_padded"]
        np.testing.assert_array_equal(padded(highlight, *expected.shape), expected)
        assert threshold == golden["f0_yen"]["LR".index(side)]


def test_shift_overlap_and_iou_equal_the_authors(golden: dict[str, np.ndarray]) -> None:
    found = overlap_of(*eyes(golden).values())
    assert [found.dx, found.dy] == golden["f0_opt_shift_dx_dy"].tolist()
    assert found.pixels == golden["f0_overlap"]
    assert np.float32(found.iou) == golden["f0_iou"]


def slow_overlap(left: np.ndarray, right: np.ndarray) -> tuple[int, int, int, float]:
    """The authors' search as they describe it: every shift in turn, the last of the best."""
    height, width = right.shape
    best = (0, 0, -1, 0.0)
    for dy in range(-(height // 6), height // 6):
        for dx in range(-(width // 5), width // 5):
            moved = np.zeros_like(left)
            ys, xs = np.nonzero(left)
            ys, xs = ys + dy, xs + dx
            keep = (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
            moved[ys[keep], xs[keep]] = True
            count, union = int((moved & right).sum()), int((moved | right).sum())
            if count >= best[2]:
                best = (dx, dy, count, count / union if union else 0.0)
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(6, 14), st.integers(5, 16), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.2, 0.7]))
def test_the_fast_search_finds_what_trying_every_shift_finds(height: int, width: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    left, right = (rng.random((height, width)) < share for _ in range(2))
    assert tuple(best_overlap(left, right)) == slow_overlap(left, right)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_erosion_equals_the_authors_loop_and_its_failures(seed: int, border: bool) -> None:
    mask = np.random.default_rng(seed).random((6, 7)) < 0.8
    if border:
        mask[-1], mask[:, -1] = False, False

    def loop() -> np.ndarray | None:
        out = np.zeros_like(mask)
        try:
            for i, j in np.argwhere(mask):
                out[i, j] = not (not mask[i - 1, j] or not mask[i + 1, j] or not mask[i, j - 1] or not mask[i, j + 1])
        except IndexError:
            return None
        return out

    expected = loop()
    if expected is None:
        with pytest.raises(Undecided):
            eroded(mask)
    else:
        np.testing.assert_array_equal(eroded(mask), expected)


def test_eyes_without_highlights_or_extent_are_undecided(golden: dict[str, np.ndarray]) -> None:
    dark = np.minimum(golden["f0_image"], 120)
    points = golden["f0_landmarks"]
    with pytest.raises(Undecided, match="neither eye has a highlight"):
        overlap_of(eye_of(dark, points[36:42]), eye_of(dark, points[42:48]))
    with pytest.raises(Undecided):
        eye_of(dark, points[36:42] + 5000)
    with pytest.raises(Undecided):
        eye_of(dark, np.full((6, 2), 100, np.int32))
    small = np.array([[100, 100], [101, 99], [102, 99], [103, 100], [102, 101], [101, 101]], np.int32)
    with pytest.raises(Undecided):
        overlap_of(eye_of(dark, small), eye_of(dark, small))


def test_two_eyes_of_different_sizes_survive_packing(golden: dict[str, np.ndarray]) -> None:
    left = eyes(golden)["L"]
    right = Eye(left.crop[5:, :-9].copy(), left.mask[5:, :-9].copy())
    planes = pack_eyes(left, right)
    assert planes.shape == (8, *left.mask.shape)
    for eye, back in zip((left, right), unpack_eyes(planes.numpy()), strict=True):
        np.testing.assert_array_equal(back.crop, eye.crop)
        np.testing.assert_array_equal(back.mask, eye.mask)


def test_score_of_a_file_with_landmarks_is_one_minus_the_overlap(
    golden_dir: Path, golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    handle = DetectorHandle(Hu21(), {})
    path = face(tmp_path, golden_dir, golden)
    features = handle.features([path, path])
    assert (features.shape, features.dtype) == ((2, 1), np.float32)
    np.testing.assert_allclose(features, 1 - float(golden["f0_iou"]), rtol=0, atol=1e-6)


def test_places_batches_and_companions_move_no_bit_and_what_has_no_landmarks_abstains(
    golden_dir: Path, golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = face(tmp_path, golden_dir, golden)
    pixels = decode(path.read_bytes(), name="face")
    chain = Chain.of(Hu21())
    beside = chain.preprocess.sidecar(path)
    dark, noise = np.minimum(pixels, 120), np.clip(pixels.astype(int) + 3, 0, 255).astype(np.uint8)
    images, sidecars = [pixels, pixels, dark, noise], [beside, None, beside, beside]
    out = features_now(chain, {}, images, 1, sidecars)[:, 0]
    assert np.isnan(out).tolist() == [False, True, True, False]
    turned = features_now(chain, {}, images[::-1], 1, sidecars[::-1])[::-1, 0]
    np.testing.assert_array_equal(turned, out)
    np.testing.assert_array_equal(features_now(chain, {}, images, 4, sidecars)[:, 0], out)
    assert predict(out.astype(np.float64), 0.5).tolist() == [0, -1, -1, predict(out[3:], 0.5)[0]]


def test_a_threshold_is_a_quantile_of_the_photographs_that_have_a_score(
    golden_dir: Path, golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with_score = face(tmp_path, golden_dir, golden)
    without = face(tmp_path, golden_dir, golden, "other.png")
    without.with_name("other.png.json").unlink()
    handle = DetectorHandle(Hu21(), {}).fit([with_score, without])
    assert handle.threshold == pytest.approx(1 - float(golden["f0_iou"]), abs=1e-6)
    scores = handle.score([with_score, without])
    assert np.isnan(scores).tolist() == [False, True]


def test_either_kind_of_landmarks_file_gives_the_same_points_and_json_comes_first(
    golden_dir: Path, golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    image = face(tmp_path, golden_dir, golden)
    points = golden["f0_landmarks"]
    by_json = landmarks_file(image)
    assert by_json == tmp_path / "face.png.json"
    np.save(tmp_path / "face.png.npy", points.astype(np.float32) + np.float32(0.2))
    assert landmarks_file(image) == by_json
    np.testing.assert_array_equal(read_landmarks(by_json, 640, 640), points)
    by_json.unlink()
    by_npy = landmarks_file(image)
    assert by_npy == tmp_path / "face.png.npy"
    np.testing.assert_array_equal(read_landmarks(by_npy, 640, 640), points)
    by_npy.unlink()
    assert landmarks_file(image) is None


def test_landmarks_follow_an_edit_that_changes_the_images_size(
    golden_dir: Path, golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    beside = landmarks_file(face(tmp_path, golden_dir, golden))
    assert beside is not None
    moved = read_landmarks(beside, width=1280, height=320)
    np.testing.assert_array_equal(moved[36:48], np.round(golden["f0_landmarks"][36:48] * [2.0, 0.5]))


def test_landmarks_join_what_an_images_result_is_stored_under(
    golden_dir: Path, golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    import pandas as pd

    from harness.engine.plan import item_digests
    from harness.results.digests import digests_array

    image = face(tmp_path, golden_dir, golden)
    manifest = pd.DataFrame({"sha256": [file_digest(image)], "path": ["face.png"]})
    images, preprocess = digests_array([file_digest(image)]), Hu21().preprocess()
    first = item_digests(images, manifest, tmp_path, preprocess)
    (tmp_path / "face.png.json").write_text('{"landmarks": null}')
    second = item_digests(images, manifest, tmp_path, preprocess)
    assert first[0] != second[0]
    with pytest.raises(Abstain):
        preprocess(golden["f0_image"], preprocess.sidecar(image))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"landmarks": 3}', '{"landmarks": [[1, 2]]}', '{"points": []}', "\x00\xff", "[" * 100_000,
     json.dumps({"landmarks": [["a", "b"]] * 68}), json.dumps({"landmarks": [[1e99, 0]] * 68}),
     json.dumps({"landmarks": [[float("nan"), 0]] * 68}), json.dumps({"landmarks": [[1, 2, 3]] * 68}),
     json.dumps({"landmarks": [[1, 2]] * 67 + [[1]]}), " " * (1 << 20) + "{}"],
)  # fmt: skip
def test_a_spoilt_landmarks_file_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "face.png.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"face\.png\.json"):
        read_landmarks(path, 640, 640)


def test_an_array_file_of_objects_or_garbage_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "face.png.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"face\.png\.npy"):
        read_landmarks(path, 640, 640)
    path.write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(DataError, match=r"face\.png\.npy"):
        read_landmarks(path, 640, 640)


def _dlib_row(tmp_path: Path) -> tuple[Chain, dict[str, ResolvedWeights]]:
    predictor = tmp_path / "shape_predictor_68_face_landmarks.dat"
    predictor.write_bytes(b"a predictor")
    weights = {"landmarks": ResolvedWeights("file", file_digest(predictor), predictor)}
    return Chain.of(Hu21(Hu21Options(landmarks="dlib"))), weights


def test_without_dlib_the_error_says_what_to_install(tmp_path: Path) -> None:
    if importlib.util.find_spec("dlib") is not None:
        pytest.skip("dlib is installed")
    chain, weights = _dlib_row(tmp_path)
    assert chain.slots == ("landmarks",)
    with pytest.raises(ConfigError, match="pip install dlib"):
        chain.extractor.load(weights, "cpu")


def _stand_in(monkeypatch: pytest.MonkeyPatch, points: np.ndarray, faces: list[int]) -> None:
    """A module with the three calls of dlib that are used; finds `faces.pop(0)` faces."""
    parts = [SimpleNamespace(x=int(x), y=int(y)) for x, y in points]
    shape = SimpleNamespace(num_parts=len(parts), part=parts.__getitem__)
    module = SimpleNamespace(
        get_frontal_face_detector=lambda: lambda pixels, upsample: [object()] * faces.pop(0),
        shape_predictor=lambda path: lambda pixels, box: shape,
    )
    monkeypatch.setitem(sys.modules, "dlib", module)


def test_with_dlib_one_face_scores_and_none_or_two_abstain(
    golden: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_in(monkeypatch, golden["f0_landmarks"], [1, 0, 2])
    chain, weights = _dlib_row(tmp_path)
    out = features_now(chain, weights, [golden["f0_image"]] * 3, 1)[:, 0]
    assert np.isnan(out).tolist() == [False, True, True]
    assert out[0] == pytest.approx(1 - float(golden["f0_iou"]), abs=1e-6)


def test_a_predictor_cannot_be_random_changed_or_of_another_kind(
    golden: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_in(monkeypatch, golden["f0_landmarks"][:5], [1])
    chain, weights = _dlib_row(tmp_path)
    with pytest.raises(WeightsError, match="cannot be random"):
        chain.extractor.load({"landmarks": ResolvedWeights("random", "random:0")}, "cpu")
    with pytest.raises(WeightsError, match="5 points"):
        chain.extractor.load(weights, "cpu")(torch.zeros(1, 3, 64, 64))
    assert weights["landmarks"].path is not None
    weights["landmarks"].path.write_bytes(b"another")
    with pytest.raises(WeightsError, match="changed"):
        chain.extractor.load(weights, "cpu")

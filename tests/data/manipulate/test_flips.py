"""Flipped regions against the released code's masks and faces."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.manipulate import regions
from harness.data.manipulate.flips import (
    EYE_FLIPPED,
    MOUTH_FLIPPED,
    MOUTH_ROTATED,
    NOSE_FLIPPED,
    RATIOS,
    Flip,
    draw_ratio,
    flip_region,
)
from harness.data.manipulate.regions import Box, Line, blend_mask, bounding_box, line_mask, region_box, region_mask

SIDE = 224
GOLDEN_FLIPS = {
    "mouth_v": MOUTH_ROTATED,
    "mouth_h": MOUTH_FLIPPED,
    "eye_h": EYE_FLIPPED,
    "nose_h": NOSE_FLIPPED,
    "nose_default(-1)": Flip("nose", (0, 1), 3),
}


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, np.ndarray]:
    with np.load(golden_dir / "masks.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file}


def as_released(box: Box) -> list[int]:
    return [box.right - box.left, box.bottom - box.top, *box]


def box_of(flip: Flip, golden: dict[str, np.ndarray]) -> Box:
    box = region_box(flip.region, golden["landmarks"], SIDE, SIDE)
    assert box is not None
    return box


@pytest.mark.parametrize(("name", "key"), [("mouth", "3"), ("eye", "1"), ("nose", "4")])
def test_region_and_its_box_are_the_released_ones(golden: dict[str, np.ndarray], name: str, key: str) -> None:
    mask = region_mask(name, golden["landmarks"], SIDE, SIDE)
    assert np.array_equal(mask, golden[f"parse/{key}"])
    box = region_box(name, golden["landmarks"], SIDE, SIDE)
    assert box is not None
    assert as_released(box) == golden[f"boundary/{key}"].tolist()
    assert bounding_box(mask) == box


def test_the_other_eye_and_both_eyes_are_the_released_ones(golden: dict[str, np.ndarray]) -> None:
    points = golden["landmarks"].astype(int)
    reach = regions.region_line("eye", golden["landmarks"]).reach
    left = line_mask(Line(tuple(points[36]), tuple(points[39]), reach), SIDE, SIDE)
    assert np.array_equal(left, golden["parse/0"])
    assert np.array_equal(left | region_mask("eye", golden["landmarks"], SIDE, SIDE), golden["parse/2"])


def test_of_two_parts_the_box_is_around_the_released_one(golden: dict[str, np.ndarray]) -> None:
    box = bounding_box(golden["two/mask"])
    assert box is not None
    assert as_released(box) == golden["two/boundary"].tolist()


@pytest.mark.parametrize("name", ["mouth", "eye", "nose"])
def test_blend_masks_are_the_released_ones(golden: dict[str, np.ndarray], name: str) -> None:
    box = region_box(name, golden["landmarks"], SIDE, SIDE)
    assert box is not None
    expected = golden[f"blend_mask/{name}"][..., 0]
    np.testing.assert_allclose(blend_mask(name, box, SIDE, SIDE), expected, atol=1e-6, rtol=0)
    kernel, sigma = (15, 2) if name == "nose" else (91, 7)
    np.testing.assert_allclose(regions.soften(golden[f"rect/{name}"], kernel, sigma), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("key", "01234")
def test_softened_region_masks_are_the_released_ones(golden: dict[str, np.ndarray], key: str) -> None:
    soft = regions.soften(golden[f"parse/{key}"].astype(np.float64), 5, 0)
    np.testing.assert_allclose(soft, golden[f"parse_blurred/{key}"][..., 0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("key", GOLDEN_FLIPS)
def test_flipped_faces_are_the_released_ones(golden: dict[str, np.ndarray], key: str, seed: int) -> None:
    ratio = float(golden[f"{key}/seed{seed}/ratio"])
    before = golden["image"].copy()
    ours = flip_region(golden["image"], GOLDEN_FLIPS[key], box_of(GOLDEN_FLIPS[key], golden), ratio)
    assert np.array_equal(golden["image"], before)
    distance = np.abs(ours.astype(int) - golden[f"{key}/seed{seed}/out"])
    assert distance.max() <= 1
    assert (distance > 0).mean() < 0.02  # where rounding errors darken the released one
    assert (ours != before).any(axis=-1).sum() > 500


places = st.integers(-30, 254)


@given(start=st.tuples(places, places), end=st.tuples(places, places), reach=st.integers(0, 60))
@settings(max_examples=150, deadline=None)
def test_a_region_is_what_iterated_dilation_gives(start: tuple[int, int], end: tuple[int, int], reach: int) -> None:
    from scipy.ndimage import binary_dilation

    canvas = np.zeros((SIDE, SIDE), np.uint8)
    cv2.line(canvas, start, end, color=1, thickness=2)
    expected = binary_dilation(canvas, iterations=reach) if reach else canvas.astype(bool)
    assert np.array_equal(line_mask(Line(start, end, reach), SIDE, SIDE), expected)


@given(seed=st.integers(0, 10_000), height=st.integers(16, 260), width=st.integers(16, 260))
@settings(max_examples=60, deadline=None)
def test_boxes_without_dilation_are_those_of_the_masks(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    landmarks = rng.uniform(-0.3, 1.3, (68, 2)) * (width, height)
    for name in regions.NAMES:
        around = bounding_box(region_mask(name, landmarks, height, width))
        box = region_box(name, landmarks, height, width)
        if box is None:
            assert around is None or min(around.right - around.left, around.bottom - around.top) < 3
        else:
            assert box == around


@given(data=st.data(), name=st.sampled_from(regions.NAMES))
@settings(max_examples=60, deadline=None)
def test_blend_mask_of_a_box_is_the_softened_box(data: st.DataObject, name: str) -> None:
    """Profiles and windows are shortcuts: the result is that of blurring the whole image."""
    height, width = data.draw(st.integers(60, 240)), data.draw(st.integers(60, 240))
    left, top = data.draw(st.integers(0, width - 4)), data.draw(st.integers(0, height - 4))
    box = Box(left, top, data.draw(st.integers(left + 3, width)), data.draw(st.integers(top + 3, height)))
    rectangle = np.zeros((height, width), np.uint8)
    rectangle[box.slices] = 1
    kernel, sigma = regions._CORES[name]
    if cv2.GaussianBlur(rectangle, (kernel, kernel), sigma).max() == 0 and (
        cv2.GaussianBlur(rectangle, (kernel, kernel), 1).max() == 0
    ):
        with pytest.raises(ValueError, match="too thin"):
            blend_mask(name, box, height, width)
        return
    mask = blend_mask(name, box, height, width)
    np.testing.assert_allclose(mask, regions.soften(rectangle, kernel, sigma), atol=1e-12, rtol=0)
    assert mask.min() >= 0
    assert mask.max() == 1


def test_nothing_outside_the_patch_changes(golden: dict[str, np.ndarray]) -> None:
    for flip in GOLDEN_FLIPS.values():
        box = box_of(flip, golden)
        out = flip_region(golden["image"], flip, box, 1.0)
        changed = (out != golden["image"]).any(axis=-1)
        changed[box.grown(flip.margin, SIDE, SIDE).slices] = False
        assert not changed.any()


def test_even_areas_stay_as_they_are() -> None:
    face = np.full((SIDE, SIDE, 3), 200, np.uint8)
    box = Box(70, 90, 150, 130)
    for flip in GOLDEN_FLIPS.values():
        for ratio in RATIOS:
            assert np.array_equal(flip_region(face, flip, box, ratio), face)


def test_ratio_is_one_three_times_in_four() -> None:
    rng = np.random.default_rng(3)
    ratios = [draw_ratio(rng) for _ in range(4000)]
    assert set(ratios) == {0.75, 1.0}
    assert np.mean(np.array(ratios) == 1) == pytest.approx(0.75, abs=0.03)

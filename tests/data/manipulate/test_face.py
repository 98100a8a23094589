"""One manipulated face: sizes, streams, what stands in without landmarks, and the way there and back."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.api.errors import ConfigError, DataError
from harness.data.demo.corpus import take_photograph
from harness.data.manipulate import sheet as sheet_module
from harness.data.manipulate.face import MANIPULATIONS, at_work_size, brought_back, manipulate_face, resample
from harness.data.manipulate.flips import EYE_FLIPPED, NOSE_FLIPPED, draw_ratio, flip_region
from harness.data.manipulate.regions import region_box
from harness.data.manipulate.sheet import contact_sheet

FACE = take_photograph(7, 0, 128)


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_numbers_are_the_released_ones_and_labels_are_of_what_changes() -> None:
    assert [m.number for m in MANIPULATIONS] == [0, 1, 2, 3, 4]
    assert [m.name for m in MANIPULATIONS] == [
        "mouth_rotated", "mouth_flipped", "eye_flipped", "whole_face", "nose_flipped",
    ]  # fmt: skip
    assert [m.regions for m in MANIPULATIONS] == [
        ("mouth",), ("mouth",), ("eye",), ("mouth", "eye", "nose"), ("nose",),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(5))
def test_each_changes_the_face_where_it_says_and_is_drawn_from_its_stream_alone(number: int) -> None:
    before = FACE.image.copy()
    made = manipulate_face(FACE.image, number, FACE.landmarks, stream(1))
    again = manipulate_face(FACE.image, number, FACE.landmarks.astype(np.float32), stream(1))
    assert made is not None
    assert again is not None
    assert np.array_equal(FACE.image, before)
    assert np.array_equal(made.pixels, again.pixels)
    assert (made.pixels.shape, made.pixels.dtype, made.fell_back) == (before.shape, np.uint8, False)
    plain = brought_back(at_work_size(before, 224), (128, 128))
    changed = np.abs(made.pixels.astype(int) - plain).max(axis=-1) > 8
    assert changed.any()
    (region, *others) = MANIPULATIONS[number].regions
    if not others:
        box = region_box(region, FACE.landmarks, 128, 128)
        assert box is not None
        changed[box.grown(12, 128, 128).slices] = False
        assert not changed.any()


def test_numbers_differ() -> None:
    made = [manipulate_face(FACE.image, n, FACE.landmarks, stream(2)) for n in range(5)]
    pixels = [m.pixels for m in made if m is not None]
    assert all(not np.array_equal(pixels[i], pixels[j]) for i in range(5) for j in range(i))


def off_image() -> np.ndarray:
    return FACE.landmarks + 5000


def not_finite() -> np.ndarray:
    points = FACE.landmarks.copy()
    points[3, 1] = np.nan
    return points


def one_point() -> np.ndarray:
    return np.full((68, 2), 1e30)


@pytest.mark.parametrize("landmarks", [lambda: None, off_image, not_finite, one_point, lambda: np.zeros((5, 2))])
@pytest.mark.parametrize("number", range(5))
def test_without_usable_landmarks_the_warp_stands_in_or_the_face_is_dropped(number: int, landmarks) -> None:
    points = landmarks()
    stood_in = manipulate_face(FACE.image, number, points, stream(3))
    dropped = manipulate_face(FACE.image, number, points, stream(3), no_landmarks="drop")
    warped = manipulate_face(FACE.image, 3, FACE.landmarks, stream(3))
    assert stood_in is not None
    assert warped is not None
    assert np.array_equal(stood_in.pixels, warped.pixels)
    assert stood_in.fell_back == (number != 3)
    assert (dropped is None) == (number != 3)


def test_at_224_a_flip_is_the_flip_alone() -> None:
    face = at_work_size(FACE.image, 224)
    points = FACE.landmarks * (224 / 128)
    for number, flip in ((2, EYE_FLIPPED), (4, NOSE_FLIPPED)):
        made = manipulate_face(face, number, points, stream(11))
        assert made is not None
        box = region_box(flip.region, points, 224, 224)
        assert box is not None
        ratio = draw_ratio(stream(11))
        assert np.array_equal(made.pixels, flip_region(face, flip, box, ratio))


@given(height=st.integers(8, 300), width=st.integers(8, 300), number=st.integers(0, 4), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_any_size_keeps_its_size(height: int, width: int, number: int, seed: int) -> None:
    pixels = stream(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    landmarks = FACE.landmarks / 128 * (width, height)
    made = manipulate_face(pixels, number, landmarks, stream(seed), work_size=96)
    assert made is not None
    assert made.pixels.shape == pixels.shape
    assert resample(pixels, stream(seed), 96).shape == pixels.shape


def test_enlarging_is_that_of_skimage_cut_to_levels_and_shrinking_averages() -> None:
    from skimage.transform import resize

    ours = at_work_size(FACE.image, 224).astype(int)
    theirs = resize(FACE.image, (224, 224), preserve_range=True).astype(np.uint8)
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.02
    even = np.full((128, 128, 3), 200, np.uint8)
    assert (brought_back(at_work_size(even, 224), (128, 128)) == 200).all()
    stripes = np.zeros((224, 224, 3), np.uint8)
    stripes[:, ::2] = 255
    assert brought_back(stripes, (56, 56))[:, 4:-4].std() < 2


def test_resampling_of_a_photograph_is_one_of_two_ways() -> None:
    plain = brought_back(at_work_size(FACE.image, 224), (128, 128))
    assert np.array_equal(resample(FACE.image, stream(), numbers=(0, 1, 2, 4)), plain)
    moved = resample(FACE.image, stream(), numbers=(3,))
    assert not np.array_equal(moved, plain)
    assert np.abs(moved.astype(int) - plain).mean() < 4
    ways = [np.array_equal(resample(FACE.image, stream(seed)), plain) for seed in range(200)]
    assert np.mean(ways) == pytest.approx(0.8, abs=0.08)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ConfigError, match="no manipulation 5"):
        manipulate_face(FACE.image, 5, None, stream())
    with pytest.raises(ConfigError, match="no manipulation -1"):
        resample(FACE.image, stream(), numbers=(-1,))
    with pytest.raises(ConfigError, match="at 8 pixels"):
        manipulate_face(FACE.image, 3, None, stream(), work_size=8)
    with pytest.raises(ConfigError, match="at 4000 pixels"):
        resample(FACE.image, stream(), work_size=4000)
    with pytest.raises(DataError, match="uint8"):
        manipulate_face(FACE.image.astype(float), 3, None, stream())
    with pytest.raises(DataError, match="uint8"):
        resample(FACE.image[..., 0], stream())


def test_the_example_of_the_documentation_runs() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "manipulations.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.S)
    space: dict[str, object] = {}
    exec(compile(code, "manipulations.md", "exec"), space)
    assert np.shape(space["plain"]) == (128, 128, 3)


def test_the_documentation_names_the_manipulations() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "manipulations.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if re.match(r"\| \d \|", line)
    ]
    assert [(int(n), name, tuple(label.split(", "))) for n, name, _, label in rows] == [
        (m.number, m.name, m.regions) for m in MANIPULATIONS
    ]


def test_the_contact_sheet_shows_what_changes() -> None:
    sheet = contact_sheet()
    assert sheet.shape == (len(sheet_module.FACES) * 134 + 24, 7 * 134 + 6, 3)
    cells = [sheet[18 : 18 + 128, 6 + 134 * column : 134 + 134 * column].astype(int) for column in range(7)]
    assert all(np.abs(cells[0] - cell).max() > 20 for cell in cells[1:])

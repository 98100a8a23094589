"""Faces: found in real portraits, none in noise; crops keep within the image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.api.faces import MARGIN, Face, crop_face, find_faces


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    from skimage import data

    return np.ascontiguousarray(data.astronaut())


def test_the_face_of_a_portrait_is_found_where_it_is(portrait: np.ndarray) -> None:
    (face,) = find_faces(portrait)
    assert face.left < 224 < face.right
    assert face.top < 115 < face.bottom
    assert 60 < face.side < 160
    assert find_faces(portrait) == [face]


def test_two_people_are_two_faces_and_noise_is_none(portrait: np.ndarray) -> None:
    head = portrait[:260, 90:350]
    assert len(find_faces(np.concatenate([head, head], axis=1))) == 2
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    assert find_faces(noise) == []
    assert find_faces(noise[:10, :10]) == []
    assert find_faces(noise[:30]) == []


def test_most_real_faces_are_found_once(shared_data) -> None:
    files = [p for folder in sorted((shared_data / "faces").iterdir()) for p in sorted(folder.rglob("*.*"))[:6]]
    files = [p for p in files if p.suffix in (".jpg", ".png")]
    counts = [len(find_faces(np.asarray(Image.open(p).convert("RGB")))) for p in files]
    assert len(counts) > 20
    assert counts.count(1) >= 0.9 * len(counts)


@settings(max_examples=60, deadline=None)
@given(st.integers(24, 90), st.integers(24, 90), st.data())
def test_a_crop_is_within_the_image_and_square_where_the_image_allows(height: int, width: int, data) -> None:
    left, top = data.draw(st.integers(0, width - 10)), data.draw(st.integers(0, height - 10))
    side = data.draw(st.integers(8, min(width - left, height - top)))
    pixels = np.arange(height * width * 3, dtype=np.int64).reshape(height, width, 3)
    crop = crop_face(pixels, Face(left, top, left + side, top + side))
    wanted = round(MARGIN * side)
    assert crop.shape == (min(wanted, height), min(wanted, width), 3)
    assert np.isin(pixels[top + side // 2, left + side // 2], crop).all()

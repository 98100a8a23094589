"""Augmentations: what the official code does, drawn from the given stream alone, and refused where misspelt."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from harness.api.augment import augmentations, jpeg_pass
from harness.api.errors import ConfigError, DataError

CNND = [
    {"resize": 64},
    {"blur": {"p": 0.5, "sigma": [0, 3]}},
    {"jpeg": {"p": 0.5, "encoders": ["cv2", "pil"], "quality": [30, 100]}},
    {"crop": 48},
    {"flip": 0.5},
]


def noise(height: int = 80, width: int = 70, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def applied(entries: list[dict[str, Any]], pixels: np.ndarray, seed: int = 1) -> np.ndarray:
    before = pixels.copy()
    out = augmentations(entries)(pixels, np.random.default_rng(seed))
    assert np.array_equal(pixels, before)
    return out


@given(st.integers(0, 10_000), st.integers(48, 200), st.integers(48, 200))
def test_the_official_chain_is_a_function_of_pixels_and_stream(seed: int, height: int, width: int) -> None:
    pixels = noise(height, width)
    one, two = applied(CNND, pixels, seed), applied(CNND, pixels, seed)
    assert np.array_equal(one, two)
    assert one.shape == (48, 48, 3)
    assert one.dtype == np.uint8
    assert one.flags.c_contiguous


def test_blur_cuts_to_whole_levels_in_each_pass_as_scipy_does_with_8_bits() -> None:
    pixels = noise()
    out = applied([{"blur": {"p": 1, "sigma": [1.5, 1.5]}}], pixels)
    for channel in range(3):
        wanted = pixels[:, :, channel].copy()
        gaussian_filter(wanted, output=wanted, sigma=1.5)
        assert np.array_equal(out[:, :, channel], wanted)
    exact = np.stack([gaussian_filter(pixels[:, :, c].astype(float), 1.5) for c in range(3)], axis=2)
    assert 0.5 < (exact - out).mean() < 2  # darker: that is the trace


def test_both_jpeg_encoders_are_those_of_their_libraries() -> None:
    pixels = noise(64, 64)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=45)
    assert np.array_equal(jpeg_pass(pixels, "pil", 45), np.array(Image.open(buffer)))
    data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 45])[1]
    wanted = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.array_equal(jpeg_pass(pixels, "cv2", 45), wanted)


def test_probabilities_and_ranges_are_kept() -> None:
    pixels = noise(16, 16)
    changed = [not np.array_equal(applied([{"flip": 0.3}], pixels, s), pixels) for s in range(600)]
    assert abs(np.mean(changed) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 600)
    assert np.array_equal(applied([{"blur": 0}, {"jpeg": 0}, {"flip": 0}], pixels), pixels)
    both = {applied([{"jpeg": {"p": 1, "quality": [30, 31]}}], pixels, s).tobytes() for s in range(40)}
    wanted = {jpeg_pass(pixels, e, q).tobytes() for e in ("cv2", "pil") for q in (30, 31)}
    assert both == wanted


def test_crops_reach_every_place_and_nothing_else() -> None:
    rows, columns = np.mgrid[:6, :7]
    pixels = np.stack([rows, columns, rows], axis=2).astype(np.uint8)
    found = {tuple(applied([{"crop": 5}], pixels, s)[0, 0, :2].tolist()) for s in range(200)}
    assert found == {(r, c) for r in range(2) for c in range(3)}
    with pytest.raises(DataError, match="7x6 is smaller than the crop of 8"):
        applied([{"crop": 8}], pixels)


def test_resize_keeps_the_shape_or_makes_a_square() -> None:
    pixels = noise(100, 150)
    assert applied([{"resize": 50}], pixels).shape == (50, 75, 3)
    assert applied([{"resize": {"size": 50, "square": True}}], pixels).shape == (50, 50, 3)
    assert np.array_equal(applied([{"resize": 100}], pixels), pixels)
    wanted = np.array(Image.fromarray(pixels).resize((75, 50), Image.Resampling.BILINEAR))
    assert np.array_equal(applied([{"resize": 50}], pixels), wanted)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"blurr": 0.5}, "unknown augmentation 'blurr'"),
        ({"blur": {"sigmas": 1}}, "sigmas"),
        ({"blur": {"sigma": [3, 0]}}, "least, greatest"),
        ({"jpeg": {"quality": [0, 100]}}, "from 1 to 100"),
        ({"jpeg": {"encoders": []}}, "encoders"),
        ({"flip": 2}, "p"),
        ({"crop": 224, "flip": 1}, "no augmentation"),
        ("flip", "no augmentation"),
    ],
)
def test_entries_that_cannot_be_meant_are_named(entry: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        augmentations([entry])

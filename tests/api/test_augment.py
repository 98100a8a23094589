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


def test_blur_is_scipys_with_8_bits_and_makes_images_darker() -> None:
    pixels = noise()
    out = applied([{"blur": {"p": 1, "sigma": [1.5, 1.5]}}], pixels)
    for channel in range(3):
        wanted = pixels[:, :, channel].copy()
        gaussian_filter(wanted, output=wanted, sigma=1.5)
        assert np.array_equal(out[:, :, channel], wanted)
    exact = np.stack([gaussian_filter(pixels[:, :, c].astype(float), 1.5) for c in range(3)], axis=2)
    assert 0.5 < (exact - out).mean() < 2  # darker: that is the trace


def _gaussian_pass(lines: np.ndarray, sigma: float) -> np.ndarray:
    """One pass of SciPy's Gaussian along axis 0, written out: weights to 4 sigma, ends mirrored with the edge
    repeated, cut to whole levels."""
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    wide = np.pad(lines.astype(float), ((radius, radius), (0, 0)), mode="symmetric")
    return sum(w * wide[i : i + len(lines)] for i, w in enumerate(weights)).astype(np.uint8)  # type: ignore[union-attr]


def test_blur_is_two_passes_of_a_gaussian_each_cut_to_whole_levels() -> None:
    pixels = noise(60, 50)
    for sigma in (0.6, 1.5, 2.9):
        out = applied([{"blur": {"p": 1, "sigma": [sigma, sigma]}}], pixels)
        for channel in range(3):
            wanted = _gaussian_pass(_gaussian_pass(pixels[:, :, channel], sigma).T, sigma).T
            assert np.array_equal(out[:, :, channel], wanted)


LUMINANCE = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip
"""JPEG's example table K.1, which libjpeg scales by quality."""


def _grey_jpeg(grey: np.ndarray, quality: int) -> np.ndarray:
    """A grey JPEG pass written out: 8x8 cosines, rounded to multiples of the scaled table, and back."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = np.clip((LUMINANCE * scale + 50) // 100, 1, 255)
    k = np.arange(8)
    basis = np.cos((2 * k[None, :] + 1) * k[:, None] * np.pi / 16) * np.where(k == 0, 8**-0.5, 0.5)[:, None]
    blocks = grey.reshape(grey.shape[0] // 8, 8, -1, 8).transpose(0, 2, 1, 3) - 128.0
    stored = np.round(basis @ blocks @ basis.T / table) * table
    back = basis.T @ stored @ basis + 128
    return np.clip(np.round(back.transpose(0, 2, 1, 3).reshape(grey.shape)), 0, 255)


@pytest.mark.parametrize("encoder", ["cv2", "pil"])
@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_rounds_cosines_by_libjpegs_table_of_that_quality(encoder: str, quality: int) -> None:
    rng = np.random.default_rng(3)
    grey = np.clip(128 + np.cumsum(rng.normal(0, 6, (64, 64)), axis=1), 0, 255).astype(np.uint8)
    out = jpeg_pass(np.repeat(grey[:, :, None], 3, axis=2), encoder, quality).astype(float)
    assert np.ptp(out, axis=2).max() <= 1  # grey stays grey
    off = np.abs(out[:, :, 0] - _grey_jpeg(grey, quality))
    assert off.mean() < 0.4  # the library's cosines are whole numbers: ties fall otherwise, here and there
    assert (off <= 1).mean() > 0.9
    other = np.abs(out[:, :, 0] - _grey_jpeg(grey, quality - 20))
    assert other.mean() > 3


@pytest.mark.parametrize("encoder", ["cv2", "pil"])
def test_jpeg_halves_the_resolution_of_colour(encoder: str) -> None:
    red, green = (200, 90, 90), (90, 146, 90)  # of nearly equal brightness
    columns = np.array([[red, green] * 16] * 32, np.uint8)
    blocks = np.repeat(np.repeat(columns[:8, :8], 4, axis=0), 4, axis=1)
    fine, coarse = (jpeg_pass(x, encoder, 95).astype(float) for x in (columns, blocks))
    assert np.abs(fine[:, ::2, 0] - fine[:, 1::2, 0]).mean() < 10  # of 110: stripes of a pixel are gone
    assert np.abs(coarse - blocks).mean() < 12  # squares of four stay


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


def _triangle(lines: np.ndarray, size: int) -> np.ndarray:
    """Axis 0 brought to `size` by a triangle as wide as the reduction, rounded to 8 bits: Pillow's bilinear filter."""
    step = len(lines) / size
    width = max(step, 1.0)
    centres = (np.arange(size) + 0.5) * step
    weights = np.maximum(1 - np.abs(np.arange(len(lines)) + 0.5 - centres[:, None]) / width, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(np.floor(np.tensordot(weights, lines.astype(float), 1) + 0.5), 0, 255)


@pytest.mark.parametrize("size", [50, 73, 130])
def test_resize_is_a_triangle_filter_along_rows_then_columns(size: int) -> None:
    pixels = noise(100, 150)
    out = applied([{"resize": size}], pixels).astype(float)
    wide = _triangle(pixels.transpose(1, 0, 2), size * 150 // 100).transpose(1, 0, 2)
    wanted = _triangle(wide, size)
    assert out.shape == wanted.shape
    assert np.abs(out - wanted).max() <= 2  # whole-number weights in the library, in both passes
    assert (out == wanted).mean() > 0.95


def test_a_flip_mirrors_columns_and_a_chain_crops_what_was_resized() -> None:
    pixels = noise(40, 50)
    assert np.array_equal(applied([{"flip": 1}], pixels), pixels[:, [49 - i for i in range(50)]])
    small = applied([{"resize": 20}], pixels)
    found = applied([{"resize": 20}, {"crop": 16}, {"flip": 1}], pixels)[:, ::-1]
    places = [(r, c) for r in range(5) for c in range(10) if np.array_equal(small[r : r + 16, c : c + 16], found)]
    assert len(places) == 1


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

"""The whole-face distortion: where it looks things up, and that it is drawn from its stream alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay

from harness.data.manipulate.warp import View, _remap, _weights, distort_face, draw_view, shift_face


def smooth(height: int = 96, width: int = 96) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, (x + y) * 127 / max(height, width)], axis=-1).astype(np.uint8)


@given(height=st.integers(2, 40), width=st.integers(2, 40), grid=st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_weights_are_barycentric_and_give_the_identity_on_a_regular_grid(height: int, width: int, grid: int) -> None:
    weights = _weights(height, width, grid)
    assert weights.min() >= -1e-6
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert ((weights > 1e-6).sum(axis=1) <= 3).all()
    y, x = np.meshgrid(np.linspace(0, height - 1, grid), np.linspace(0, width - 1, grid), indexing="ij")
    places = weights @ np.stack([x.ravel(), y.ravel()], axis=1)
    rows, columns = np.mgrid[:height, :width]
    np.testing.assert_allclose(places, np.stack([columns.ravel(), rows.ravel()], axis=1), atol=1e-3)


def test_map_is_affine_a_triangle_and_agrees_with_skimage_on_the_same_triangles() -> None:
    from skimage.transform import PiecewiseAffineTransform

    grid, side = 4, 31
    y, x = np.meshgrid(np.linspace(0, side - 1, grid), np.linspace(0, side - 1, grid), indexing="ij")
    source = np.stack([x.ravel(), y.ravel()], axis=1)
    # nudged so that Delaunay cuts every cell along the same diagonal as ours
    nudged = source + 1e-4 * np.stack([source[:, 1], source[:, 0]], axis=1)
    assert len(Delaunay(nudged).simplices) == 2 * (grid - 1) ** 2
    moved = source + np.random.default_rng(0).normal(0, 1.5, source.shape)
    reference = PiecewiseAffineTransform.from_estimate(nudged, moved)
    rows, columns = np.mgrid[2 : side - 2, 2 : side - 2]
    inside = np.stack([columns.ravel(), rows.ravel()], axis=1)
    ours = (_weights(side, side, grid) @ moved).reshape(side, side, 2)[2:-2, 2:-2].reshape(-1, 2)
    np.testing.assert_allclose(ours, reference(inside), atol=0.02)


def test_distortion_is_drawn_from_its_stream_alone() -> None:
    pixels = smooth()
    first = distort_face(pixels, np.random.default_rng(1))
    distort_face(smooth(40, 60), np.random.default_rng(2))
    assert np.array_equal(first, distort_face(pixels, np.random.default_rng(1)))
    assert not np.array_equal(first, distort_face(pixels, np.random.default_rng(3)))
    assert first.shape == pixels.shape
    assert first.dtype == np.uint8


def test_displacement_has_the_stated_scale_and_no_border_shows() -> None:
    pixels = np.full((90, 90, 3), 200, np.uint8)
    assert (distort_face(pixels, np.random.default_rng(0)) == 200).all()
    side, ramp = 128, np.repeat(np.linspace(0, 255, 128)[None, :, None], 128, axis=0)
    ramp = np.repeat(ramp, 3, axis=2).astype(np.uint8)
    inner = slice(side // 3 - 2, side // 3 + 3)  # around an inner grid point: its own displacement
    here = ramp[inner, inner, 0].astype(float)
    warped = (distort_face(ramp, np.random.default_rng(i)) for i in range(400))
    moves = [float((image[inner, inner, 0] - here).mean()) for image in warped]
    assert np.std(moves) / 255 == pytest.approx(0.045, rel=0.15)
    assert abs(np.mean(moves)) / 255 < 0.01


def test_shift_moves_by_at_most_half_a_pixel() -> None:
    pixels = smooth()
    for seed in range(20):
        moved = shift_face(pixels, np.random.default_rng(seed)).astype(int)
        assert np.abs(moved - pixels)[2:-2, 2:-2].max() <= 3


def test_plain_view_changes_nothing_and_mirror_mirrors() -> None:
    pixels = smooth()
    none = View(np.eye(2), np.zeros(2), np.ones(3))
    assert np.array_equal(
        distort_face(pixels, np.random.default_rng(1), view=none), distort_face(pixels, np.random.default_rng(1))
    )
    mirror = View(np.diag([-1.0, 1.0]), np.zeros(2), np.ones(3))
    seen = shift_face(pixels, np.random.default_rng(1), mirror)
    assert np.abs(seen.astype(int) - shift_face(pixels, np.random.default_rng(1))[:, ::-1])[:, 2:-2].max() <= 4


def test_gain_saturates_and_views_differ_by_stream() -> None:
    bright = View(np.eye(2), np.zeros(2), np.array([2.0, 1.0, 0.5]))
    out = shift_face(np.full((16, 16, 3), 150, np.uint8), np.random.default_rng(0), bright)
    assert out[0, 0].tolist() == [255, 150, 75]
    views = [draw_view(np.random.default_rng(i)) for i in (1, 1, 2)]
    assert np.array_equal(views[0].matrix, views[1].matrix)
    assert not np.array_equal(views[0].matrix, views[2].matrix)


def test_remap_of_a_regular_grid_is_the_image() -> None:
    pixels = smooth(50, 70)
    y, x = np.meshgrid(np.linspace(0, 49, 3), np.linspace(0, 69, 3), indexing="ij")
    assert np.array_equal(_remap(pixels, np.stack([x.ravel(), y.ravel()], axis=1), 3), pixels)

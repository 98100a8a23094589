"""The whole-face distortion: a piecewise affine warp, the pretext manipulation that needs no landmarks."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

GRID = 4  # points a side; imgaug's default, which the released generator keeps
SCALE = (0.04, 0.05)


@lru_cache(maxsize=16)
def _weights(height: int, width: int, grid: int) -> np.ndarray:
    """Barycentric weight of each grid point at each pixel, `[H·W, grid²]` float32, rows summing to 1.

    Every cell of the regular grid is two triangles, cut from its upper right to its lower left corner.
    """

    def cells(size: int) -> tuple[np.ndarray, np.ndarray]:
        at = np.arange(size) * ((grid - 1) / max(size - 1, 1))
        cell = np.minimum(at.astype(np.int64), grid - 2)
        return cell, at - cell

    (rows, v), (columns, u) = cells(height), cells(width)
    cell = (rows[:, None] * grid + columns[None, :]).ravel()
    u, v = np.broadcast_to(u[None, :], (height, width)).ravel(), np.broadcast_to(v[:, None], (height, width)).ravel()
    upper = u + v <= 1
    corners = (
        (0, np.where(upper, 1 - u - v, 0)),
        (1, np.where(upper, u, 1 - v)),
        (grid, np.where(upper, v, 1 - u)),
        (grid + 1, np.where(upper, 0, u + v - 1)),
    )
    weights = np.zeros((height * width, grid * grid), np.float32)
    pixels = np.arange(height * width)
    for offset, weight in corners:
        weights[pixels, cell + offset] = weight
    return weights


def _remap(pixels: np.ndarray, points: np.ndarray, grid: int) -> np.ndarray:
    """Pixels looked up where the grid's points `[grid², 2]` (x, y in pixels) say, linear between them."""
    height, width = pixels.shape[:2]
    places = (_weights(height, width, grid) @ points.astype(np.float32)).reshape(height, width, 2)
    x, y = np.ascontiguousarray(places[..., 0]), np.ascontiguousarray(places[..., 1])
    return np.asarray(cv2.remap(pixels, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _regular(height: int, width: int, grid: int) -> np.ndarray:
    y, x = np.meshgrid(np.linspace(0, height - 1, grid), np.linspace(0, width - 1, grid), indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1)


def distort_face(
    pixels: np.ndarray, rng: np.random.Generator, scale: tuple[float, float] = SCALE, grid: int = GRID
) -> np.ndarray:
    """The image warped by a piecewise affine map: same shape and dtype, drawn from `rng` alone.

    The points of a regular grid move by a normal draw whose deviation is `scale` (drawn once an image, uniform
    between the two) times the image's side, and stay inside it, so that no border shows; between the points
    the map is affine a triangle, the lookup bilinear.

    Args:
        pixels: `[H, W, 3]` or `[H, W]`, uint8 or float32.
        scale: least and greatest deviation, as a share of the side.
        grid: points a side.

    Source: METHOD "Manipulations" (negative `_3` of AIGFD_BLO at 5f26ede: imgaug PiecewiseAffine, 0.04–0.05,
    default 4 × 4 points). *Deviation*: the diagonal of a cell is fixed, where imgaug takes a Delaunay
    triangulation of the square grid, which is not unique; the lookup has OpenCV's 1/32 pixel resolution.
    """
    height, width = pixels.shape[:2]
    deviation = rng.uniform(*scale)
    moved = _regular(height, width, grid) + rng.normal(0, deviation, (grid * grid, 2)) * (width, height)
    return _remap(pixels, np.clip(moved, 0, (width - 1, height - 1)), grid)


def shift_face(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image moved by a draw of at most half a pixel in x and y: the warp's interpolation without a warp.

    What photographs go through where the resampling of a distorted face must not give it away (FIDELITY
    `resample_photographic`). Shapes and dtypes as in `distort_face`.
    """
    height, width = pixels.shape[:2]
    return _remap(pixels, _regular(height, width, 2) + rng.uniform(-0.5, 0.5, 2), 2)

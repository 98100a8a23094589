"""The whole face warped: piecewise affine, the manipulation that needs no landmarks."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

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
    # OpenCV's product: numpy's of so narrow a matrix waits for BLAS threads, up to 16 ms against 0.2
    places = cv2.gemm(_weights(height, width, grid), points.astype(np.float32), 1, None, 0)  # type: ignore[call-overload]
    places = places.reshape(height, width, 2)
    x, y = np.ascontiguousarray(places[..., 0]), np.ascontiguousarray(places[..., 1])
    return np.asarray(cv2.remap(pixels, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101))


def _regular(height: int, width: int, grid: int) -> np.ndarray:
    y, x = np.meshgrid(np.linspace(0, height - 1, grid), np.linspace(0, width - 1, grid), indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1)


class View(NamedTuple):
    """Another look at the same face: a similarity of the plane about the middle, and a gain a channel.

    `matrix [2, 2]` and `offset [2]` (share of the side) map places in the result to places looked up;
    `gain [3]` multiplies the colours.
    """

    matrix: np.ndarray
    offset: np.ndarray
    gain: np.ndarray

    def places(self, points: np.ndarray, height: int, width: int) -> np.ndarray:
        """Points `[N, 2]` (x, y in pixels) moved as the view says."""
        middle, side = np.array([width - 1, height - 1]) / 2, np.array([width, height])
        return (points - middle) @ self.matrix.T + middle + self.offset * side

    def coloured(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels `[H, W, 3]` uint8 with the gain."""
        values = np.arange(256)[:, None] * self.gain
        table = np.clip(values + 0.5, 0, 255).astype(np.uint8)
        return np.asarray(cv2.LUT(pixels, table[None]))


def draw_view(rng: np.random.Generator) -> View:
    """A mirrored or plain face, turned by up to 5°, up to 5 % larger or smaller, moved by up to 3 % of the side,
    each colour up to about 17 % stronger or weaker."""
    angle, size = np.deg2rad(rng.uniform(-5, 5)), np.exp(rng.uniform(-0.05, 0.05))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * size
    mirror = np.diag([rng.choice([-1.0, 1.0]), 1.0])
    gain = np.exp(rng.uniform(-0.08, 0.08) + rng.uniform(-0.08, 0.08, 3))
    return View(mirror @ turn, rng.uniform(-0.03, 0.03, 2), gain)


def distort_face(
    pixels: np.ndarray,
    rng: np.random.Generator,
    scale: tuple[float, float] = SCALE,
    grid: int = GRID,
    view: View | None = None,
) -> np.ndarray:
    """The image warped by a piecewise affine map: same shape and dtype, drawn from `rng` alone.

    The points of a regular grid move by a normal draw whose deviation is `scale` (drawn once an image, uniform
    between the two) times the image's side, and stay inside it, so that no border shows; between the points
    the map is affine a triangle, the lookup bilinear.

    Args:
        pixels: `[H, W, 3]` uint8.
        scale: least and greatest deviation, as a share of the side.
        grid: points a side.
        view: a further map after the warp, in the same single lookup; mirrors the surroundings where it
            looks outside the image.

    Source: METHOD "Manipulations" (negative `_3` of AIGFD_BLO at 5f26ede: imgaug PiecewiseAffine, 0.04–0.05,
    default 4 × 4 points). *Deviation*: the diagonal of a cell is fixed, where imgaug takes a Delaunay
    triangulation of the square grid, which is not unique; the lookup has OpenCV's 1/32 pixel resolution.
    """
    height, width = pixels.shape[:2]
    deviation = rng.uniform(*scale)
    moved = _regular(height, width, grid) + rng.normal(0, deviation, (grid * grid, 2)) * (width, height)
    return _seen(pixels, np.clip(moved, 0, (width - 1, height - 1)), grid, view)


def shift_face(pixels: np.ndarray, rng: np.random.Generator, view: View | None = None) -> np.ndarray:
    """The image moved by a draw of at most half a pixel in x and y: the warp's interpolation without a warp.

    What photographs go through where the resampling of a distorted face must not give it away (FIDELITY
    `resample_photographic`). Arguments and result as in `distort_face`.
    """
    height, width = pixels.shape[:2]
    return _seen(pixels, _regular(height, width, 2) + rng.uniform(-0.5, 0.5, 2), 2, view)


def see(pixels: np.ndarray, view: View) -> np.ndarray:
    """The image `[H, W, 3]` uint8 in another view."""
    return _seen(pixels, _regular(pixels.shape[0], pixels.shape[1], 2), 2, view)


def _seen(pixels: np.ndarray, points: np.ndarray, grid: int, view: View | None) -> np.ndarray:
    if view is None:
        return _remap(pixels, points, grid)
    return view.coloured(_remap(pixels, view.places(points, *pixels.shape[:2]), grid))

"""Where a face is changed: from 68 landmarks to a region, its bounding box, and the soft mask it is blended with.

All lengths are pixels of the working image (224 in the released code) and do not scale with it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

NUM_LANDMARKS = 68
NAMES = ("mouth", "eye", "nose")
LARGEST_COORDINATE = 1e6
"""Landmarks further away are no places in a face image (and would not survive as int32)."""

_CORES = {"mouth": (91, 7.0), "eye": (91, 7.0), "nose": (15, 2.0)}
_ELLIPSE = (15, 15)
_SOFT = (51, 10.0)
_FAR = _SOFT[0] // 2 + 1
"""So far from a box its mask is 0, and the border of a window of that margin does not show in it: what the first blur
mirrors there (up to 45 pixels away) stays below one half."""
_THIN = 3
"""Sides from which on something of a box is always left."""

Point = tuple[int, int]


class Box(NamedTuple):
    """Pixels `left <= x < right`, `top <= y < bottom`."""

    left: int
    top: int
    right: int
    bottom: int

    def grown(self, by: int, height: int, width: int) -> Box:
        """The box with `by` more pixels on each side, inside an image of `height` × `width`."""
        return Box(
            max(self.left - by, 0), max(self.top - by, 0), min(self.right + by, width), min(self.bottom + by, height)
        )

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index an image."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


class Line(NamedTuple):
    """A region's skeleton: a line between two points, thickened by `reach` pixels."""

    start: Point
    end: Point
    reach: int


def usable(landmarks: np.ndarray | None) -> bool:
    """Whether there are 68 points `[68, 2]`, all of them finite and somewhere near an image."""
    if landmarks is None or landmarks.shape != (NUM_LANDMARKS, 2) or landmarks.dtype.kind not in "iuf":
        return False
    return bool(np.isfinite(landmarks).all() and np.abs(landmarks).max() <= LARGEST_COORDINATE)


def _whole(point: np.ndarray) -> Point:
    """Coordinates cut to integers, towards 0."""
    return int(point[0]), int(point[1])


def region_line(name: str, landmarks: np.ndarray) -> Line:
    """The line of a region: mouth 48 to 54, eye (on the image's right) 42 to 45, nose 33 to between the eyes.

    Args:
        name: `mouth`, `eye` or `nose`.
        landmarks: `[68, 2]` (x, y) in pixels, finite.

    Source: METHOD "Manipulations"; AIGFD_BLO at 5f26ede, `preprocessing/utils.py`, `get_five_key` and `remove_*`.
    """
    if name == "mouth":
        start, end = _whole(landmarks[48]), _whole(landmarks[54])
        return Line(start, end, int(math.dist(start, end) // 3))
    if name == "eye":
        start, end = _whole(landmarks[42]), _whole(landmarks[45])
        return Line(start, end, 2 * int(math.dist(start, end) // 4))
    if name != "nose":
        raise KeyError(f"no such region: {name!r}")
    one, other = (_whole((landmarks[a] + landmarks[b]) * 0.5) for a, b in ((36, 39), (42, 45)))
    middle = int((one[0] + other[0]) / 2), int((one[1] + other[1]) / 2)
    return Line(_whole(landmarks[33]), middle, int(math.dist(one, other) // 4))


def _drawn(line: Line, height: int, width: int) -> np.ndarray:
    canvas = np.zeros((height, width), np.uint8)
    cv2.line(canvas, line.start, line.end, color=1, thickness=2)
    return canvas


def line_mask(line: Line, height: int, width: int) -> np.ndarray:
    """The thickened line as a mask `[height, width]` bool: drawn 2 wide, dilated `reach` times by a cross.

    *Deviation*: a reach of 0 dilates nothing; the released call then dilates until the image is full.
    """
    drawn = _drawn(line, height, width)
    if not drawn.any():
        return drawn.astype(bool)
    # dilating n times by a cross keeps what is n steps or less away
    return np.asarray(cv2.distanceTransform(1 - drawn, cv2.DIST_L1, 3) <= line.reach)


def region_mask(name: str, landmarks: np.ndarray, height: int, width: int) -> np.ndarray:
    """A region's mask `[height, width]` bool (`line_mask` of its line); empty where its line is off the image."""
    return line_mask(region_line(name, landmarks), height, width)


def bounding_box(mask: np.ndarray) -> Box | None:
    """The box around a mask `[H, W]`: of the first outer contour that OpenCV lists (the lowest); None if it is empty.

    Source: `get_boundary` of the released `preprocessing/utils.py`.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return None
    x, y, width, height = cv2.boundingRect(contours[0])
    return Box(x, y, x + width, y + height)


def region_box(name: str, landmarks: np.ndarray, height: int, width: int) -> Box | None:
    """The bounding box of `region_mask`, or None where the region is off the image or too thin for a mask.

    The box of the line grown by its reach: what dilating by a cross does to a box, without dilating.
    """
    line = region_line(name, landmarks)
    x, y, w, h = cv2.boundingRect(_drawn(line, height, width))
    if w == 0:
        return None
    box = Box(x, y, x + w, y + h).grown(line.reach, height, width)
    thin = min(box.right - box.left, box.bottom - box.top) < _THIN
    return None if thin and _core(box, *_CORES[name], height, width) is None else box


def soften(mask: np.ndarray, kernel: int, sigma: float) -> np.ndarray:
    """A mask `[H, W]` (uint8 or float64, greatest value 1) with soft edges, `[H, W]` float64, greatest value 1.

    Gaussian of `kernel` × `kernel`, kept where it is maximal, eroded by a 15 × 15 ellipse (unless nothing would be
    left), Gaussian 51 × 51 of σ 10, divided by its maximum. Of a uint8 mask the first blur is rounded: what is at
    least one half counts as maximal.

    Source: `get_blend_mask` of the released `preprocessing/utils.py`.
    """
    blurred = cv2.GaussianBlur(mask, (kernel, kernel), sigma)
    if blurred.max() == 0:
        blurred = cv2.GaussianBlur(mask, (kernel, kernel), 1)
    return _edges((blurred / blurred.max() >= 1).astype(np.uint8))


def _edges(core: np.ndarray) -> np.ndarray:
    eroded = cv2.erode(core, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, _ELLIPSE))
    if eroded.max() == 0:
        eroded = core
    soft = cv2.GaussianBlur(eroded.astype(np.float64), (_SOFT[0], _SOFT[0]), _SOFT[1])
    return np.asarray(soft / soft.max())


@lru_cache(maxsize=8)
def _kernel(size: int, sigma: float) -> np.ndarray:
    """OpenCV's own whole-number Gaussian kernel `[size]` for 8-bit images, in 256ths: its answer to one bright pixel.

    Its weights are below 128, so that the rounding of 255 w / 256 gives w.
    """
    point = np.zeros((1, 2 * size + 1), np.uint8)
    point[0, size] = 255
    answer = cv2.GaussianBlur(point, (size, 1), sigma)[0].astype(np.int64)
    return answer[size - size // 2 : size + size // 2 + 1]


def _profile(low: int, high: int, length: int, kernel: np.ndarray) -> np.ndarray:
    """The blurred indicator of `low <= i < high` on a line of `length`, in 256ths; the line is mirrored at its ends."""
    line = np.zeros(length, np.int64)
    line[low:high] = 1
    return np.convolve(np.pad(line, len(kernel) // 2, "reflect"), kernel, "valid")


def _core(box: Box, kernel: int, sigma: float, height: int, width: int) -> np.ndarray | None:
    """Where the rounded Gaussian of the box is 1, `[height, width]` uint8; None where it is so nowhere.

    The Gaussian of a box is the product of two profiles, so nothing needs to be blurred in the plane.
    """
    for deviation in (sigma, 1.0):
        weights = _kernel(kernel, deviation)
        rows = _profile(box.top, box.bottom, height, weights)
        columns = _profile(box.left, box.right, width, weights)
        core = (rows[:, None] * columns[None, :] >= 1 << 15).astype(np.uint8)
        if core.any():
            return core
    return None


def blend_window(name: str, box: Box, height: int, width: int) -> tuple[Box, np.ndarray]:
    """The part of `blend_mask` around a box: the window, and the mask in it (float64); beyond it the mask is 0."""
    window = box.grown(_FAR, height, width)
    inner = Box(box.left - window.left, box.top - window.top, box.right - window.left, box.bottom - window.top)
    core = _core(inner, *_CORES[name], window.bottom - window.top, window.right - window.left)
    if core is None:
        raise ValueError(f"{box} is too thin for a mask")
    return window, _edges(core)


def blend_mask(name: str, box: Box, height: int, width: int) -> np.ndarray:
    """How much of the changed region is blended in, `[height, width]` float64 in [0, 1]: the softened box.

    Args:
        name: the region: mouth and eye are first blurred by 91 × 91 of σ 7, the nose by 15 × 15 of σ 2.
        box: of `region_box`.

    Raises:
        ValueError: a box so thin that nothing of it is left; `region_box` gives none such.
    """
    window, values = blend_window(name, box, height, width)
    mask = np.zeros((height, width))
    mask[window.slices] = values
    return mask

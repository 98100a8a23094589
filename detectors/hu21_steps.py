"""The steps of Hu21: two eye crops to the overlap of their specular highlights, as the authors' code computes it.

Arrays are numpy: crops `[h, w, 3]` uint8 RGB, masks `[h, w]` bool. "Left" is the eye at the image's left (points
36-41 of the 68), "right" the other (42-47). Where the authors' code gives up (returns False, or fails with an
exception that it catches), `Undecided` is raised; their False would otherwise count as an overlap of 0.

Source: gan_detect_iris at cf1db0b (crop_eyes, crop_cornea, crop_iris, crop_highlights).
*Deviation*: steps that only draw the result's figure are left out, so a failing figure is no reason to give up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Points = NDArray[np.int32]

BRIGHT, DARK = 150, 50
"""V (0..255) of a pixel that is surely a reflection, or surely pupil."""

EROSION = 2
"""Pixels that the iris mask loses at its rim."""

THRESHOLD_SCALE = 1.2
"""What Yen's threshold is multiplied by."""


class Undecided(Exception):
    """The method has nothing to say of this pair of eyes; the text says why."""


class Eye(NamedTuple):
    """An eye crop `[h, w, 3]` uint8 and the mask `[h, w]` of what its lids leave open."""

    crop: Pixels
    mask: Mask


class Circle(NamedTuple):
    """The iris' circle in crop coordinates; `found` is False where no circle was and the eye's middle stands in."""

    x: int
    y: int
    radius: int
    found: bool


class Overlap(NamedTuple):
    """The best shift of the left highlights, the pixels that then coincide, and intersection over union."""

    dx: int
    dy: int
    pixels: int
    iou: float


def eye_of(pixels: Pixels, points: Points) -> Eye:
    """The eye around six landmarks `[6, 2]` int32 (x, y): a quarter of its width more on each side, 1.75 of its
    height above and below, cut at the image's border.

    Raises:
        Undecided: nothing of the image is left in the crop.
    """
    import cv2

    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    width, height = right - left, bottom - top
    x0, x1 = int(max(0, left - 0.25 * width)), int(min(pixels.shape[1], right + 0.25 * width))
    y0, y1 = int(max(0, top - 1.75 * height)), int(min(pixels.shape[0], bottom + 1.75 * height))
    if x1 <= x0 or y1 <= y0:
        raise Undecided("an eye has no extent, or lies outside the image")
    crop = np.ascontiguousarray(pixels[y0:y1, x0:x1])
    mask = np.zeros(crop.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, np.ascontiguousarray(points - [x0, y0]).astype(np.int32), 1)
    return Eye(crop, mask.astype(bool))


def box_of(mask: Mask) -> tuple[slice, slice]:
    """Rows and columns of a mask's bounding box *without its last row and column*, as the authors cut it.

    Raises:
        Undecided: an empty mask.
    """
    ys, xs = np.nonzero(mask)
    if len(ys) == 0:
        raise Undecided("an eye is closed")
    return slice(int(ys.min()), int(ys.max())), slice(int(xs.min()), int(xs.max()))


def edges_of(eye: Eye) -> Mask:
    """Canny edges of the lightness inside `box_of(mask)`; outside the mask lightness is 0.

    The removal of the mask's own edges is the authors': an erosion takes Canny's thin lines away first, so that it
    removes nothing and the lids' edges stay. Kept as it is.
    """
    import cv2
    from scipy.ndimage import binary_dilation, binary_erosion
    from skimage.feature import canny

    box = box_of(eye.mask)
    inside, part = eye.mask[box], np.ascontiguousarray(eye.crop[box])
    if part.size == 0:
        raise Undecided("an eye is too small")
    lightness = cv2.cvtColor(part, cv2.COLOR_RGB2LAB)[..., 0]
    lightness[~inside] = 0
    edges = canny(lightness, sigma=2.0, low_threshold=40, high_threshold=70)
    rim = canny(inside.astype(np.uint8) * 255, sigma=1.5, low_threshold=1, high_threshold=240)
    kept: Mask = edges & ~binary_dilation(binary_erosion(rim))
    return kept


def circle_of(eye: Eye) -> Circle:
    """The best circle through the edges, its radius from 1/4.5 to 1/2 of the mask's width.

    Raises:
        Undecided: no radius lies in that range.
    """
    from skimage.transform import hough_circle, hough_circle_peaks

    rows, columns = box_of(eye.mask)
    width = columns.stop - columns.start
    radii = np.arange(int(width / 4.5), int(width / 2.0))
    if len(radii) == 0:
        raise Undecided("an eye is too small")
    votes = hough_circle(edges_of(eye), radii)
    _, xs, ys, best = hough_circle_peaks(votes, radii, total_num_peaks=1, normalize=True)
    if len(best) == 0:
        all_ys, all_xs = np.nonzero(eye.mask)
        return Circle(int(all_xs.mean()), int(all_ys.mean()), int(width / 4.0), found=False)
    return Circle(int(xs[0]) + columns.start, int(ys[0]) + rows.start, int(best[0]), found=True)


def iris_of(eye: Eye, circle: Circle) -> Mask:
    """The disc of the circle where the lids leave it open."""
    import cv2

    disc = np.zeros(eye.mask.shape, np.uint8)
    cv2.circle(disc, (circle.x, circle.y), circle.radius, 255, -1)
    return (disc > 0) & eye.mask


def first_pass(eye: Eye, iris: Mask) -> tuple[Mask, int]:
    """Iris pixels inside `box_of(mask)` that are surely reflection or surely pupil, and how many are reflection."""
    box = box_of(eye.mask)
    value = eye.crop[box].max(axis=2)
    bright, dark = iris[box] & (value >= BRIGHT), iris[box] & (value <= DARK)
    out = np.zeros_like(iris)
    out[box] = bright | dark
    return out, int(bright.sum())


def eroded(mask: Mask) -> Mask:
    """The mask without the pixels that lack one of their four neighbours.

    As in the authors' loops, what lies before the first row or column is the last one (a negative index), and
    looking past the last one is an error, but only where the neighbours looked at before are all set.

    Raises:
        Undecided: that error.
    """
    up, left = np.roll(mask, 1, axis=0), np.roll(mask, 1, axis=1)
    down, right = np.zeros_like(mask), np.zeros_like(mask)
    down[:-1], right[:, :-1] = mask[1:], mask[:, 1:]
    below = mask[-1] & up[-1]
    beside = (mask & up & down & left)[:, -1]
    if below.any() or beside.any():
        raise Undecided("an iris touches the border of the image")
    return mask & up & down & left & right


def highlight_of(eye: Eye, iris: Mask, sure: Mask) -> tuple[Mask, float]:
    """The highlight's mask `[h, w]`, and Yen's threshold before it is scaled.

    Args:
        iris: the iris' mask after `EROSION` erosions.
        sure: of `first_pass`; the pixels that are in one of the two masks alone give the iris' mean colour.

    Raises:
        Undecided: no iris pixel is left.
    """
    from skimage.filters import threshold_yen

    plain = eye.crop[iris ^ sure]
    if len(plain) == 0 or not iris.any():
        raise Undecided("nothing of an iris is left")
    colour = plain.mean(axis=0).astype(int)
    value = np.clip(eye.crop.astype(int) - colour, 0, None).astype(np.uint8).max(axis=2)
    threshold = float(threshold_yen(value[iris]))
    return iris & (value > threshold * THRESHOLD_SCALE), threshold


def padded(mask: Mask, height: int, width: int) -> Mask:
    """The mask at the top left of an empty one of the given size."""
    out = np.zeros((height, width), bool)
    out[: mask.shape[0], : mask.shape[1]] = mask
    return out


def best_overlap(left: Mask, right: Mask) -> Overlap:
    """The shift of `left` `[H, W]` that covers most of `right` `[H, W]`; of equals the last one visited.

    Rows are shifted from −⌊H/6⌋ up to, without, ⌊H/6⌋ (the outer loop), columns likewise by ⌊W/5⌋; what leaves the
    frame is lost, what enters is empty. The overlap of all shifts is counted at once: for each pixel of `left`, the
    window of `right` that its shifts reach.

    Raises:
        Undecided: a frame so small that there is no shift.
    """
    height, width = right.shape
    reach_y, reach_x = int(height / 6), int(width / 5)
    if reach_y == 0 or reach_x == 0:
        raise Undecided("the eyes are too small")
    frame = np.pad(right.astype(np.int32), ((reach_y, reach_y), (reach_x, reach_x)))
    counts = np.zeros((2 * reach_y, 2 * reach_x), np.int32)
    ys, xs = np.nonzero(left)
    for y, x in zip(ys, xs, strict=True):
        counts += frame[y : y + 2 * reach_y, x : x + 2 * reach_x]
    last = counts.size - 1 - int(np.argmax(counts.ravel()[::-1]))
    dy, dx = last // counts.shape[1] - reach_y, last % counts.shape[1] - reach_x
    stays = ((ys + dy >= 0) & (ys + dy < height) & (xs + dx >= 0) & (xs + dx < width)).sum()
    count = int(counts.ravel()[last])
    union = int(stays) + int(right.sum()) - count
    return Overlap(dx, dy, count, count / union if union else 0.0)


def overlap_of(left: Eye, right: Eye) -> Overlap:
    """How far the highlights of two eyes coincide.

    Raises:
        Undecided: neither eye has a bright pixel in its iris, or a step finds nothing to work on.
    """
    irises = [iris_of(eye, circle_of(eye)) for eye in (left, right)]
    passes = [first_pass(eye, iris) for eye, iris in zip((left, right), irises, strict=True)]
    if not any(bright for _, bright in passes):
        raise Undecided("neither eye has a highlight")
    masks = []
    for eye, iris, (sure, _) in zip((left, right), irises, passes, strict=True):
        for _ in range(EROSION):
            iris = eroded(iris)
        masks.append(highlight_of(eye, iris, sure)[0])
    height, width = (max(mask.shape[axis] for mask in masks) for axis in (0, 1))
    return best_overlap(padded(masks[0], height, width), padded(masks[1], height, width))

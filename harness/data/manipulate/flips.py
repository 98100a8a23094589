"""Flips of one region of a face, blended in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from harness.data.manipulate.regions import Box, blend_window

RATIOS = (0.75, 1.0, 1.0, 1.0)
"""What the blend mask is multiplied with: one of these, each as likely as the others."""


class Flip(NamedTuple):
    """A region, and how it is turned.

    Attributes:
        region: `mouth`, `eye` or `nose`.
        axes: of the patch `[h, w, 3]` that are reversed: rows and columns (a turn by 180°), or columns alone.
        margin: pixels around the region's box that are flipped with it.
    """

    region: str
    axes: tuple[int, ...]
    margin: int


MOUTH_ROTATED = Flip("mouth", (0, 1), 5)
MOUTH_FLIPPED = Flip("mouth", (1,), 5)
EYE_FLIPPED = Flip("eye", (1,), 5)
NOSE_FLIPPED = Flip("nose", (1,), 3)


def draw_ratio(rng: np.random.Generator) -> float:
    """One of `RATIOS`."""
    return RATIOS[int(rng.integers(len(RATIOS)))]


def flip_region(pixels: np.ndarray, flip: Flip, box: Box, ratio: float) -> np.ndarray:
    """A face with one region flipped and blended in, a new array `[H, W, 3]` uint8.

    Args:
        pixels: `[H, W, 3]` uint8.
        box: where the region is (`regions.region_box`).
        ratio: the greatest share of the flipped region in the result.

    Source: METHOD "Manipulations"; AIGFD_BLO at 5f26ede, `preprocessing/utils.py`, `mouth_flip`, `eye_flip`,
    `nose_flip_func`. As there, blended values are cut to whole grey levels, not rounded.
    *Deviation*: outside the flipped patch nothing changes, where rounding errors make the released result 1 level
    darker in places; a thousandth of a level is added before the cut, for the same reason.
    """
    height, width = pixels.shape[:2]
    patch = box.grown(flip.margin, height, width)
    share = ratio * _share(flip.region, box, patch, height, width)[..., None]
    plain = pixels[patch.slices]
    blended = plain + share * (np.flip(plain, flip.axes).astype(np.float64) - plain)
    out = pixels.copy()
    out[patch.slices] = (blended + 1e-3).astype(np.uint8)
    return out


def _share(name: str, box: Box, patch: Box, height: int, width: int) -> np.ndarray:
    """The blend mask in a patch."""
    window, values = blend_window(name, box, height, width)
    rows, columns = patch.slices
    return values[
        rows.start - window.top : rows.stop - window.top, columns.start - window.left : columns.stop - window.left
    ]

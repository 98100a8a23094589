"""One manipulated face, and the same resampling for a photograph.

made = manipulate_face(pixels, 0, landmarks, rng)      # mouth turned by 180°
plain = resample(pixels, rng)                          # a photograph that went the same way, unchanged
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from harness.api.errors import ConfigError
from harness.api.preprocess import check_pixels
from harness.data.manipulate.flips import (
    EYE_FLIPPED,
    MOUTH_FLIPPED,
    MOUTH_ROTATED,
    NOSE_FLIPPED,
    Flip,
    draw_ratio,
    flip_region,
)
from harness.data.manipulate.regions import NAMES, Box, region_box, usable
from harness.data.manipulate.warp import distort_face, shift_face

WORK_SIZE = 224

NoLandmarks = Literal["whole_face", "drop"]
Size = tuple[int, int]


class Manipulation(NamedTuple):
    """One of the manipulations.

    Attributes:
        number: in released file names, `<face>_<number>.png`.
        name: what it is called here.
        regions: fine labels it gives: which of mouth, eye and nose are changed.
        flip: the flip it is; None for the whole face's warp.
    """

    number: int
    name: str
    regions: tuple[str, ...]
    flip: Flip | None


MANIPULATIONS = (
    Manipulation(0, "mouth_rotated", ("mouth",), MOUTH_ROTATED),
    Manipulation(1, "mouth_flipped", ("mouth",), MOUTH_FLIPPED),
    Manipulation(2, "eye_flipped", ("eye",), EYE_FLIPPED),
    Manipulation(3, "whole_face", NAMES, None),
    Manipulation(4, "nose_flipped", ("nose",), NOSE_FLIPPED),
)
"""By number. 0 to 3 are released; 4 is in the paper's text alone."""


class Manipulated(NamedTuple):
    """A manipulated face `[H, W, 3]` uint8, and whether the whole face's warp stands in for a flip."""

    pixels: np.ndarray
    fell_back: bool


def manipulation(number: int) -> Manipulation:
    """The manipulation of a number.

    Raises:
        ConfigError: there is none.
    """
    if not 0 <= number < len(MANIPULATIONS):
        known = ", ".join(f"{m.number} {m.name}" for m in MANIPULATIONS)
        raise ConfigError(f"there is no manipulation {number}", fix=f"known: {known}")
    return MANIPULATIONS[number]


def manipulate_face(
    pixels: np.ndarray,
    number: int,
    landmarks: np.ndarray | None,
    rng: np.random.Generator,
    *,
    work_size: int = WORK_SIZE,
    no_landmarks: NoLandmarks = "whole_face",
) -> Manipulated | None:
    """A face with one manipulation, made at `work_size` and brought back to its size.

    Args:
        pixels: the face `[H, W, 3]` uint8; nothing is cropped. Where it is larger than `work_size`, detail is lost.
        number: of `MANIPULATIONS`.
        landmarks: `[68, 2]` (x, y) in pixels of `pixels`, or None. Not usable: points that are not finite, or a
            region that is off the image or thinner than its mask.
        rng: all that is drawn is drawn from it.
        work_size: side in pixels; masks and margins do not scale with it.
        no_landmarks: what becomes of a flip without usable landmarks: `whole_face`: the warp stands in, and the
            flip's label is wrong; `drop`: None. The whole face's warp needs no landmarks.

    Raises:
        ConfigError: no such number, or a `work_size` that is not from 16 to 1024.
        DataError: `pixels` are of another kind.

    Source: METHOD "Manipulations"; AIGFD_BLO at 5f26ede, `preprocessing/dataset_img.py`, `lmks_operator`.
    *Deviation*: see `at_work_size`, `flips.flip_region` and `warp.distort_face`.
    """
    flip = manipulation(number).flip
    size = check_pixels(pixels).shape[:2]
    box = None if flip is None else _box(flip, landmarks, size, work_size)
    if flip is not None and box is None and no_landmarks == "drop":
        return None
    face = at_work_size(pixels, work_size)
    if flip is None or box is None:
        return Manipulated(brought_back(distort_face(face, rng), size), fell_back=flip is not None)
    return Manipulated(brought_back(flip_region(face, flip, box, draw_ratio(rng)), size), fell_back=False)


def resample(
    pixels: np.ndarray,
    rng: np.random.Generator,
    work_size: int = WORK_SIZE,
    *,
    numbers: Sequence[int] = (0, 1, 2, 3, 4),
) -> np.ndarray:
    """A photograph `[H, W, 3]` uint8 that went the way of a manipulated face and was not manipulated.

    One of `numbers` is drawn. Every way leads to `work_size` and back; that of the whole face has a lookup between,
    here a shift of at most half a pixel. So a photograph's sharpness tells as little of its class as of the flips'
    surroundings, where `numbers` are the manipulations in use, each as likely as here.

    Source: FIDELITY `resample_photographic`.

    Raises:
        ConfigError, DataError: as `manipulate_face`.
    """
    flip = manipulation(numbers[int(rng.integers(len(numbers)))]).flip
    size = check_pixels(pixels).shape[:2]
    face = at_work_size(pixels, work_size)
    return brought_back(shift_face(face, rng) if flip is None else face, size)


def at_work_size(pixels: np.ndarray, work_size: int) -> np.ndarray:
    """A face at `[work_size, work_size, 3]` uint8: enlarged bilinearly and cut to whole grey levels, or shrunk.

    Source: as `skimage.transform.resize(..., preserve_range=True).astype(uint8)` of the released generator.
    *Deviation*: a thousandth of a level is added before the cut, which else turns some even areas 1 darker; a face
    that is larger than `work_size` (none of the released ones is) is shrunk as `brought_back` shrinks.
    """
    if not 16 <= work_size <= 1024:
        raise ConfigError(f"faces cannot be manipulated at {work_size} pixels", fix="give a work_size from 16 to 1024")
    height, width = pixels.shape[:2]
    if (height, width) == (work_size, work_size):
        return pixels.copy()
    if max(height, width) > work_size:
        return _resized(pixels, (work_size, work_size))
    large = cv2.resize(pixels.astype(np.float32), (work_size, work_size), interpolation=cv2.INTER_LINEAR)
    return np.asarray((large + np.float32(1e-3)).astype(np.uint8))


def brought_back(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Pixels at `size` (height, width): Pillow's bilinear, which averages over what it shrinks (as released)."""
    return pixels if pixels.shape[:2] == size else _resized(pixels, size)


def _resized(pixels: np.ndarray, size: Size) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))


def _box(flip: Flip, landmarks: np.ndarray | None, size: Size, work_size: int) -> Box | None:
    """A flip's region in the working image; None without usable landmarks."""
    if landmarks is None or not usable(landmarks):
        return None
    points = landmarks if size == (work_size, work_size) else landmarks * [work_size / size[1], work_size / size[0]]
    return region_box(flip.region, points, work_size, work_size)

"""Faces in an image: how many, where, and the largest one cut out.

The detector is OpenCV's LBP cascade for frontal faces, the file that scikit-image carries, run by scikit-image.
OpenCV's own wheel can no longer do this alone: version 5 has neither ``CascadeClassifier`` nor the Haar files in
``cv2.data``, and its ``FaceDetectorYN`` comes without a network.

It finds upright frontal faces of a seventh of the image's longer side or more: enough to say that an image holds no
face, or several, and to cut out the one. It is no judge of profiles or crowds.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 200
"""Longer side in pixels that images are brought down to for the search (never up)."""
SMALLEST = 7
"""A face's side is at least SIDE / SMALLEST."""
SUPPORT = 4
"""Overlapping windows that make a face."""
MARGIN = 1.6
"""Side of a crop in sides of the face's box, which ends at brow and chin: hair, ears and chin are in it."""
DETECTOR = "OpenCV LBP frontal-face cascade (scikit-image)"

_local = threading.local()


class Face(NamedTuple):
    """A face's box in pixels of the image; right and bottom are just outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def side(self) -> int:
        """Its width (boxes are square but for rounding)."""
        return self.right - self.left


def _windows(grey: np.ndarray) -> np.ndarray:
    """Every window that passes the cascade, ``[N, 3]`` left, top, side, in one order whatever the threads."""
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    if not hasattr(_local, "cascade"):
        _local.cascade = Cascade(lbp_frontal_face_cascade_filename())
    longest = max(grey.shape)
    least = max(24, longest // SMALLEST)
    # a score that no overlap reaches keeps windows apart: grouping depends on their order, which threads change
    found = _local.cascade.detect_multi_scale(
        grey, scale_factor=1.1, step_ratio=1, min_size=(least, least), max_size=(longest, longest),
        min_neighbor_number=0, intersection_score_threshold=2.0,
    )  # fmt: skip
    boxes = sorted((int(w["width"]), int(w["r"]), int(w["c"])) for w in found)
    return np.array([(c, r, side) for side, r, c in boxes], np.float64).reshape(-1, 3)


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area shared with each of ``others [N, 3]``, as a share of the smaller of the two squares."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[:2] + box[2], others[:, :2] + others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    return shared / np.minimum(box[2], others[:, 2]) ** 2


def _groups(windows: np.ndarray) -> list[np.ndarray]:
    """Mean windows of the groups with enough support, largest first; a group within a larger one is the same face."""
    groups: list[list[np.ndarray]] = []
    for window in windows:
        means = np.array([np.mean(g, axis=0) for g in groups]).reshape(-1, 3)
        shares = _overlap(window, means) if len(groups) else np.empty(0)
        if len(shares) and shares.max() > 0.5:
            groups[int(shares.argmax())].append(window)
        else:
            groups.append([window])
    kept: list[np.ndarray] = []
    strong = [np.mean(g, axis=0) for g in groups if len(g) >= SUPPORT]
    for box in sorted(strong, key=lambda b: (-b[2], b[1], b[0])):
        if not kept or _overlap(box, np.array(kept)).max() <= 0.3:
            kept.append(box)
    return kept


def find_faces(pixels: np.ndarray) -> list[Face]:
    """Faces of an image ``[H, W, 3]`` uint8, largest first; those of less than half its side are left out.

    The same for the same pixels, whatever the threads.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < 24:
        return []
    shrink = max(1.0, max(height, width) / SIDE)
    size = (max(1, round(width / shrink)), max(1, round(height / shrink)))
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.BOX))
    if min(grey.shape) < 24:
        return []
    boxes = [box * shrink for box in _groups(_windows(grey))]
    boxes = [box for box in boxes if box[2] >= 0.5 * boxes[0][2]]
    return [_face(box, height, width) for box in boxes]


def _face(box: np.ndarray, height: int, width: int) -> Face:
    left, top, right, bottom = (round(float(v)) for v in (box[0], box[1], box[0] + box[2], box[1] + box[2]))
    return Face(max(0, left), max(0, top), min(width, right), min(height, bottom))


def crop_face(pixels: np.ndarray, face: Face) -> np.ndarray:
    """The face with its surroundings ``[h, w, 3]``: a square of ``MARGIN`` times its side around its centre, moved
    into the image where it leaves it, and cut to the image where that is smaller."""
    height, width = pixels.shape[:2]
    side = round(MARGIN * max(face.right - face.left, face.bottom - face.top))

    def span(low: int, high: int, whole: int) -> slice:
        length = min(side, whole)
        start = min(max(0, round((low + high - length) / 2)), whole - length)
        return slice(start, start + length)

    return np.ascontiguousarray(pixels[span(face.top, face.bottom, height), span(face.left, face.right, width)])

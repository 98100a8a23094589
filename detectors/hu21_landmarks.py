"""The 68 face landmarks that Hu21 needs: read from a file beside the image, or found by dlib.

A landmarks file is `<image>.json` or `<image>.npy` beside the image (`face.png.json`; the JSON file where both are
there). JSON: `{"landmarks": [[x, y], ...]}` with the 68 points in iBUG's order, or `{"landmarks": null}` where
not exactly one face was found; other keys are left alone. NPY: `[68, 2]`, integers or floats. Coordinates are
pixels of the image file as it is stored, before any EXIF rotation; only the eyes' points 36 to 47 are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.api.contract import Abstain
from harness.api.errors import ConfigError, DataError, WeightsError
from harness.api.images import inspect_image
from harness.api.weights import ResolvedWeights, file_digest

ENDINGS = (".json", ".npy")
MAX_BYTES = 1 << 20
POINTS = 68
EYES = slice(36, 48)
_FIX = "see detectors/hu21_landmarks.py for the format, or delete the file and the image is left undecided"

Landmarks = NDArray[np.int32]


def landmarks_file(image: Path) -> Path | None:
    """The landmarks file beside an image, or None where there is none."""
    for ending in ENDINGS:
        path = image.with_name(image.name + ending)
        if path.is_file():
            return path
    return None


def read_landmarks(path: Path, width: int, height: int) -> Landmarks:
    """The points `[68, 2]` int32 (x, y) in an image of `width` × `height`, from its landmarks file.

    Where an edit changed the image's size, the points are scaled from the stored image's (read from its header).

    Raises:
        Abstain: the file says that there is not exactly one face.
        DataError: too large, not the format above, or not finite.
    """
    points = _points(path)
    image = path.with_name(path.name.removesuffix(path.suffix))
    if image.is_file():
        facts = inspect_image(image)
        points = points * [width / facts.width, height / facts.height]
    if not np.isfinite(points[EYES]).all() or np.abs(points[EYES]).max() > 1e6:
        raise DataError("the eyes' landmarks are no coordinates in an image", where=path, fix=_FIX)
    return np.round(np.nan_to_num(points, nan=0, posinf=0, neginf=0)).clip(-1e6, 1e6).astype(np.int32)


def _points(path: Path) -> NDArray[np.float64]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"a landmarks file of more than {MAX_BYTES} bytes", where=path, fix=_FIX)
        if path.suffix == ".npy":
            raw = np.load(path, allow_pickle=False)
        else:
            document = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(document, dict) or "landmarks" not in document:
                raise DataError('a landmarks file without a key "landmarks"', where=path, fix=_FIX)
            if document["landmarks"] is None:
                raise Abstain
            raw = np.array(document["landmarks"])
        points = np.asarray(raw)
    except (OSError, ValueError, EOFError, RecursionError) as error:
        raise DataError(f"not a readable landmarks file: {error}", where=path, fix=_FIX) from error
    if points.shape != (POINTS, 2) or points.dtype.kind not in "iuf":
        what = f"landmarks are {list(points.shape)} of {points.dtype}, expected [{POINTS}, 2] numbers"
        raise DataError(what, where=path, fix=_FIX)
    return points.astype(np.float64)


def dlib_finder(source: ResolvedWeights) -> Callable[[NDArray[np.uint8]], Landmarks]:
    """A function from pixels `[H, W, 3]` uint8 to the points `[68, 2]` of the one face in them (else `Abstain`).

    dlib's frontal face detector on the image enlarged once, and its predictor of 68 points from `source`.

    Raises:
        ConfigError: dlib is not installed.
        WeightsError: no file, or one that dlib cannot read.
    """
    try:
        import dlib
    except ImportError as error:
        raise ConfigError(
            "landmarks: dlib needs the package dlib, which is not installed", where="detector hu21",
            fix="pip install dlib (it is compiled: cmake and a C++ compiler are needed), or landmarks: file",
        ) from error  # fmt: skip
    if source.path is None:
        raise WeightsError("a landmark predictor cannot be random", where="detector hu21", fix="give its file")
    if source.kind == "file" and file_digest(source.path) != source.identity:
        raise WeightsError("the file changed since the run was planned", where=source.path, fix="run again")
    try:
        predictor = dlib.shape_predictor(str(source.path))
    except RuntimeError as error:
        raise WeightsError(f"dlib cannot read this predictor: {error}", where=source.path) from error
    detector = dlib.get_frontal_face_detector()

    def find(pixels: NDArray[np.uint8]) -> Landmarks:
        faces = detector(pixels, 1)
        if len(faces) != 1:
            raise Abstain
        parts = predictor(pixels, faces[0])
        if parts.num_parts != POINTS:
            what = f"the predictor gives {parts.num_parts} points, expected {POINTS}"
            raise WeightsError(what, where=source.path, fix="use shape_predictor_68_face_landmarks.dat")
        return np.array([[parts.part(i).x, parts.part(i).y] for i in range(POINTS)], dtype=np.int32)

    return find

"""Where a face's 68 landmarks come from: a folder of `<id>.npy`, one `landmarks.json`, or dlib.

All files are strangers': sizes are bounded, nothing is unpickled, and what is not understood is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.api.errors import ConfigError, DataError
from harness.api.weights import file_digest
from harness.data.exif.jsonsafe import load_object
from harness.data.manipulate.regions import LARGEST_COORDINATE, NUM_LANDMARKS

NPY_SIDE = 224
"""Side in pixels of the image that the coordinates of the released `<id>.npy` refer to."""

MAX_NPY_BYTES = 4 * 2**20
MAX_JSON_BYTES = 512 * 2**20
MAX_PREDICTOR_BYTES = 512 * 2**20
_FIX = "name a file of 68 points a face in the documented layout, or remove it: a face without is allowed"

Points = NDArray[np.float32]


def _checked(points: NDArray[Any], where: Path) -> Points:
    if not np.isfinite(points).all() or np.abs(points).max() > LARGEST_COORDINATE:
        raise DataError("landmarks are no coordinates in an image", where, _FIX)
    return np.ascontiguousarray(points, np.float32)


def read_landmarks_npy(path: Path) -> Points | None:
    """The first face's points `[68, 2]` float32 of a released `<id>.npy`, in pixels of a 224 × 224 image.

    The file holds `[faces, 68, 2]` numbers. None where it holds no face: no faces, or an array without dimensions
    (the released files then hold a pickled None; it is known by its header and not unpickled).

    Raises:
        DataError: no such file, too large, not such an array, not finite; names the file.
    """
    try:
        if not path.is_file():
            raise DataError("there is no such landmarks file", path, "check the folder of landmarks")
        if path.stat().st_size > MAX_NPY_BYTES:
            raise DataError(f"a landmarks file of more than {MAX_NPY_BYTES:,} bytes", path, _FIX)
        shape, dtype = _header(path)
        if shape == ():
            return None
        if len(shape) != 3 or shape[1:] != (NUM_LANDMARKS, 2) or dtype.kind not in "iuf":
            what = f"landmarks are {list(shape)} of {dtype}, expected [faces, {NUM_LANDMARKS}, 2] numbers"
            raise DataError(what, path, _FIX)
        if math.prod(shape) * dtype.itemsize > path.stat().st_size:
            raise DataError("a landmarks file that is shorter than it says", path, _FIX)
        faces = np.load(path, allow_pickle=False)
    except DataError:
        raise
    except Exception as error:  # numpy's reader can fail in any way on a hostile header; all of it is the file's fault
        raise DataError(f"not a readable landmarks file ({str(error)[:200]})", path, _FIX) from error
    return _checked(faces[0], path) if len(faces) else None


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and kind that a .npy file states, of which nothing is believed yet."""
    with path.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"version {version} of the format")
        shape, _, dtype = readers[version](stream)
    return shape, dtype


@dataclass(frozen=True)
class NpyFolder:
    """A folder of released `<id>.npy` files."""

    folder: Path

    def points(self, face: str, pixels: NDArray[np.uint8]) -> Points | None:
        """As `Source`; None also where the face has no file."""
        path = self.folder / f"{face}.npy"
        found = read_landmarks_npy(path) if path.is_file() else None
        if found is None:
            return None
        height, width = pixels.shape[:2]
        return found * np.array([width / NPY_SIDE, height / NPY_SIDE], np.float32)

    def part(self, faces: Iterable[str]) -> NpyFolder:
        """Itself."""
        return self

    def identity(self) -> str:
        """What it is: files are not read for it."""
        return "npy files"

    def known(self, faces: Iterable[str]) -> bool:
        """Whether any of the faces has a file."""
        return any((self.folder / f"{face}.npy").is_file() for face in faces)


@dataclass(frozen=True)
class JsonFile:
    """One JSON object: id -> 68 pairs of numbers in the image's pixels, or null. As the demo corpus writes."""

    path: Path
    table: Mapping[str, Any] = field(repr=False)
    digest: str

    @classmethod
    def load(cls, path: Path) -> JsonFile:
        """The file, its points not yet looked at.

        Raises:
            DataError: no file, too large, or no JSON object; names it.
        """
        return cls(path, load_object(path, MAX_JSON_BYTES), file_digest(path))

    def identity(self) -> str:
        """The file's sha256."""
        return f"json sha256:{self.digest}"

    def points(self, face: str, pixels: NDArray[np.uint8]) -> Points | None:
        """As `Source`; `DataError` where they are something else."""
        raw = self.table.get(face)
        if raw is None:
            return None
        where = Path(f"{self.path}, key {face!r}")
        try:
            found = np.array(raw)
        except ValueError:
            raise DataError("landmarks are no table of numbers", where, _FIX) from None
        if found.shape != (NUM_LANDMARKS, 2) or found.dtype.kind not in "iuf":
            raise DataError(f"landmarks are no [{NUM_LANDMARKS}, 2] numbers", where, _FIX)
        return _checked(found, where)

    def part(self, faces: Iterable[str]) -> JsonFile:
        """Those of some faces, so that a process is not sent all."""
        return replace(self, table={face: self.table[face] for face in faces if face in self.table})

    def known(self, faces: Iterable[str]) -> bool:
        """Whether any of the faces is in the file."""
        return any(face in self.table for face in faces)


_PREDICTORS: dict[Path, Callable[[NDArray[np.uint8]], Points | None]] = {}
"""Loaded predictors of this process (100 MB each)."""


@dataclass(frozen=True)
class Dlib:
    """Landmarks found by dlib: its frontal face detector on the image enlarged once, and a 68-point predictor file."""

    predictor: Path

    def identity(self) -> str:
        """The predictor's sha256."""
        return f"dlib sha256:{file_digest(self.predictor)}"

    def points(self, face: str, pixels: NDArray[np.uint8]) -> Points | None:
        """As `Source`: of the face that the detector is surest of."""
        if self.predictor not in _PREDICTORS:
            _PREDICTORS[self.predictor] = _dlib_finder(self.predictor)
        return _PREDICTORS[self.predictor](pixels)

    def part(self, faces: Iterable[str]) -> Dlib:
        """Itself."""
        return self


def _dlib_finder(path: Path) -> Callable[[NDArray[np.uint8]], Points | None]:
    dlib = _import_dlib()
    try:
        predictor = dlib.shape_predictor(str(path))
    except RuntimeError as error:
        raise DataError(f"dlib cannot read this predictor: {error}", path) from error
    detector = dlib.get_frontal_face_detector()

    def find(pixels: NDArray[np.uint8]) -> Points | None:
        faces = detector(pixels, 1)
        if not len(faces):
            return None
        parts = predictor(pixels, faces[0])
        if parts.num_parts != NUM_LANDMARKS:
            raise DataError(
                f"the predictor gives {parts.num_parts} points", path, "use shape_predictor_68_face_landmarks.dat"
            )
        return np.array([[parts.part(i).x, parts.part(i).y] for i in range(NUM_LANDMARKS)], np.float32)

    return find


def _import_dlib() -> Any:
    try:
        import dlib
    except ImportError as error:
        raise ConfigError(
            "finding landmarks needs the package dlib, which is not installed",
            fix='pip install "blades-bench[landmarks]" (it is compiled: cmake and a C++ compiler are needed), or give '
            "--landmarks a folder of .npy files or a .json file",
        ) from error
    return dlib


Source = NpyFolder | JsonFile | Dlib
"""Landmarks by a face's id; can be sent to another process.

`points(face, pixels)`: `[68, 2]` float32 (x, y) in pixels of the face's image `[H, W, 3]` uint8, or None where there
are none. `part(faces)`: the same for some faces alone. `identity()`: a word for what they are.
"""


def open_landmarks(path: Path) -> Source:
    """The source that a path names: a folder of `<id>.npy`, a `.json` file, or a predictor (`.dat`) for dlib.

    Raises:
        ConfigError: none of these, or dlib is not installed.
        DataError: nothing there, or a file that is too large or no JSON object.
    """
    if path.is_dir():
        return NpyFolder(path)
    if not path.is_file():
        raise DataError("the landmarks are not there", path, "check --landmarks")
    if path.suffix.lower() == ".json":
        return JsonFile.load(path)
    if path.suffix.lower() == ".dat":
        _import_dlib()
        if path.stat().st_size > MAX_PREDICTOR_BYTES:
            raise DataError(f"a predictor of more than {MAX_PREDICTOR_BYTES:,} bytes", path, "name dlib's own file")
        return Dlib(path)
    raise ConfigError(
        "not a source of landmarks", path, "give a folder of .npy files, a .json file, or dlib's predictor (.dat)"
    )

"""What is known of a suite's photographs beside their pixels: EXIF labels and landmarks in the dataset's folder.

`<dataset>/exif_labels.json` is a label file (`harness data exif` writes it; a recipe may name another there),
`<dataset>/landmarks.json` or the folder `<dataset>/landmarks/` holds landmarks. Both are matched by the stem of the
image's name, and optional.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from harness.api.errors import DataError
from harness.data.exif.labels import read_labels
from harness.data.manipulate.landmarks import NPY_SIDE, JsonFile, read_landmarks_npy
from harness.data.manipulate.regions import NUM_LANDMARKS

if TYPE_CHECKING:
    from numpy.typing import NDArray

LABELS = "exif_labels.json"
LANDMARKS = "landmarks"


@dataclass(frozen=True)
class Annotations:
    """Annotations of N photographs.

    Attributes:
        tags: tag -> int16 [N], -1 = not known; empty without a label file.
        tag_levels: levels of the ordinal tags; 0 without a label file.
        points: float32 [N, 68, 2] in coordinates of a 224 x 224 picture, NaN = none; None without landmarks.
        notes: what was found, a line each.
    """

    tags: Mapping[str, NDArray[np.int16]] = field(default_factory=dict)
    tag_levels: int = 0
    points: NDArray[np.float32] | None = None
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """sha256 of all values: what training sees of the files, whatever else they hold; "" where there are none."""
        if not self.tags and self.points is None:
            return ""
        found = hashlib.sha256(f"annotations {self.tag_levels}".encode())
        for name, values in sorted(self.tags.items()):
            found.update(name.encode() + values.astype("<i2").tobytes())
        if self.points is not None:
            found.update(b"points" + self.points.astype("<f4").tobytes())
        return found.hexdigest()

    def take(self, rows: NDArray[np.intp]) -> Annotations:
        """Those of some photographs."""
        points = None if self.points is None else self.points[rows]
        return Annotations(
            {tag: values[rows] for tag, values in self.tags.items()}, self.tag_levels, points, self.notes
        )

    def landmarks(self, row: int) -> NDArray[np.float32] | None:
        """[68, 2] of a photograph, or None."""
        if self.points is None or np.isnan(self.points[row, 0, 0]):
            return None
        return self.points[row]


def read_annotations(
    folder: Path, paths: Sequence[str], sizes: Sequence[tuple[int, int]], labels: str | None = None
) -> Annotations:
    """Annotations of photographs, in their order.

    Args:
        folder: the dataset's.
        paths: image files; their stems are the ids.
        sizes: (width, height) of each, which landmarks in a JSON file refer to.
        labels: another label file, by its name in the folder; it must be there.

    Raises:
        DataError: a file that is there and cannot be read, or a named one that is not.
    """
    ids = [PurePosixPath(path).stem for path in paths]
    notes: list[str] = []
    if labels is not None and not (folder / labels).is_file():
        raise DataError("the label file is not there", folder / labels, "make it with `harness data exif`")
    tags, levels = _tags(folder / (labels or LABELS), ids, notes)
    points = _points(folder, ids, sizes, notes)
    return Annotations(tags, levels, points, tuple(notes))


def _tags(path: Path, ids: Sequence[str], notes: list[str]) -> tuple[dict[str, NDArray[np.int16]], int]:
    if not path.is_file():
        return {}, 0
    labels = read_labels(path)
    place = {name: i for i, name in enumerate(labels.ids)}
    rows = np.array([place.get(name, -1) for name in ids], np.intp)
    notes.append(f"{int((rows >= 0).sum()):,} of {len(ids):,} photographs have EXIF labels")
    if not (rows >= 0).any():
        return {}, 0
    return {
        tag: np.where(rows >= 0, values[rows], -1).astype(np.int16) for tag, values in labels.tags.items()
    }, labels.levels


def _points(
    folder: Path, ids: Sequence[str], sizes: Sequence[tuple[int, int]], notes: list[str]
) -> NDArray[np.float32] | None:
    file, many = folder / f"{LANDMARKS}.json", folder / LANDMARKS
    points = np.full((len(ids), NUM_LANDMARKS, 2), np.nan, np.float32)
    if file.is_file():
        source = JsonFile.load(file)
        for i, (name, size) in enumerate(zip(ids, sizes, strict=True)):
            found = source.points(name, _EMPTY)
            if found is not None:
                points[i] = found * (NPY_SIDE / np.array(size, np.float64))
    elif many.is_dir():
        for i, name in enumerate(ids):
            found = read_landmarks_npy(many / f"{name}.npy") if (many / f"{name}.npy").is_file() else None
            if found is not None:
                points[i] = found
    else:
        return None
    notes.append(f"{int((~np.isnan(points[:, 0, 0])).sum()):,} of {len(ids):,} photographs have landmarks")
    return points


_EMPTY = np.empty((0, 0, 3), np.uint8)

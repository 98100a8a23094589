"""A table of faces for training: images, EXIF labels, boxes, landmarks, stored manipulations, splits by photograph."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.api.errors import DataError
from harness.api.images import decode, read_image_file
from harness.api.training import TrainingImages
from harness.data.problems import Problem
from harness.data.splits import SplitRule, split_without_lists

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

FACE_SPLITS = SplitRule(outer=0.05, select=0.05, report=0.05)
"""Shares of a training set without lists: by hash of (2024, photograph). *Deviation*: the released code shuffles by
seed 42 and drops the last 5,000 faces twice (FIDELITY A29), which no one can repeat on another set of files."""

Landmarks = Callable[[int], "NDArray[np.float32] | None"]


def no_landmarks(row: int) -> None:
    """Landmarks of a table that has none."""
    return None


@dataclass(frozen=True)
class FaceTable:
    """Faces to train on, a row each.

    Attributes:
        root: paths are relative to it.
        ids: names, each once.
        paths: image files, posix.
        photos: the photograph that a face was cut from; faces of one photograph are never in two splits.
        digests: sha256 of the image files.
        splits: `train`, `outer`, `select` or `report` a row.
        tags: tag -> int16 [N], -1 = not known; `tag_levels` levels of the ordinal ones.
        boxes: float32 [N, 4] as fractions, NaN = none.
        landmarks: row -> [68, 2] float32 in coordinates of a 224 x 224 picture, or None.
        stored: number of a manipulation -> its file a row ("" = none); files relative to the root.
        beside: digest of what ``landmarks`` and ``stored`` read.
        notes: what was counted on the way in, a line each.
        problems: what is wrong with single files.
    """

    root: Path
    ids: tuple[str, ...]
    paths: tuple[str, ...]
    photos: tuple[str, ...]
    digests: tuple[str, ...]
    splits: NDArray[np.str_]
    tags: Mapping[str, NDArray[np.int16]] = field(default_factory=dict)
    tag_levels: int = 0
    boxes: NDArray[np.float32] | None = None
    landmarks: Landmarks = no_landmarks
    stored: Mapping[int, Sequence[str]] = field(default_factory=dict)
    beside: str = ""
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, split: str) -> NDArray[np.intp]:
        """Rows of a split, in the table's order."""
        return np.flatnonzero(self.splits == split)

    def head(self, split: str, count: int) -> FaceTable:
        """The table with only the first ``count`` faces of a split (the rest are in no split)."""
        splits = self.splits.copy()
        splits[self.rows(split)[count:]] = ""
        return replace(self, splits=splits)

    def identity(self, split: str) -> str:
        """sha256 of what training sees of a split: images, tags, boxes, landmarks, names and sizes of stored faces."""
        rows = self.rows(split)
        found = hashlib.sha256(f"faces {self.tag_levels} {len(rows)}".encode())
        for row in rows:
            stored = "".join(f"\0{n}:{files[row]}" for n, files in self.stored.items())
            found.update(f"\n{self.digests[row]}{stored}".encode())
        for tag, values in sorted(self.tags.items()):
            found.update(tag.encode() + values[rows].astype("<i2").tobytes())
        if self.boxes is not None:
            found.update(self.boxes[rows].astype("<f4").tobytes())
        return hashlib.sha256(found.digest() + self.beside.encode()).hexdigest()

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """uint8 RGB [H, W, 3] of a face.

        Raises:
            DataError: the file is gone, changed since the table was made, or cannot be decoded.
        """
        path = self.root / self.paths[row]
        data = read_image_file(path)
        if hashlib.sha256(data).hexdigest() != self.digests[row]:
            raise DataError("the image changed since training began", path, "start again")
        return decode(data, name=str(path))

    def manipulated(self, row: int, number: int) -> NDArray[np.uint8] | None:
        """uint8 RGB [H, W, 3] of a stored manipulated face; None where there is no file."""
        name = self.stored[number][row] if number in self.stored else ""
        if not name:
            return None
        path = self.root / name
        return decode(read_image_file(path), name=str(path))

    def images(
        self, preprocess: Callable[[np.ndarray], Tensor], splits: Sequence[str] = ("train", "outer", "select")
    ) -> TrainingImages:
        """What a training step reads. All faces are photographs; `report` is given to nobody who does not name it."""
        rows = {split: self.rows(split) for split in splits}
        return TrainingImages(
            read=lambda split, i: self.pixels(int(rows[split][i])),
            labels={s: np.zeros(len(r), np.int8) for s, r in rows.items()},
            generators={s: [""] * len(r) for s, r in rows.items()},
            digests={s: [self.digests[i] for i in r] for s, r in rows.items()},
            preprocess=preprocess,
            tags={s: {tag: values[r] for tag, values in self.tags.items()} for s, r in rows.items()},
            tag_levels=self.tag_levels,
            boxes={} if self.boxes is None else {s: self.boxes[r] for s, r in rows.items()},
            landmarks=lambda split, i: self.landmarks(int(rows[split][i])),
            stored=lambda split, i, number: self.manipulated(int(rows[split][i]), number),
        )


def split_photos(photos: Sequence[str], rule: SplitRule = FACE_SPLITS) -> NDArray[np.str_]:
    """[N] the split of each face, by hash of (rule.seed, photograph)."""
    return np.array(split_without_lists(photos, rule, rule.seed), dtype="<U6")


def file_digests(
    root: Path, paths: Sequence[str], progress: Callable[[int, int], None] | None = None, workers: int = 4
) -> list[str | DataError]:
    """sha256 of files, in order; an error in place of a file that cannot be read."""

    def one(path: str) -> str | DataError:
        try:
            return hashlib.sha256(read_image_file(root / path)).hexdigest()
        except DataError as error:
            return error

    found: list[str | DataError] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="digest") as pool:
        for digest in pool.map(one, paths, chunksize=64):
            found.append(digest)
            if progress and (len(found) % 512 == 0 or len(found) == len(paths)):
                progress(len(found), len(paths))
    return found

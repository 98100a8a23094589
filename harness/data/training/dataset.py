"""Batches of faces: photographs and manipulated faces in the protocol's shares, cropped, with labels and masks.

What a face becomes is a function of (seed, epoch, its sha256): never of the batch it is in, the order, the number of
workers or whether its pixels come from a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from harness.api.errors import ConfigError
from harness.api.preprocess import fdf_crop
from harness.api.training import TrainingImages, stream
from harness.data.manipulate.face import MANIPULATIONS, manipulate_face, resample
from harness.data.manipulate.landmarks import NPY_SIDE
from harness.data.manipulate.warp import View, draw_view, see

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

PHOTOGRAPH = -1
"""In place of a manipulation's number: the face is left as photographed."""


@dataclass(frozen=True)
class FaceSettings:
    """How faces are drawn and made.

    Attributes:
        numbers: manipulations in use, equally often (METHOD "Manipulations"; FIDELITY `regions`).
        photographic: share of photographs (0.5 as published).
        source: `online`: manipulated faces are made when drawn, anew each epoch. `stored`: they are read, as made
            beforehand; a face without one of them is given another that it has.
        work_size: side in pixels that faces are manipulated at (METHOD: 224, stored at their own size).
        crop: side of the face crop over the longer side of the bounding box; faces without a box are used whole.
        no_landmarks: a face without landmarks, drawn for a region: distorted whole under the region's label as
            released (`whole_face`), or not given that manipulation but another whose label is true (`drop`).
        resample: photographs pass through the resampling that manipulated faces pass through (FIDELITY
            `resample_photographic`).
        augment: each face is seen in another view each epoch (`warp.draw_view`). Not in the paper.
    """

    numbers: tuple[int, ...] = tuple(range(len(MANIPULATIONS)))
    photographic: float = 0.5
    source: Literal["online", "stored"] = "online"
    work_size: int = 224
    crop: float = 1.3
    no_landmarks: Literal["whole_face", "drop"] = "whole_face"
    resample: bool = False
    augment: bool = False

    def __post_init__(self) -> None:
        unknown = [n for n in self.numbers if not 0 <= n < len(MANIPULATIONS)]
        if unknown or not self.numbers or len(set(self.numbers)) != len(self.numbers):
            raise ConfigError(
                f"manipulations {list(self.numbers)}",
                fix=f"each once, from 0 to {len(MANIPULATIONS) - 1}, at least one",
            )
        if not 0 < self.photographic < 1:
            raise ConfigError(f"share of photographs {self.photographic}", fix="a number between 0 and 1")


class FaceBatch(NamedTuple):
    """One batch.

    Attributes:
        inputs: [B, 3, H, W] float32, preprocessed.
        numbers: [B] int64, the manipulation of each face, `PHOTOGRAPH` (-1) for none.
        tags: tag -> [B] int64 level or class of the face's photograph, -1 = not known.
        names: sha256 of the photographs.
    """

    inputs: Tensor
    numbers: NDArray[np.int64]
    tags: dict[str, NDArray[np.int64]]
    names: tuple[str, ...]


class FaceDataset:
    """Faces of a `TrainingImages` as a training step wants them.

    Args:
        images: pixels and annotations.
        settings: how they are drawn and made.
        workers: threads that make the faces of a batch; changes nothing but the time.
    """

    def __init__(self, images: TrainingImages, settings: FaceSettings, workers: int = 1) -> None:
        self.images, self.settings, self.workers = images, settings, workers

    def draws(self, split: str, rows: Sequence[int], seed: int, epoch: int) -> NDArray[np.bool_]:
        """[B] which faces are manipulated in this epoch; the others are photographs."""
        shares = [self._stream("class", split, int(row), seed, epoch).random() for row in rows]
        return np.array(shares) >= self.settings.photographic

    def _stream(self, what: str, split: str, row: int, seed: int, epoch: int) -> np.random.Generator:
        return stream(seed, what, epoch, self.images.digests[split][row])

    def face(self, split: str, row: int, manipulated: bool, seed: int, epoch: int) -> tuple[NDArray[np.uint8], int]:
        """The face uint8 [h, w, 3] in its view of the epoch, cropped, and what was made of it: the number of a
        manipulation, or `PHOTOGRAPH`, which a face also stays that can be given none."""
        made = self._manipulated(split, row, seed, epoch) if manipulated else None
        pixels, number = (self._photograph(split, row, seed, epoch), PHOTOGRAPH) if made is None else made
        view = self._view(split, row, seed, epoch)
        if view is not None:
            pixels = see(pixels, view)
        box = self.images.boxes[split][row] if split in self.images.boxes else None
        if box is None or np.isnan(box[0]):
            return pixels, number
        return fdf_crop(pixels, [float(v) for v in box], self.settings.crop), number

    def _photograph(self, split: str, row: int, seed: int, epoch: int) -> NDArray[np.uint8]:
        pixels = self.images.read(split, row)
        if not self.settings.resample:
            return pixels
        rng = self._stream("resample", split, row, seed, epoch)
        return resample(pixels, rng, self.settings.work_size, numbers=self.settings.numbers)

    def _manipulated(self, split: str, row: int, seed: int, epoch: int) -> tuple[NDArray[np.uint8], int] | None:
        """The first manipulation that this face can be given, in an order drawn for it, each number equally often."""
        for number in self._stream("number", split, row, seed, epoch).permutation(self.settings.numbers):
            if self.settings.source == "stored":
                pixels = self.images.stored(split, row, int(number))
            else:
                pixels = self._online(split, row, int(number), seed, epoch)
            if pixels is not None:
                return pixels, int(number)
        return None

    def _online(self, split: str, row: int, number: int, seed: int, epoch: int) -> NDArray[np.uint8] | None:
        pixels, points = self.images.read(split, row), self.images.landmarks(split, row)
        if points is not None:
            # The masks cut coordinates to whole pixels at 224; the nudge keeps 57 / 224 * 128 * 1.75 from being 56.
            points = points * (np.array(pixels.shape[1::-1]) / NPY_SIDE) + 1e-6
        made = manipulate_face(
            pixels, number, points, self._stream("manipulate", split, row, seed, epoch),
            work_size=self.settings.work_size, no_landmarks=self.settings.no_landmarks,
        )  # fmt: skip
        return None if made is None else made.pixels

    def _view(self, split: str, row: int, seed: int, epoch: int) -> View | None:
        if split != "train" or not self.settings.augment:
            return None
        return draw_view(self._stream("view", split, row, seed, epoch))

    def batch(
        self, split: str, rows: Sequence[int] | NDArray[np.intp], manipulated: Sequence[bool] | NDArray[np.bool_],
        seed: int, epoch: int,
    ) -> FaceBatch:  # fmt: skip
        """Faces of these rows; `manipulated` says which are to be manipulated (`draws`, or the caller's choice)."""
        make = partial(self._one, split, seed, epoch)
        if self.workers > 1:
            with ThreadPoolExecutor(self.workers) as pool:
                faces = list(pool.map(make, rows, manipulated))
        else:
            faces = list(map(make, rows, manipulated))
        index = np.asarray(rows, np.intp)
        tags = {tag: values[index].astype(np.int64) for tag, values in self.images.tags.get(split, {}).items()}
        names = tuple(self.images.digests[split][i] for i in index)
        inputs = self.images.inputs([pixels for pixels, _ in faces])
        return FaceBatch(inputs, np.array([number for _, number in faces], np.int64), tags, names)

    def _one(self, split: str, seed: int, epoch: int, row: int, manipulated: bool) -> tuple[NDArray[np.uint8], int]:
        return self.face(split, int(row), bool(manipulated), seed, epoch)

"""Pixels decoded once: one memory-mapped file of uint8 that every epoch, worker and run reads.

A cache is three files: `<name>.pixels`, the images' bytes one after another, `<name>.sha256`, their digest, and
`<name>.index.npy`, where each begins and how large it is. The index is written last, so that a cache is whole or not
there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.api.errors import DataError
from harness.api.training import TrainingImages

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDER = "pixels"
"""Folder of a store that holds caches."""
_INDEX = np.dtype([("offset", "<i8"), ("height", "<i4"), ("width", "<i4")])
_WINDOW = 256  # images decoded ahead of the writer; bounds the memory of a build


class PixelCache:
    """Read-only access to the images of a cache.

    Args:
        path: of the `.pixels` file; its index lies beside it.

    Raises:
        DataError: a file is missing or shorter than its index says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._index = np.load(_beside(path, ".index.npy"), mmap_mode="r", allow_pickle=False)
            size = path.stat().st_size
        except (OSError, ValueError) as error:
            raise DataError(
                f"the pixel cache cannot be opened ({error})", path, "delete it; it is made again"
            ) from None
        if self._index.dtype != _INDEX or self._index.ndim != 1 or _end(self._index) != size:
            raise DataError("the pixel cache and its index do not belong together", path, "delete both files")
        self._data = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] of image `i`, a read-only view of the file; a height of 0 stands for no image."""
        entry = self._index[i]
        height, width, start = int(entry["height"]), int(entry["width"]), int(entry["offset"])
        return self._data[start : start + height * width * 3].reshape(height, width, 3)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name.removesuffix(".pixels") + ending)


def cache_files(path: Path) -> tuple[Path, ...]:
    """The files of the cache whose `.pixels` file is `path`."""
    return path, _beside(path, ".sha256"), _beside(path, ".index.npy")


def is_intact(path: Path) -> bool:
    """Whether a cache's pixels are those that were written."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == _beside(path, ".sha256").read_text()
    except OSError:
        return False


def _end(index: NDArray[np.void]) -> int:
    if len(index) == 0:
        return 0
    last = index[-1]
    return int(last["offset"]) + int(last["height"]) * int(last["width"]) * 3


def build_cache(
    path: Path,
    count: int,
    read: Callable[[int], NDArray[np.uint8] | None],
    *,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> PixelCache:
    """Decode `count` images into a cache at `path` and open it; one that is there is opened as it is.

    Args:
        path: of the `.pixels` file; its name must follow from what the images are.
        read: image `i` as uint8 [H, W, 3], or None for an image that does not exist. Called from threads.
        workers: threads that decode.
        progress: called with (images done, images in all), first with none done; not where the cache is there.

    Raises:
        DataError: no room on the disk, or the error of `read`; nothing is left behind.
    """
    if _beside(path, ".index.npy").is_file() and path.is_file():
        return PixelCache(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".tmp-{uuid.uuid4().hex}")
    index = np.zeros(count, _INDEX)
    if progress:
        progress(0, count)
    try:
        with building.open("wb") as stream:
            offset, digest = 0, hashlib.sha256()
            for i, pixels in enumerate(_ahead(read, count, workers)):
                height, width = (0, 0) if pixels is None else pixels.shape[:2]
                index[i] = (offset, height, width)
                if pixels is not None:
                    data = np.ascontiguousarray(pixels).data
                    digest.update(data)
                    stream.write(data)
                offset += height * width * 3
                if progress and ((i + 1) % 16 == 0 or i + 1 == count):
                    progress(i + 1, count)
            stream.flush()
            os.fsync(stream.fileno())
        beside = building.with_suffix(".npy")
        np.save(beside, index, allow_pickle=False)
        os.replace(building, path)
        _beside(path, ".sha256").write_text(digest.hexdigest())
        os.replace(beside, _beside(path, ".index.npy"))
    except OSError as error:
        raise DataError(f"the pixel cache cannot be written ({error.strerror})", path, "free some space") from error
    finally:
        for left in (building, building.with_suffix(".npy")):
            left.unlink(missing_ok=True)
    return PixelCache(path)


def _ahead(
    read: Callable[[int], NDArray[np.uint8] | None], count: int, workers: int
) -> Iterator[NDArray[np.uint8] | None]:
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        for first in range(0, count, _WINDOW):
            yield from pool.map(read, range(first, min(first + _WINDOW, count)))


def cache_name(images: TrainingImages, numbers: Sequence[int], edits: Mapping[str, object]) -> str:
    """Name of the cache of these images: sha256 of their digests by split, of the numbers of stored manipulated
    faces that are cached too, and of the edits that `read` applies; 64 hex digits."""
    digests = {split: list(values) for split, values in sorted(images.digests.items())}
    text = json.dumps([1, digests, list(numbers), dict(edits)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def cached(
    images: TrainingImages,
    folder: Path,
    *,
    numbers: Sequence[int] = (),
    edits: Mapping[str, object] | None = None,
    max_bytes: int | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingImages:
    """The same training images, read from a memory-mapped cache in `folder`, which is made where it is not there.

    Args:
        images: what to decode: every image of every split, and where `numbers` are given the stored manipulated
            faces of those numbers.
        edits: what `images.read` does to an image besides decoding it, for the cache's name.
        max_bytes: the most that the cache may take; by default half of what is free on its disk. Sizes are
            estimated from the first image. Beyond it the images are given back as they came.
    """
    order = [(split, i) for split in sorted(images.digests) for i in range(images.count(split))]
    if not order:
        return images
    path = folder / f"{cache_name(images, numbers, edits or {})}.pixels"
    copies = 1 + len(numbers)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(folder).free // 2 if max_bytes is None else max_bytes
        if images.read(*order[0]).nbytes * len(order) * copies > room:
            return images

    def read(at: int) -> NDArray[np.uint8] | None:
        copy, place = divmod(at, len(order))
        split, i = order[place]
        return images.read(split, i) if copy == 0 else images.stored(split, i, numbers[copy - 1])

    cache = build_cache(path, len(order) * copies, read, workers=workers, progress=progress)
    first = {split: order.index((split, 0)) for split in images.digests if images.count(split)}
    layer = {number: (k + 1) * len(order) for k, number in enumerate(numbers)}

    def stored(split: str, i: int, number: int) -> NDArray[np.uint8] | None:
        if number not in layer:
            return images.stored(split, i, number)
        pixels = cache[layer[number] + first[split] + i]
        return pixels if pixels.size else None

    return replace(images, read=lambda split, i: cache[first[split] + i], stored=stored)

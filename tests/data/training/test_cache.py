"""The pixel cache: the same pixels, whole or not there, mapped and not loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.api.errors import DataError
from harness.api.training import TrainingImages
from harness.data.training.cache import PixelCache, build_cache, cached
from tests.data.training.conftest import noise


def images(reads: list[tuple[str, int]], sizes: tuple[int, ...] = (8, 8, 6)) -> TrainingImages:
    def read(split: str, i: int) -> np.ndarray:
        reads.append((split, i))
        return noise(len(split) * 100 + i, sizes[i])

    digests = {"train": ["a", "b", "c"], "select": ["d"]}
    return TrainingImages(
        read=read, labels={}, generators={}, digests=digests, preprocess=lambda pixels: None,  # type: ignore[arg-type, return-value]
        stored=lambda split, i, number: None if i == 1 else noise(number * 10 + i, 8),
    )  # fmt: skip


def test_images_of_any_size_come_back_and_are_decoded_once(tmp_path: Path) -> None:
    reads: list[tuple[str, int]] = []
    plain = images(reads)
    for _ in range(2):
        fast = cached(plain, tmp_path, numbers=(0, 3))
        for split in plain.digests:
            for i in range(plain.count(split)):
                assert np.array_equal(fast.read(split, i), noise(len(split) * 100 + i, (8, 8, 6)[i]))
                for number in (0, 3):
                    made, wanted = fast.stored(split, i, number), plain.stored(split, i, number)
                    assert (made is None) == (wanted is None) == (i == 1)
                    assert wanted is None or np.array_equal(made, wanted)  # type: ignore[arg-type]
    # four images once; the first once more, to estimate the size
    assert sorted(reads) == sorted([("train", 0), ("train", 1), ("train", 2), ("select", 0), ("select", 0)])


def test_other_images_edits_or_numbers_are_another_cache(tmp_path: Path) -> None:
    plain = images([])
    cached(plain, tmp_path)
    cached(plain, tmp_path, edits={"rotate": True})
    cached(plain, tmp_path, numbers=(1,))
    assert len(list(tmp_path.glob("*.pixels"))) == 3


def test_a_cache_that_would_not_fit_is_not_made(tmp_path: Path) -> None:
    plain = images([])
    assert cached(plain, tmp_path, max_bytes=100) is plain
    assert not list(tmp_path.iterdir())


def test_a_build_that_fails_leaves_nothing_and_damage_is_said(tmp_path: Path) -> None:
    def broken(i: int) -> np.ndarray:
        if i == 2:
            raise DataError("cannot be decoded", "c.png")
        return noise(i, 4)

    path = tmp_path / "x.pixels"
    with pytest.raises(DataError, match="cannot be decoded"):
        build_cache(path, 4, broken)
    assert not list(tmp_path.iterdir())
    build_cache(path, 2, broken)
    with path.open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(DataError, match="do not belong together"):
        PixelCache(path)


def test_pixels_cannot_be_written(tmp_path: Path) -> None:
    cache = build_cache(tmp_path / "x.pixels", 1, lambda i: noise(i, 4))
    with pytest.raises(ValueError, match="read-only"):
        cache[0][0, 0, 0] = 1


SIMULATED = """
import numpy as np, sys
from pathlib import Path
from harness.api.training import TrainingImages
from harness.data.training.cache import PixelCache, _INDEX
count, side = 130_000, 128
path = Path(sys.argv[1]) / "x.pixels"
with path.open("wb") as stream:
    stream.truncate(count * side * side * 3)  # a sparse file: no disk space
index = np.zeros(count, _INDEX)
index["offset"] = np.arange(count, dtype=np.int64) * side * side * 3
index["height"] = index["width"] = side
np.save(path.with_name("x.index.npy"), index)
from detectors.blades.image_tower import BladesPreprocess
from harness.data.training.dataset import FaceDataset, FaceSettings
cache = PixelCache(path)
from harness.data.exif.labels import TAGS
images = TrainingImages(
    read=lambda split, i: cache[i], labels={"train": np.zeros(count, np.int8)}, generators={"train": [""] * count},
    digests={"train": [f"{i:064x}" for i in range(count)]}, preprocess=BladesPreprocess(224),
    tags={"train": {tag: np.zeros(count, np.int16) for tag in TAGS}},
    boxes={"train": np.tile(np.float32([.2, .2, .8, .8]), (count, 1))},
    stored=lambda split, i, number: cache[i],
)
faces = FaceDataset(images, FaceSettings(source="stored"))
rng = np.random.default_rng(0)
for epoch in range(40):
    rows = rng.integers(0, count, 48)
    faces.batch("train", rows, faces.draws("train", rows, 1, epoch), 1, epoch)
status = Path("/proc/self/status").read_text()
print(next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("RssAnon")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc/self/status")
def test_130_000_faces_take_less_than_a_gibibyte_of_memory_of_their_own(tmp_path: Path) -> None:
    out = subprocess.run([sys.executable, "-c", SIMULATED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) < 1024

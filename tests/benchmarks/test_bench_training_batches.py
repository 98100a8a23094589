"""Batches of training faces: decoded image by image, and from the pixel cache (budget: at least 5 times as fast)."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectors.blades.image_tower import BladesPreprocess
from harness.api.images import decode
from harness.api.preprocess import fdf_crop
from harness.api.training import TrainingImages
from harness.data.demo.corpus import take_photograph
from harness.data.training.cache import cached
from harness.data.training.dataset import FaceDataset, FaceSettings

BATCH, COUNT, PAIRS = 48, 192, 9
BOX = (0.22, 0.2, 0.78, 0.85)


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


@pytest.mark.benchmark(group="training batches")
def test_a_batch_of_48_from_the_cache_against_image_by_image(benchmark, tmp_path: Path) -> None:
    """The slow way is what a data loader does: open the PNG, decode, crop, then the detector's preprocess, one image
    after another. Both give the same batch to 1e-5; ratio of medians of interleaved pairs."""
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))
    for i in range(COUNT):
        buffer = io.BytesIO()
        Image.fromarray(take_photograph(1, i, 128).image).save(buffer, "PNG")
        (tmp_path / f"{i}.png").write_bytes(buffer.getvalue())

    def read(split: str, i: int) -> np.ndarray:
        return decode((tmp_path / f"{i}.png").read_bytes(), name=f"{i}.png")

    plain = TrainingImages(
        read, {}, {}, {"train": [str(i) for i in range(COUNT)]}, BladesPreprocess(224),
        boxes={"train": np.tile(np.float32(BOX), (COUNT, 1))},
    )  # fmt: skip
    fast = FaceDataset(cached(plain, tmp_path / "cache"), FaceSettings())
    stored = FaceDataset(
        cached(replace(plain, stored=lambda s, i, n: read(s, i)), tmp_path / "cache", numbers=(0, 1, 2, 3)),
        FaceSettings(source="stored", numbers=(0, 1, 2, 3)),
    )
    online = FaceDataset(fast.images, FaceSettings())
    rows = [np.random.default_rng(k).permutation(COUNT)[:BATCH] for k in range(PAIRS)]
    photographs = [False] * BATCH

    def slow(k: int) -> torch.Tensor:
        pixels = (read("train", int(i)) for i in rows[k])
        return torch.stack([plain.preprocess(fdf_crop(p, [float(np.float32(v)) for v in BOX])) for p in pixels])

    def quick(k: int) -> torch.Tensor:
        return fast.batch("train", rows[k], photographs, 1, 0).inputs

    assert (slow(0) - quick(0)).abs().max() <= 1e-5
    pairs = [(seconds(lambda k=k: slow(k)), seconds(lambda k=k: quick(k))) for k in range(PAIRS)]
    ratio = float(np.median([a / b for a, b in pairs]))
    more = {
        "ratio_cached_to_image_by_image": ratio,
        "milliseconds_image_by_image": 1e3 * float(np.median([a for a, _ in pairs])),
        "milliseconds_cached": 1e3 * float(np.median([b for _, b in pairs])),
    }
    for name, dataset in (("stored", stored), ("online", online)):
        drawn = [dataset.draws("train", r, 1, 0) for r in rows]
        dataset.batch("train", rows[0], drawn[0], 1, 0)
        batches = [partial(dataset.batch, "train", rows[k], drawn[k], 1, k) for k in range(PAIRS)]
        times = [seconds(batch) for batch in batches]
        more[f"milliseconds_half_manipulated_{name}"] = 1e3 * float(np.median(times))
    benchmark.extra_info.update(more)
    print({name: round(value, 2) for name, value in more.items()})
    benchmark.pedantic(quick, args=(0,), rounds=5)

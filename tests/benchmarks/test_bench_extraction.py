"""Extraction end to end (read, decode, preprocess, forward, store) against the bare ResNet-50 tower.

Expectation: at 224 px decoding is a few per cent of a forward; at 1024 px a JPEG costs about 6 ms of one core to
decode and resize, against about 60 ms of core time a forward, so >= 90 % of the bare speed should be possible on
two cores as long as nothing else is done twice. The bare tower is the fastest form that gives the same numbers:
channels-last with folded BatchNorm (the plain contiguous one takes about twice as long).
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectors.blades.one_class import BladesOC
from harness.api.contract import Chain
from harness.api.weights import ResolvedWeights
from harness.data.edits import InputEdits
from harness.engine.images import Reader
from harness.engine.inline import pin_numerics, run_stage
from harness.engine.plan import ItemStage
from harness.results.digests import Picked, digests_array, distinct_places
from harness.results.store import Store

IMAGES, PAIRS = 64, 5


def _photographs(folder: Path, side: int) -> list[str]:
    """JPEGs with the detail of photographs (smooth shapes and some noise), quality 90."""
    rng = np.random.default_rng(side)
    names = []
    for index in range(IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((side, side))
        noisy = np.asarray(coarse, np.float32) + rng.normal(0, 4, (side, side, 3))
        names.append(f"{index:03d}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / names[-1], quality=90)
    return names


@pytest.mark.parametrize("side", [224, 512, 1024])
def test_extraction_keeps_the_bare_networks_speed(benchmark, tmp_path: Path, side: int) -> None:
    import hashlib

    import torch

    threads = len(os.sched_getaffinity(0))
    pin_numerics(threads)
    names = _photographs(tmp_path, side)
    hexes = [hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in names]
    chain = Chain.of(BladesOC())
    weights = {"weights": ResolvedWeights("random", "random:0")}
    reader = Reader(tmp_path, names, hexes, InputEdits())
    images = digests_array(hexes)
    digests = Picked(images, distinct_places(images))

    def whole(number: int) -> float:
        stage = ItemStage(f"{number:064x}", "features", chain.extractor, {}, chain.preprocess, weights, None, 32, ["x"])
        stage.needed = digests
        store = Store(tmp_path / "store")
        seconds = []

        def listen(event) -> None:  # the stage's own clock starts when the weights are loaded
            if event.kind == "stage_end":
                seconds.append(event.fields["seconds"])

        run_stage(stage, reader, store, device="cpu", threads=threads, workers=2, emit=listen)
        return seconds[0]

    run = chain.extractor.load(weights, "cpu")
    batch = torch.stack([chain.preprocess(reader.pixels(i)) for i in range(32)])

    def bare() -> float:
        began = time.perf_counter()
        with torch.no_grad():
            for _ in range(IMAGES // 32):
                run(batch)
        return time.perf_counter() - began

    bare()
    whole(0)
    pairs = [(bare(), whole(number)) for number in range(1, PAIRS + 1)]
    ratio = statistics.median(b / w for b, w in pairs)
    benchmark.extra_info.update(
        side=side, threads=threads, share_of_bare_speed=round(ratio, 3),
        images_per_second=round(IMAGES / statistics.median(w for _, w in pairs), 1),
        bare_images_per_second=round(IMAGES / statistics.median(b for b, _ in pairs), 1),
    )  # fmt: skip
    print(benchmark.extra_info)
    benchmark.pedantic(whole, setup=lambda: (((time.monotonic_ns()),), {}), rounds=1)
    assert ratio > 0

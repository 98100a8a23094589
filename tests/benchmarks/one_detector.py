"""One detector in a process of its own: `python one_detector.py NAME FOLDER` prints its speed and memory as JSON.

Reads, decodes and preprocesses the folder's images ahead in two threads, runs transforms and extractor on two, and
scores, as `score` does. The clock runs over a second pass; the first, of one micro-batch, warms up.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

THREADS = 2


def peak_mib() -> int:
    """Largest resident memory of this program so far. Not `ru_maxrss`, which starts at what the process that started
    this one held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024)
    raise RuntimeError("no VmHWM in /proc/self/status")


def main(name: str, paths: Sequence[Path]) -> dict[str, float]:
    """Images a second, seconds to build the networks, peak memory in MiB, images scored and undecided."""
    import torch

    from harness.engine.fitting import score_features
    from harness.engine.handle import load_detector
    from harness.engine.inline import Row, batches, forward, pin_numerics
    from harness.engine.stream import Images

    pin_numerics(THREADS)
    began = time.perf_counter()
    handle = load_detector(name, "random")
    chain, sizes = handle.chain, handle.micro_batches
    stages = (*chain.transforms, chain.extractor)
    runs = [stage.load(handle.weights, "cpu") for stage in stages]
    built = time.perf_counter() - began
    drawn = np.random.default_rng(0).standard_normal((400, chain.extractor.dim)).astype(np.float32)
    head = handle.head or handle.fit_features(drawn).head
    assert head is not None

    def through(rows: Iterator[Row], stage, run: Callable, size: int) -> Iterator[Row]:
        for batch in batches(rows, size):
            for value in forward(run, batch, stage, size, "cpu"):
                yield b"", None if value is None else torch.from_numpy(np.array(value))

    def scores(files: Sequence[Path]) -> np.ndarray:
        rows: Iterator[Row] = ((b"", t) for t in Images(files, chain, handle.edits).tensors(THREADS, 2 * sizes[-1]))
        for stage, run, size in zip(stages, runs, sizes, strict=True):
            rows = through(rows, stage, run, size)
        found = [np.full(chain.extractor.dim, np.nan, np.float32) if t is None else t.numpy() for _, t in rows]
        features = np.stack(found)
        good = np.isfinite(features).all(axis=1)
        out = np.full(len(features), np.nan)
        if good.any():
            out[good] = score_features(head, features[good])
        return out

    scores(paths[: sizes[-1]] if len(stages) == 1 else paths[:2])
    started = time.perf_counter()
    values = scores(paths)
    seconds = time.perf_counter() - started
    return {
        "images_per_second": len(paths) / seconds, "seconds_to_build": built, "peak_mib": peak_mib(),
        "images": len(paths), "undecided": int(np.isnan(values).sum()),
    }  # fmt: skip


if __name__ == "__main__":
    names = sorted(p for p in Path(sys.argv[2]).iterdir() if p.suffix in (".jpg", ".png"))
    print(json.dumps(main(sys.argv[1], names)))

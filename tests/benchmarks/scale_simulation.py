"""Millions of images without images: the program's own planning, scheduling, storing and scoring, by stage.

    python tests/benchmarks/scale_simulation.py --images 1000000 --folder DIR

What is made up: a manifest (`make`), and reading an image (its tensor is its digest). Everything else is what a run
does: the manifest is read for planning, test sets are drawn, keys made, the store asked, the work handed out by the
cluster's queue to workers that take turns in this process (each piece packed and unpacked as it would be sent),
features stored, two heads made, all images scored, tables written. A first process is killed when 90 % is stored, a
second one resumes.

One line of JSON a stage: wall and processor seconds, peak memory of the process in that stage, and what grew.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scale_detector import DIM, Made, Options

from harness.api.contract import Chain, Preprocess
from harness.api.events import silent

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from harness.engine.plan import ItemStage, Plan, RowPlan
    from harness.results.store import Store

GENERATORS = 9
FIT = 25_000
WORKERS = 2
KILLED_AT = 0.9


@dataclass(frozen=True)
class MadeReader:
    """Stands for reading, decoding and preprocessing: 16 numbers of each image's digest."""

    tensors: Tensor

    @classmethod
    def of(cls, digests: np.ndarray) -> MadeReader:
        """A reader of these images, by their place."""
        import torch

        data = np.frombuffer(digests.tobytes(), np.uint8).reshape(-1, 32)[:, :DIM]
        return cls(torch.from_numpy(data.astype(np.float32) / 255).reshape(-1, 1, 1, DIM))

    def tensor(self, row: int, preprocess: Preprocess) -> Tensor:
        """``[1, 1, 16]``."""
        return self.tensors[row]


class Turns:
    """An engine as ``harness.engine.cluster``, less Ray: its queue and its messages, workers that take turns here.

    ``stop`` ends the process as kill -9 would when so many images are stored.
    """

    start_seconds = 0.0

    def __init__(self, plan: Plan, store: Store, watch: Watch, stop: int | None) -> None:
        self.plan, self.store, self.watch, self.stop = plan, store, watch, stop

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *unused: object) -> None:
        """Nothing to stop."""

    def launcher(self) -> None:
        """Nothing is trained."""

    def heads(self, rows: Sequence[RowPlan]) -> Mapping[str, Exception]:
        """Left to who asks for them."""
        return {}

    def items(self, stage: ItemStage, without: np.ndarray) -> Any:
        """As ``RayEngine.items``."""
        from harness.engine.cluster.engine import PIECE_IMAGES, PIECE_SECONDS
        from harness.engine.cluster.queue import Queue
        from harness.engine.cluster.worker import Images
        from harness.engine.engines import Computed
        from harness.engine.inline import compute, missing_of

        self.watch.next("schedule, compute, store")
        missing = missing_of(stage, self.store)
        self.store.items(stage.key).describe(stage.description)
        run = stage.stage.load({}, "cpu")
        queue = Queue(len(missing), step=stage.micro_batch, most=PIECE_IMAGES, seconds=PIECE_SECONDS)
        paths, stored = self.plan.manifest["path"].array, len(stage.needed) - len(missing)
        held: dict[int, Images] = {}
        done = 0
        while not queue.finished:
            for worker in range(WORKERS):
                while (piece := queue.take(worker, WORKERS, time.monotonic())) is not None:
                    rows = missing.rows[piece.places]
                    digests, shas = missing[piece.places], self.plan.images[rows]
                    held[id(piece)] = Images.of(digests, shas, [paths[r] for r in rows], careful=False)
                line = queue.line(worker)
                if line:
                    images = held.pop(id(line[0]))
                    images.reader(self.plan.root, None)  # type: ignore[arg-type]  # what a worker unpacks
                    digests = images.digests()
                    done += compute(
                        stage, run, digests, range(len(digests)), MadeReader.of(digests), self.store, device="cpu",
                        workers=0,
                    )  # type: ignore[arg-type]  # fmt: skip
                    queue.done(worker, time.monotonic())
            if self.stop is not None and stored + done >= self.stop:
                self.watch.next("killed", images=done)
                os._exit(9)
        self.watch.next("heads and scores", images=done)
        return Computed(done)


class Watch:
    """Times and peak memory of stages, a line each on standard output."""

    def __init__(self) -> None:
        self.stage = ""

    def next(self, stage: str, **facts: Any) -> None:
        """The stage before ends here; ``facts`` are of it."""
        if self.stage:
            wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
            print(json.dumps({
                "stage": self.stage, "wall": round(wall, 3), "cpu": round(cpu, 3), "peak_mib": _memory("VmHWM"),
                "after_mib": _memory("VmRSS"), **facts,
            }), flush=True)  # fmt: skip
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.stage, self.wall, self.cpu = stage, time.perf_counter(), time.process_time()


def _memory(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{what}:"))) // 1024


def made_manifest(count: int, start: int = 0, stop: int | None = None) -> pd.DataFrame:
    """Rows of a manifest of ``count`` images: one photograph in eight, the first ones `train`; nine generators."""
    import pandas as pd

    each = np.arange(start, min(stop or count, count))
    sha = [hashlib.sha256(b"%d" % i).hexdigest() for i in each]
    label = (each % 8 > 0).astype(np.int8)
    train = (label == 0) & (each < min(8 * FIT, count // 4))
    names = np.array([f"generator-{g}" for g in range(GENERATORS)], object)
    return pd.DataFrame({
        "sha256": sha, "path": [f"folder-{i % 97}/{i:08d}.jpg" for i in each], "label": label,
        "generator": np.where(label == 1, names[each // 8 % GENERATORS], ""), "dataset": "photographs", "group": sha,
        "split": np.where(train, "train", "report"), "order": each, "width": 1024, "height": 1024, "format": "JPEG",
        "jpeg_quality": 95, "bytes": 100_000,
    })  # fmt: skip


def make(folder: Path, count: int, most_rows: int) -> None:
    """Write the made manifest."""
    from harness.data.manifest import conform
    from harness.data.tables import PART_ROWS, write_table

    def frames() -> Iterator[pd.DataFrame]:
        for start in range(0, count, PART_ROWS):
            yield conform(made_manifest(count, start, start + PART_ROWS))

    write_table(frames(), folder / "manifest.parquet", rows=count, most_rows=most_rows)


def run(folder: Path, most_rows: int, killed_at: float | None) -> None:
    """One run on the folder's store, to its tables or to where it is killed."""
    import torch

    from harness.data.splits import draw
    from harness.engine.data import rows_of_draws
    from harness.engine.execute import Executor
    from harness.engine.frames import read_roster, write_cells, write_scores
    from harness.engine.images import Reader
    from harness.engine.plan import Settings, make_plan, plan_summary
    from harness.engine.rows import PreparedRow
    from harness.engine.suite import load_suite
    from harness.results.store import Store

    torch.set_num_threads(1)
    watch = Watch()
    watch.next("read the manifest")
    roster = read_roster(folder / "manifest.parquet")
    count = len(roster.images)
    watch.next("draw the test sets", images=count)
    suite = load_suite("cross_generator", settings=["fit.dataset=photographs", f"fit.count={FIT}"])
    draws = draw(roster.manifest, n=count, seed=suite.test.seed, keys=roster.sha256)
    rows = rows_of_draws(roster.manifest, roster.images, draws)
    watch.next("plan", cells=len(draws))
    detectors = {"mixture": Made(Options()), "one feature": Made(Options(mixture=False))}
    prepared = [PreparedRow(name, d, Chain.of(d), None, {}) for name, d in detectors.items()]
    store = Store(folder / "store")
    settings = Settings("cpu", 1)
    plan = make_plan(suite, prepared, roster.manifest, folder, draws, rows, store, settings, roster.images)
    summary = plan_summary(plan, store)
    watch.next("start", stored=summary[0]["stored"], to_do=summary[0]["to_do"])
    paths: Any = roster.manifest["path"].array
    reader = Reader(folder, paths, (), None)  # type: ignore[arg-type]  # the engine reads for itself
    needed = summary[0]["stored"] + summary[0]["to_do"]
    engine = Turns(plan, store, watch, None if killed_at is None else int(killed_at * needed))
    outcome = Executor(plan, store, reader, silent, 0, engine).run(folder / "fitted")
    assert not outcome.failures, outcome.failures
    watch.next("write the tables", scores=sum(map(len, outcome.scores)))
    write_scores(outcome.scores, folder / "scores.parquet", most_rows=most_rows)
    write_cells(plan, folder / "cells.parquet", most_rows=most_rows)
    watch.next("end", thresholds=outcome.thresholds)


def _step(words: Sequence[str], *, killed: bool = False) -> list[dict[str, Any]]:
    """Run this file with these words in a process of its own; what it told."""
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != (9 if killed else 0):
        raise RuntimeError(f"{words} ended with {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def simulate(folder: Path, images: int, most_rows: int) -> dict[str, Any]:
    """All of it; the stages of both runs and what the bars are about.

    Returns:
        ``first`` and ``resumed``: the stages of each run; ``us_an_image``: processor microseconds of plan, schedule and
        collect; ``resume``: processor and wall seconds until a resumed run computes again; ``peak_mib``.
    """
    common = ["--folder", str(folder), "--images", str(images), "--most-rows", str(most_rows), "--step"]
    _step([*common, "make"])
    first = _step([*common, "first"], killed=True)
    resumed = _step([*common, "resumed"])
    stages = [s for s in (*first, *resumed) if "images" in s or s["stage"] != "killed"]
    before = [s for s in resumed if s["stage"] in ("read the manifest", "draw the test sets", "plan", "start")]
    once = [s for s in stages if s not in before]  # both runs plan: that counts once
    return {
        "images": images, "first": first, "resumed": resumed,
        "cpu_us_an_image": round(1e6 * sum(s["cpu"] for s in once) / images, 2),
        "wall_us_an_image": round(1e6 * sum(s["wall"] for s in once) / images, 2),
        "resume_cpu_seconds": round(sum(s["cpu"] for s in before), 2),
        "resume_wall_seconds": round(sum(s["wall"] for s in before), 2),
        "peak_mib": max(s["peak_mib"] for s in stages),
    }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder; 400 bytes an image")
    parser.add_argument("--most-rows", type=int, default=None, help="above it tables are datasets (default: as a run)")
    parser.add_argument("--step", choices=["all", "make", "first", "resumed"], default="all")
    words = parser.parse_args()
    from harness.data.tables import MOST_ROWS

    most_rows = MOST_ROWS if words.most_rows is None else words.most_rows
    if words.step == "make":
        make(words.folder, words.images, most_rows)
    elif words.step == "all":
        print(json.dumps(simulate(words.folder, words.images, most_rows), indent=1))
    else:
        run(words.folder, most_rows, KILLED_AT if words.step == "first" else None)


if __name__ == "__main__":
    main()

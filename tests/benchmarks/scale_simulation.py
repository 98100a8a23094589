"""Millions of images without images: `harness run --manifest` itself, stage by stage.

    python tests/benchmarks/scale_simulation.py --images 1000000 --folder DIR

What runs is the verb (`harness.verbs.run.run_suite`) with a suite, a store and a manifest, as the command line calls
it. Replaced are: reading an image (its tensor is its digest); Ray (the cluster's queue hands its pieces to workers that
take turns in this process, each piece packed and unpacked as it would be sent); and what comes after the tables (audit,
report, MLflow), which is left out. A first process is killed when 90 % is stored, a second one resumes.

One line of JSON a stage: wall and processor seconds, peak memory of the process in that stage, and what grew. The first
stage begins with the process.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from scale_detector import DIM

from harness.api.contract import Preprocess
from harness.api.events import silent

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from harness.engine.images import Reader
    from harness.engine.plan import ItemStage, Plan, RowPlan
    from harness.results.store import Store


GENERATORS = 9
FIT = 25_000
WORKERS = 2
KILLED_AT = 0.9
BEFORE = ("process, imports, suite, rows", "read the manifest", "draw the test sets", "plan", "record, start")
"""Stages before the first missing image."""
COPYING = "copy the manifest, its digest"


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

    ``stop`` ends the process as kill -9 would when such a share of what is needed is stored.
    """

    start_seconds = 0.0

    def __init__(self, plan: Plan, store: Store, reader: Reader, watch: Watch, stop: float | None) -> None:
        self.plan, self.store, self.reader, self.watch, self.stop = plan, store, reader, watch, stop

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

        missing = missing_of(stage, self.store)
        self.store.items(stage.key).describe(stage.description)
        run = stage.stage.load({}, "cpu")
        queue = Queue(len(missing), step=stage.micro_batch, most=PIECE_IMAGES, seconds=PIECE_SECONDS)
        stored = len(stage.needed) - len(missing)
        held: dict[int, Images] = {}
        done = sent = most = 0
        while not queue.finished:
            for worker in range(WORKERS):
                while (piece := queue.take(worker, WORKERS, time.monotonic())) is not None:
                    rows = missing.rows[piece.places]
                    digests, shas = missing[piece.places], self.plan.images[rows]
                    paths = [self.reader.paths[row] for row in rows]
                    held[id(piece)] = Images.of(digests, shas, paths, careful=False)
                    sent, most = sent + 1, max(most, len(held))
                line = queue.line(worker)
                if line:
                    images = held.pop(id(line[0]))
                    images.reader(self.plan.root, self.reader.edits)  # what a worker unpacks
                    digests = images.digests()
                    if done == 0:
                        self.watch.reached(stored=stored, to_do=len(missing))
                        self.watch.next("schedule, compute, store")
                    done += compute(
                        stage, run, digests, range(len(digests)), MadeReader.of(digests), self.store, device="cpu",
                        workers=0,
                    )  # type: ignore[arg-type]  # fmt: skip
                    queue.done(worker, time.monotonic())
            if self.stop is not None and stored + done >= self.stop * len(stage.needed):
                self.watch.next("killed", pieces={"images": done, "sent": sent, "most_out": most})
                os._exit(9)
        self.watch.next("heads and scores", pieces={"images": done, "sent": sent, "most_out": most})
        return Computed(done)


def _age() -> float:
    """Seconds since this process was started."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


class Watch:
    """Times and peak memory of stages, a line each on standard output; the first stage began with the process."""

    def __init__(self) -> None:
        self.stage, self.wall, self.cpu = BEFORE[0], time.perf_counter() - _age(), 0.0

    def next(self, stage: str, **facts: Any) -> None:
        """The stage before ends here; ``facts`` are of it."""
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self._say({
            "stage": self.stage, "wall": round(wall, 3), "cpu": round(cpu, 3), "peak_mib": _memory("VmHWM"),
            "after_mib": _memory("VmRSS"), **facts,
        })  # fmt: skip
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.stage, self.wall, self.cpu = stage, time.perf_counter(), time.process_time()

    def reached(self, **facts: Any) -> None:
        """The first missing image would be computed now: the times since the process was started."""
        self._say({"reached": round(_age(), 3), "cpu": round(time.process_time(), 3), **facts})

    def _say(self, facts: dict[str, Any]) -> None:
        print(json.dumps(facts), flush=True)


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


def before(owner: Any, name: str, then: Callable[..., None]) -> None:
    """Let a function of the program be told of before it is called, with what it is given."""
    original = getattr(owner, name)

    def called(*words: Any, **more: Any) -> Any:
        then(*words, **more)
        return original(*words, **more)

    setattr(owner, name, called)


def watched(watch: Watch, killed_at: float | None, most_rows: int) -> None:
    """Put the replacements in place, and tell the watch of the program's own steps."""
    from harness.engine import data, engines, execute, frames, plan, written
    from harness.verbs import run as verb

    before(written, "read_roster", lambda path: watch.next(BEFORE[1]))
    before(written, "drawn", lambda *words, **more: watch.next(BEFORE[2], images=len(words[4])))
    before(plan, "make_plan", lambda *words: watch.next(BEFORE[3], cells=len(words[4])))
    before(execute, "check_disk", lambda plan, store: watch.next(BEFORE[4]))
    before(data.RunData, "put_manifest", lambda *words: watch.next(COPYING))

    def tables(folder: Path, suite: Any, data: Any, plan: Plan, outcome: Any) -> None:
        assert not outcome.failures, outcome.failures
        watch.next("write scores and cells", scores=sum(map(len, outcome.scores)))

    before(verb, "_write_tables", tables)

    def make_engine(name: str, plan: Plan, store: Store, reader: Reader, *more: Any) -> Turns:
        return Turns(plan, store, reader, watch, killed_at)

    def publish(request: Any, folder: Path, record: Any, *more: Any) -> Any:
        thresholds = {name: entry.threshold for name, entry in record.detectors.items()}
        watch.next("end", thresholds=thresholds, manifest=record.manifest_sha256, folder=str(folder))
        return verb.RunResult(0, folder)

    engines.make_engine, verb._publish, verb._audit = make_engine, publish, lambda *words: []  # type: ignore[assignment]
    frames.write_scores = partial(frames.write_scores, most_rows=most_rows)  # type: ignore[assignment]
    frames.write_cells = partial(frames.write_cells, most_rows=most_rows)  # type: ignore[assignment]


def registered(folder: Path) -> None:
    """Make the detector known as a plugin's package does."""
    info = folder / "plugin" / "scale_detector-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scale-detector\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[harness.detectors]\nmade = scale_detector:Made\n")
    sys.path.append(str(folder / "plugin"))


def suite_of(count: int) -> dict[str, Any]:
    """Two rows that share features, on test sets of all images."""
    return {
        "suite": "scale", "version": 1, "title": "Made images",
        "data": {"photographs": [{"dataset": "photographs", "folders": ["photographs"]}]},
        "test": {"per_generator": count}, "fit": {"dataset": "photographs", "count": FIT},
        "detectors": {"mixture": {"detector": "made"}, "one feature": {"detector": "made", "mixture": False}},
        "execution": {"threads": 1},
    }  # fmt: skip


def run(folder: Path, count: int, most_rows: int, killed_at: float | None) -> None:
    """One run on the folder's store, to its tables or to where it is killed."""
    watch = Watch()
    from harness.verbs.run import RunRequest, run_suite

    registered(folder)
    watched(watch, killed_at, most_rows)
    suite = folder / "scale.yaml"
    suite.write_text(yaml.safe_dump(suite_of(count)))
    request = RunRequest(
        str(suite), data_root=folder, manifest=folder / "manifest.parquet", out=folder / "runs", store=folder / "store",
        device="cpu", tracking_uri="off",
    )  # fmt: skip
    run_suite(request, quiet=True, emit=silent)


def _step(words: Sequence[str], *, killed: bool = False) -> list[dict[str, Any]]:
    """Run this file with these words in a process of its own; what it told."""
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != (9 if killed else 0):
        raise RuntimeError(f"{words} ended with {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def simulate(folder: Path, images: int, most_rows: int) -> dict[str, Any]:
    """All of it; the stages of both runs and what the bars are about.

    Returns:
        ``first`` and ``resumed``: the stages of each run; ``us_an_image``: all up to the tables, planned once;
        ``resume``: processor and wall seconds from the start of the process to where a resumed run would compute its
        first image; peaks of memory of planning, of the work, and of all stages.
    """
    common = ["--folder", str(folder), "--images", str(images), "--most-rows", str(most_rows), "--step"]
    _step([*common, "make"])
    first = _step([*common, "first"], killed=True)
    resumed = _step([*common, "resumed"])
    stages = [s for s in (*first, *resumed) if "stage" in s]
    once = [s for s in stages if s in first or s["stage"] not in BEFORE]  # both runs plan: that counts once
    [reached] = [s for s in resumed if "reached" in s]
    return {
        "images": images, "first": first, "resumed": resumed,
        "cpu_us_an_image": round(1e6 * sum(s["cpu"] for s in once) / images, 2),
        "wall_us_an_image": round(1e6 * sum(s["wall"] for s in once) / images, 2),
        "resume_cpu_seconds": reached["cpu"], "resume_wall_seconds": reached["reached"],
        "planning_peak_mib": max(s["peak_mib"] for s in stages if s["stage"] in BEFORE),
        "scheduling_peak_mib": max(s["peak_mib"] for s in stages if s["stage"].startswith("schedule")),
        "peak_mib": max(s["peak_mib"] for s in stages),
    }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder; 700 bytes an image")
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
        run(words.folder, words.images, most_rows, KILLED_AT if words.step == "first" else None)


if __name__ == "__main__":
    main()

"""The demo suite under Ray against inline: wall time of the whole command, Ray's start excluded, and memory of all its
processes; interleaved pairs, an empty store and folder each, the corpus made before.

Expectation: a worker does what inline does, so the difference is a process's imports (seconds), Ray Train's start where
the suite trains, and messages; at most 1.15 times inline's time. With all cores as threads there is one worker, and
nothing is done twice at once. Memory: the driver and the worker both hold torch, and Ray's own processes add theirs.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

PAIRS = 3
LOOK = 0.5


@dataclass(frozen=True)
class Took:
    """Seconds of a command less those of Ray's start, those of Ray's start, most memory of its processes in MiB."""

    seconds: float
    start: float
    mebibytes: float


def _tree(pid: int) -> list[int]:
    found, todo = [pid], [pid]
    while todo:
        above = todo.pop()
        try:
            tasks = [p.read_text().split() for p in Path(f"/proc/{above}/task").glob("*/children")]
        except OSError:
            continue
        below = [int(child) for children in tasks for child in children]
        found += below
        todo += below
    return found


def _memory(pid: int) -> float:
    """MiB of a process and all below it; pages that several share are counted once (PSS)."""
    total = 0
    for process in _tree(pid):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def _demo(engine: str, folder: Path, corpus: Path) -> Took:
    store = folder / "store"
    subprocess.run([sys.executable, "-c", f"from harness.results.store import Store; from pathlib import Path; "
                    f"Store(Path({str(store)!r}))"], check=True)  # fmt: skip
    shutil.copytree(corpus, store / "demo-corpus")
    words = ["run", "cross_generator", "--profile", "demo", "--engine", engine, "--store", str(store), "--out",
             str(folder / "runs"), "--tracking-uri", "off", "--json", "--device", "cpu"]  # fmt: skip
    began, most = time.perf_counter(), 0.0
    with (folder / "out.json").open("w") as out, (folder / "err").open("w") as err:
        process = subprocess.Popen([sys.executable, "-m", "harness", *words], stdout=out, stderr=err, cwd=folder)
        while process.poll() is None:
            most = max(most, _memory(process.pid))
            time.sleep(LOOK)
    seconds = time.perf_counter() - began
    assert process.returncode in (0, 3), (folder / "err").read_text()
    run = folder / json.loads((folder / "out.json").read_text())["run_dir"]
    start = json.loads((run / "record.json").read_text())["timings"]["engine_start_seconds"]
    return Took(seconds - start, start, most)


@pytest.mark.benchmark(group="engines")
def test_the_demo_under_ray_against_inline(benchmark, tmp_path: Path) -> None:
    from harness.api.events import silent
    from harness.results.store import Store
    from harness.verbs.run import demo_root

    first = tmp_path / "first"
    Store(first)
    corpus = demo_root(first, silent)
    took: dict[str, list[Took]] = {"inline": [], "ray": []}
    for number in range(PAIRS):
        for engine in ("inline", "ray") if number % 2 == 0 else ("ray", "inline"):
            folder = tmp_path / f"{engine}-{number}"
            folder.mkdir()
            took[engine].append(_demo(engine, folder, corpus))
            shutil.rmtree(folder / "store")
    ratios = [r.seconds / i.seconds for i, r in zip(took["inline"], took["ray"], strict=True)]
    benchmark.extra_info.update(
        ratio=round(statistics.median(ratios), 3), ratios=[round(r, 3) for r in ratios],
        inline_seconds=[round(t.seconds, 1) for t in took["inline"]],
        ray_seconds=[round(t.seconds, 1) for t in took["ray"]],
        ray_start_seconds=[round(t.start, 1) for t in took["ray"]],
        inline_mebibytes=round(max(t.mebibytes for t in took["inline"])),
        ray_mebibytes=round(max(t.mebibytes for t in took["ray"])),
    )  # fmt: skip
    print(benchmark.extra_info)
    benchmark.pedantic(lambda: None, rounds=1)

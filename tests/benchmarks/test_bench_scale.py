"""The simulation of `scale_simulation.py`: its small form as a slow test, any size as a benchmark.

Nothing here asserts a time. `SCALE_IMAGES=10000001` gives the benchmark the size of docs/scale.md; the bars are there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data.tables import read_table

IMAGES = 20_000
LARGER = 220_000
BYTES_AN_IMAGE = 600
"""What a run may hold of an image more at its peak; arrays take about 200, Python objects a kilobyte."""
WORKERS = 2
Found = dict[str, Any]


def script(folder: Path, images: int, step: str, ends: int = 0) -> list[Found]:
    """What a step of the simulation prints; tables of more than a quarter of the images are datasets."""
    folder.mkdir(exist_ok=True)
    words = ["--images", images, "--folder", folder, "--most-rows", min(images // 4, 10_000_000), "--step", step]
    file = Path(__file__).with_name("scale_simulation.py")
    done = subprocess.run([sys.executable, file, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == ends, done.stderr
    found = json.loads(f"[{done.stdout}]") if step == "all" else [json.loads(x) for x in done.stdout.splitlines()]
    return list(found)


def fact(found: list[Found], name: str) -> Any:
    """The one value of a name that a step told."""
    [value] = [stage[name] for stage in found if name in stage]
    return value


def tables(folder: Path, told: list[Found]) -> dict[str, bytes]:
    """Scores, cells and manifest of the run that a step ended, by file."""
    run = Path(fact(told, "folder"))
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*.parquet")) if p.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Found], list[Found]]:
    """A run of the small size that was killed and resumed: its folder, and what both told."""
    folder = tmp_path_factory.mktemp("scale")
    script(folder, IMAGES, "make")
    return folder, script(folder, IMAGES, "first", ends=9), script(folder, IMAGES, "resumed")


@pytest.mark.slow
def test_a_resumed_run_computes_what_is_missing_and_nothing_else(small) -> None:
    _, first, resumed = small
    needed = fact(first, "to_do")
    assert fact(first, "stored") == 0
    assert 0.9 * needed <= fact(first, "pieces")["images"] < needed
    assert fact(resumed, "stored") == fact(first, "pieces")["images"]
    assert fact(resumed, "pieces")["images"] == fact(resumed, "to_do") == needed - fact(resumed, "stored") > 0


@pytest.mark.slow
def test_its_tables_are_those_of_a_run_that_nothing_disturbed(small, tmp_path: Path) -> None:
    folder, _, resumed = small
    script(tmp_path, IMAGES, "make")
    whole = script(tmp_path, IMAGES, "resumed")
    mine, other = tables(folder, resumed), tables(tmp_path, whole)
    assert any(name.startswith("scores.parquet/") for name in mine)
    assert any(name.startswith("cells.parquet/") for name in mine)
    assert any(name.startswith("manifest.parquet/") for name in mine)
    assert mine == other
    assert fact(whole, "thresholds") == fact(resumed, "thresholds")
    assert fact(whole, "manifest") == fact(resumed, "manifest")


@pytest.mark.slow
def test_memory_grows_with_the_images_by_little_and_not_with_the_pieces(small, tmp_path: Path) -> None:
    _, first, resumed = small
    script(tmp_path, LARGER, "make")
    larger = script(tmp_path, LARGER, "resumed")
    for told in (first, resumed, larger):
        assert 0 < fact(told, "pieces")["most_out"] <= 2 * WORKERS
    assert fact(larger, "pieces")["sent"] > 2 * fact(first, "pieces")["sent"]
    peaks = [{s["stage"]: s["peak_mib"] for s in told if "stage" in s} for told in (first, larger)]
    for stage in peaks[0]:
        grown = (peaks[1][stage] - peaks[0][stage]) * 2**20 / (LARGER - IMAGES)
        assert grown < BYTES_AN_IMAGE, stage
    before, work = (next(s for s in larger if s.get("stage", "").startswith(name)) for name in ("record", "schedule"))
    assert (work["after_mib"] - before["after_mib"]) * 2**20 / LARGER < BYTES_AN_IMAGE / 2


@pytest.mark.benchmark(group="scale")
def test_a_simulated_run_is_killed_and_resumed(benchmark, tmp_path: Path) -> None:
    images = int(os.environ.get("SCALE_IMAGES", str(IMAGES)))
    [found] = benchmark.pedantic(lambda: script(tmp_path, images, "all"), rounds=1, iterations=1)
    benchmark.extra_info.update({k: v for k, v in found.items() if not isinstance(v, list)})
    print(f"\n{json.dumps(found, indent=1)}")
    folder = Path(fact(found["resumed"], "folder"))
    scores = read_table(folder / "scores.parquet", ["score"], only=("detector", ["mixture"]))
    assert len(scores) == fact(found["resumed"], "scores") / 2 > 0.9 * images
    assert np.isfinite(scores["score"]).all()

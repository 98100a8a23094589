"""The simulation of `scale_simulation.py`, small unless told otherwise: it ends, resumes and scores every image.

`SCALE_IMAGES=10000001` for the size of docs/scale.md. The bars are there; nothing here asserts a time.
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

IMAGES = int(os.environ.get("SCALE_IMAGES", "20000"))
MOST_ROWS = 10_000_000 if IMAGES > 1_000_000 else IMAGES // 4


def simulate(folder: Path) -> dict[str, Any]:
    """What the simulation prints."""
    script = Path(__file__).with_name("scale_simulation.py")
    words = ["--images", str(IMAGES), "--folder", str(folder), "--most-rows", str(MOST_ROWS)]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.benchmark(group="scale")
def test_a_simulated_run_is_killed_and_resumed(benchmark, tmp_path: Path) -> None:
    found = benchmark.pedantic(lambda: simulate(tmp_path), rounds=1, iterations=1)
    benchmark.extra_info.update({k: v for k, v in found.items() if not isinstance(v, list)})
    print(f"\n{json.dumps(found, indent=1)}")
    stored = next(s["stored"] for s in found["resumed"] if s["stage"] == "plan")
    assert 0.85 * IMAGES < stored < IMAGES
    scores = read_table(tmp_path / "scores.parquet", ["score"], only=("detector", ["mixture"]))
    assert len(scores) == next(s["scores"] for s in found["resumed"] if "scores" in s) / 2 > 0.9 * IMAGES
    assert np.isfinite(scores["score"]).all()

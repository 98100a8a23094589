"""Images a second and peak memory of every registered detector, from files to scores, on two threads.

Random weights, JPEGs of 512 x 512 pixels; Hu21 gets the recorded face with its landmarks (PNG, 640 x 640), since it
says nothing of made images. Each in a fresh process (`one_detector.py`). Nothing is asserted but that images were
scored.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.api.registry import registrations

SIDE = 512
COUNTS = {"lgrad": 32, "hu21": 8}
"""Images for slow detectors; 96 for the others. A multiple of the micro-batch of 32 unless it is 1."""


def made_photographs(folder: Path, count: int) -> None:
    """JPEGs with the detail of photographs (smooth shapes and some noise), quality 90."""
    rng = np.random.default_rng(SIDE)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        noisy = np.asarray(coarse, np.float32) + rng.normal(0, 4, (SIDE, SIDE, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{index:03d}.jpg", quality=90)


def recorded_faces(folder: Path, golden: Path, count: int) -> None:
    """Copies of the recorded face, each with its landmarks beside it."""
    points = np.load(golden / "golden.npz", allow_pickle=False)["f0_landmarks"].tolist()
    for index in range(count):
        shutil.copy(golden / "face0_640.png", folder / f"{index:03d}.png")
        (folder / f"{index:03d}.png.json").write_text(json.dumps({"landmarks": points, "finder": "golden"}))


@pytest.mark.benchmark(group="detectors")
@pytest.mark.parametrize("name", sorted(registrations()))
def test_a_detector_from_files_to_scores(benchmark, request, tmp_path: Path, name: str) -> None:
    count = COUNTS.get(name, 96)
    if name == "hu21":
        recorded_faces(tmp_path, request.getfixturevalue("golden_dir") / "detectors" / "hu21", count)
    else:
        made_photographs(tmp_path, count)
    script = Path(__file__).with_name("one_detector.py")
    command = [sys.executable, str(script), name, str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}

    def run() -> dict[str, float]:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    found = benchmark.pedantic(run, rounds=1, iterations=1)
    benchmark.extra_info.update(found, load=round(os.getloadavg()[0], 1))
    print(name, benchmark.extra_info)
    assert found["images"] == count
    assert found["undecided"] == 0

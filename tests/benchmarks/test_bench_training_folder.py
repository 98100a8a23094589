"""What a training folder costs at the length of the paper's training: writing, figures, logging to MLflow."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from training_support import KEY, entry

from harness.results.training import write_training
from harness.track.training import log_training
from reports.training import make_training_figures

STEPS, TASKS = 83_340, tuple(f"task{i}" for i in range(11))


@pytest.mark.slow
def test_a_training_as_long_as_the_papers(benchmark, tmp_path: Path) -> None:
    """Expected: below a minute of processor time in all, logging again a tenth of logging (docs/benchmarks.md)."""
    made = entry(STEPS, tasks=TASKS, audit=500)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    log_training(write_training(tmp_path / "first", "0" * 64, entry(2)).folder, store)  # the store is made before
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        began = time.process_time()
        work()
        seconds[name] = round(time.process_time() - began, 2)

    def everything() -> None:
        folder = tmp_path / "long"
        shutil.rmtree(folder, ignore_errors=True)
        timed("write", lambda: write_training(folder, KEY, made))
        timed("figures", lambda: make_training_figures(folder))
        timed("log", lambda: log_training(folder, store))
        timed("log again", lambda: log_training(folder, store))

    benchmark.pedantic(everything, rounds=1)
    print(platform.processor() or platform.machine(), seconds)
    assert set(seconds) == {"write", "figures", "log", "log again"}

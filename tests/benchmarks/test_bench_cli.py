"""How long the shortest commands take as processes: `--help` at most 0.5 s, `detectors list` at most 1 s on 2 cores
(budgets, not asserted)."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.benchmark(group="cli")
@pytest.mark.parametrize("words", [("--help",), ("detectors", "list"), ("suites", "list")], ids=" ".join)
def test_a_short_command(benchmark, words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "harness", *words]

    def run() -> None:
        subprocess.run(command, capture_output=True, check=True)

    benchmark.pedantic(run, rounds=7, iterations=1, warmup_rounds=1)

"""Two processes, each with half of every batch, give the steps of one process on the whole batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROGRAM = Path(__file__).with_name("several_processes.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(out: Path, kind: str, size: int) -> None:
    out.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[3]), "OMP_NUM_THREADS": "1"}
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(out), kind, str(size), str(rank), str(port)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said


@pytest.mark.parametrize("kind", ["joint", "bilevel", "difference", "lagged"])
def test_two_processes_make_the_steps_of_one(tmp_path: Path, kind: str) -> None:
    for size in (1, 2):
        run(tmp_path / str(size), kind, size)
    alone, both = (load_file(tmp_path / str(n) / "tensors.safetensors") for n in (1, 2))
    assert alone.keys() == both.keys()
    for name, value in alone.items():
        if name.endswith("in_proj_bias"):  # a bias of keys has no gradient but rounding, which Adam brings to full size
            third = len(value) // 3
            both[name][third : 2 * third] = value[third : 2 * third]
        torch.testing.assert_close(both[name], value, rtol=0, atol=1e-5)
    (history, metrics), (shared, shared_metrics) = (
        json.loads((tmp_path / str(n) / "history.json").read_text()) for n in (1, 2)
    )
    assert len(history) == len(shared) == 3
    for row, other in zip(history, shared, strict=True):
        assert other["losses"] == pytest.approx(row["losses"], abs=1e-5)
        if kind != "joint":
            near = 1e-2 if kind == "difference" else 1e-3  # the difference of two float32 losses has fewer digits
            assert other["lambda"] == pytest.approx(row["lambda"], abs=1e-5 if kind != "difference" else 1e-4)
            assert other["hypergradient"] == pytest.approx(row["hypergradient"], rel=near, abs=1e-6)
    assert any(abs(row["losses"]["iso"]) > 1e-3 for row in history)  # pairs across processes were counted
    assert shared_metrics == pytest.approx(metrics, abs=1e-5)
    (first, told), (second, silent) = (json.loads((tmp_path / "2" / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert told > 0
    assert silent == 0

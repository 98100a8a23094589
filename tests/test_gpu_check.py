"""`make gpu-check`: the same checks on the CPU pass, a wrong value fails, and no GPU is said."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

TESTS = Path(__file__).resolve().parent


def check(*words: str, script: Path = TESTS / "gpu_check.py") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)


def test_recorded_values_hold_on_the_cpu() -> None:
    done = check("--device", "cpu", "--parts", "losses,hypergradient")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all within" in done.stdout
    assert done.stdout.count("ok ") == 18


@pytest.mark.slow
def test_the_recorded_encoder_holds_on_the_cpu() -> None:
    done = check("--device", "cpu", "--parts", "encoder")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 12


def test_a_wrong_value_is_found(tmp_path: Path) -> None:
    copy = tmp_path / "tests"
    shutil.copytree(TESTS / "golden", copy / "golden")
    (copy / "gpu_check.py").write_text((TESTS / "gpu_check.py").read_text())
    for package in ("detectors", "harness"):
        (tmp_path / package).symlink_to(TESTS.parent / package)
    stored = dict(np.load(copy / "golden" / "hypergrad.npz", allow_pickle=False))
    stored["alpha0.01/exact"] = stored["alpha0.01/exact"] * (1 + 1e-8)
    np.savez(copy / "golden" / "hypergrad.npz", **stored)
    done = check("--device", "cpu", "--parts", "hypergradient", script=copy / "gpu_check.py")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL hypergradient exact alpha0.01 float64" in done.stdout
    assert "1 not within" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = check()
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert "--device cpu" in done.stderr
    assert check("--device", "cpu", "--parts", "everything").returncode == 2


def test_the_copies_are_the_recordings(golden_dir: Path) -> None:
    for name in ("losses.npz", "hypergrad.npz"):
        assert (TESTS / "golden" / name).read_bytes() == (golden_dir / name).read_bytes()
    small = np.load(TESTS / "golden" / "encoder_small.npz", allow_pickle=False)
    whole = np.load(golden_dir / "encoder.npz", allow_pickle=False)
    assert np.array_equal(small["logits"], whole["f64/logits"])
    assert np.array_equal(small["text_features3"], whole["f64/text_features3"][:8])
    drawn = np.random.default_rng(7).standard_normal((2, 3, 224, 224)).astype(np.float32)
    assert np.array_equal(drawn, whole["image"])

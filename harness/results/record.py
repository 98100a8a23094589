"""The record of a run: what ran, on which images, with which weights, where, what came out, what failed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

PACKAGES = (
    "blades-bench",
    "torch",
    "transformers",
    "scikit-learn",
    "numpy",
    "scipy",
    "pandas",
    "pillow",
    "mlflow",
    "ray",
)


class DetectorRecord(BaseModel):
    """One row: which plugin, options and weights, how it ended; ``changed`` are its options that ``--set`` changed."""

    model_config = ConfigDict(extra="forbid")

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    weights: dict[str, Any] = Field(default_factory=dict)
    status: str = "ok"
    message: str = ""
    traceback: str = ""
    random_weights: bool = False
    seen: list[str] = Field(default_factory=list)
    published_row: str | None = None
    changed: list[str] = Field(default_factory=list)
    threshold: float | None = None


class Record(BaseModel):
    """``record.json``. ``stamps`` are printed on every table and figure (demo, partial, random weights)."""

    model_config = ConfigDict(extra="forbid")

    record_version: int = 1
    run_id: str
    suite: str
    suite_version: int
    title: str
    profile: str
    started: str
    finished: str = ""
    command: list[str] = Field(default_factory=list)
    protocol: dict[str, Any]
    protocol_base: str
    edits: dict[str, Any] = Field(default_factory=dict)
    stamps: list[str] = Field(default_factory=list)
    detectors: dict[str, DetectorRecord]
    reference: str | None = None
    bootstrap: dict[str, int]
    tables: list[dict[str, Any]]
    skipped_images: int = 0
    notes: list[str] = Field(default_factory=list)
    manifest_sha256: str = ""
    images: dict[str, int] = Field(default_factory=dict)
    computed: dict[str, int] = Field(default_factory=dict)
    recipes: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict)
    failures: list[dict[str, str]] = Field(default_factory=list)
    set_aside: list[dict[str, str]] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(*words: str) -> str | None:
    """Output of a git command in the folder of the source, None outside a checkout or without git."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment(device: str, threads: int) -> dict[str, Any]:
    """Commit and dirty flag, packages, processor, GPU and driver, torch flags."""
    import torch

    commit = _git("rev-parse", "HEAD")
    tracked_here = _git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is not None
    gpu = None
    if device.startswith("cuda") and torch.cuda.is_available():  # under Ray the GPUs may be those of other machines
        gpu = {
            "name": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        }
    return {
        "git_commit": commit if tracked_here else None,
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")) if tracked_here else None,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "device": device,
        "gpu": gpu,
        "threads": threads,
        "packages": {name: _version(name) for name in PACKAGES},
    }

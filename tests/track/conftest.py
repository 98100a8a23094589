"""A small finished run folder, written as the program writes one, for the tracking tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.results.record import Record

METRIC_COLUMNS = (
    "detector", "test_set", "metric", "value", "low", "high", "n", "n_photographic", "n_generated", "abstained", "seen",
)  # fmt: skip


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_run(folder: Path, run_id: str = "20261120-101010-abcd", **record_changes: Any) -> Path:
    """A run of two detectors (one without weights) and the audit on two generators; one value is not a number."""
    folder.mkdir(parents=True)
    rows = []
    for detector in ("blades-oc", "format-only"):
        for test_set, value in (("stylegan2", 0.75), ("my faces!", 0.5), ("mean", 0.625)):
            for metric in ("accuracy", "auc"):
                number = "" if (metric, test_set) == ("auc", "my faces!") else value
                rows.append((detector, test_set, metric, number, value - 0.1, value + 0.1, 8, 4, 4, 1, False))
    pd.DataFrame(rows, columns=list(METRIC_COLUMNS)).to_csv(folder / "metrics.csv", index=False)
    images = [(_sha(f"{g}{i}"), int(bool(g)), g) for g in ("", "stylegan2", "my faces!") for i in range(4)]
    manifest = pd.DataFrame(images, columns=["sha256", "label", "generator"])
    manifest.assign(dataset="celeba-face", split="report", path="x").to_parquet(folder / "manifest.parquet")
    cells = [(s, *image) for s in ("stylegan2", "my faces!") for image in images if image[2] in ("", s)]
    pd.DataFrame(cells, columns=["test_set", "sha256", "label", "generator"]).to_parquet(folder / "cells.parquet")
    pd.DataFrame({"sha256": [i[0] for i in images], "score": 0.5}).to_parquet(folder / "scores.parquet")
    for name, text in (("tables/accuracy.md", "| a |\n"), ("figures/roc.png", "png"), ("report.html", "<p>run</p>")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "suite.resolved.yaml").write_text("detectors:\n  blades-oc:\n    components: 4\n  blades-bc: {}\n")
    oc = {"name": "blades-oc", "options": {"components": 4}, "weights": {"weights": "f" * 64}, "threshold": 1.25}
    bc = {"name": "blades-bc", "status": "missing", "message": "BC.pth is missing", "seen": ["stylegan2"]}
    record = {
        "run_id": run_id,
        "suite": "cross_generator",
        "suite_version": 1,
        "title": "Cross-generator",
        "profile": "demo",
        "started": "2026-11-20T10:10:10+00:00",
        "finished": "2026-11-20T10:10:20+00:00",
        "protocol_base": "clean",
        "protocol": {"threshold": "held_out", "ranking_scale": 2.0},
        "stamps": ["DEMO: embedded corpus, not the paper's data"],
        "detectors": {"blades-oc": oc, "blades-bc": bc},
        "reference": "blades-oc",
        "bootstrap": {"n": 2000, "seed": 2024},
        "tables": [],
        "manifest_sha256": "a" * 64,
        "environment": {"git_commit": "c" * 40, "git_dirty": True},
        "timings": {"extract": 1.5},
    } | record_changes
    (folder / "record.json").write_text(Record.model_validate(record).model_dump_json())
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """One finished run folder."""
    return write_run(tmp_path / "runs" / "cross_generator-demo" / "20261120-101010-abcd")


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """Writes further run folders."""
    return write_run

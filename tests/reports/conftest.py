"""Synthetic run folders: stored scores and a record, as the engine leaves them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

NINE = ("stylegan2", "vqgan", "ldm", "ddim", "sdv21", "freedom", "hps", "midjourney", "sdxl")
IMAGE = ["sha256", "label", "generator"]


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class FakeRun:
    """A run folder to be written; change what a test needs before `write`."""

    folder: Path
    accuracy: dict[str, dict[str, float]] = field(default_factory=dict)
    images: int = 200
    record: dict[str, Any] = field(default_factory=dict)
    abstains: dict[str, int] = field(default_factory=dict)
    audit: bool = True

    def write(self) -> Path:
        """Scores whose accuracy on each generator is as asked for (to one image), for both classes alike."""
        self.folder.mkdir(parents=True, exist_ok=True)
        test_sets = sorted({g for row in self.accuracy.values() for g in row})
        photographs = [(_sha(f"photograph {i}"), 0, "") for i in range(self.images)]
        cells, scores = [], []
        for name in test_sets:
            generated = [(_sha(f"{name} {i}"), 1, name) for i in range(self.images)]
            cells += [(name, *image) for image in photographs + generated]
        for row, wanted in self.accuracy.items():
            kept = round(float(np.mean(list(wanted.values()))) * self.images)
            scores += self._scores(row, photographs, self.images - kept)
            for name, share in wanted.items():
                generated = [(_sha(f"{name} {i}"), 1, name) for i in range(self.images)]
                # photographs are shared: the generated class carries what accuracy the generator asks for
                right = round(2 * share * self.images) - kept
                scores += self._scores(row, generated, min(self.images, max(0, right)))
        table = pd.DataFrame(scores, columns=[*IMAGE, "detector", "score", "threshold", "prediction"])
        table.astype({"label": "int8", "prediction": "int8"}).to_parquet(self.folder / "scores.parquet")
        cell_table = pd.DataFrame(cells, columns=["test_set", *IMAGE]).astype({"label": "int8"})
        cell_table.to_parquet(self.folder / "cells.parquet")
        if self.audit:
            chance = [int(s[:8], 16) / 2**32 for s in cell_table["sha256"]]
            cell_table.assign(score=chance).to_parquet(self.folder / "audit.parquet")
        self._manifest(cell_table).to_parquet(self.folder / "manifest.parquet")
        (self.folder / "record.json").write_text(json.dumps(self.record), encoding="utf-8")
        (self.folder / "suite.resolved.yaml").write_text("suite: synthetic\n", encoding="utf-8")
        return self.folder

    def _scores(self, row: str, images: list[tuple[str, int, str]], above: int) -> list[tuple[Any, ...]]:
        rng = np.random.default_rng(int(_sha(row + images[0][0])[:8], 16))
        silent = self.abstains.get(row, 0)
        out = []
        for i, image in enumerate(images):
            score = 0.5 + rng.uniform(0.01, 1) if i < above else 0.5 - rng.uniform(0.01, 1)
            if i >= len(images) - silent:
                out.append((*image, row, np.nan, 0.5, -1))
            else:
                out.append((*image, row, score, 0.5, int(i < above)))
        return out

    @staticmethod
    def _manifest(cells: pd.DataFrame) -> pd.DataFrame:
        images = cells.drop_duplicates(IMAGE).drop(columns="test_set").reset_index(drop=True)
        dataset = "celeba-face"
        return images.assign(
            path=[f"imgs/{i}.jpg" for i in range(len(images))],
            dataset=dataset,
            group=images["sha256"],
            split="report",
            order=np.arange(len(images)),
            width=np.int32(224),
            height=np.int32(224),
            format="JPEG",
            jpeg_quality=np.int16(90),
            bytes=10_000,
        )


def record(**changes: Any) -> dict[str, Any]:
    """A record as `harness.results.record` writes it."""
    base: dict[str, Any] = {
        "record_version": 1,
        "run_id": "20261120-120000-abcdef",
        "suite": "cross_generator",
        "suite_version": 1,
        "title": "Cross-generator detection",
        "profile": "full",
        "started": "2026-11-20T12:00:00+00:00",
        "finished": "2026-11-20T13:00:00+00:00",
        "command": ["harness", "run", "cross_generator"],
        "protocol": {"outer_batch": "heldout", "threshold": "in_sample", "resize_antialias": False},
        "protocol_base": "paper",
        "edits": {"rotate": False, "match_format": None},
        "stamps": [],
        "detectors": {
            "blades-oc": detector("blades-oc"),
            "blades-bc": detector("blades-bc", seen=["ldm"]),
        },
        "reference": "blades-oc",
        "bootstrap": {"n": 300, "comparisons": 400, "seed": 2024},
        "tables": [
            {"kind": "accuracy", "title": "Accuracy", "published": "cross_generator", "tolerance": 0.02},
            {"kind": "auc", "title": "Separability", "published": "separability", "tolerance": 0.02},
            {"kind": "sensitivity", "title": "Sensitivity", "published": "sensitivity", "tolerance": 0.02},
        ],
        "skipped_images": 0,
        "notes": [],
        "manifest_sha256": "0" * 64,
        "images": {},
        "environment": {"git_commit": "abc", "git_dirty": False, "cpu": "a processor", "packages": {"torch": "2"}},
        "timings": {"total_seconds": 12.5},
        "failures": [],
        "warnings": [],
    }
    return base | changes


def detector(name: str, **changes: Any) -> dict[str, Any]:
    """A row of the record."""
    base = {"name": name, "options": {}, "weights": {}, "status": "ok", "message": "", "random_weights": False}
    return base | {"seen": [], "published_row": None, "threshold": 0.5} | changes


def published_accuracy(row: str) -> dict[str, float]:
    """Accuracies that give the published columns and the published average over nine."""
    from reports import published

    known = {g: n.fraction for g in NINE if (n := published.find("cross_generator", row, g))}
    average = published.find("cross_generator", row, "Avg.").fraction
    rest = [g for g in NINE if g not in known]
    left = (9 * average - sum(known.values())) / len(rest)
    return known | dict.fromkeys(rest, left)


@pytest.fixture
def full_run(tmp_path: Path) -> FakeRun:
    """A full run whose accuracies are the published ones."""
    accuracy = {row: published_accuracy(row) for row in ("blades-oc", "blades-bc")}
    return FakeRun(tmp_path / "run", accuracy=accuracy, record=record())


@pytest.fixture
def demo_run(tmp_path: Path) -> FakeRun:
    """A small demo run: two generators, one row without weights, one with random weights that abstains."""
    entries = {
        "blades-oc": detector("blades-oc"),
        "blades-bc": detector("blades-bc", seen=["convgan"]),
        "noise_<b>": detector("noise", random_weights=True),
        "eal": detector(
            "eal",
            status="missing",
            threshold=None,
            message="weights: wrapper_75_new.pth is not there\nput it in pretrained/",
        ),
    }
    accuracy = {
        "blades-oc": {"convgan": 0.8, "vqae": 0.7},
        "blades-bc": {"convgan": 0.95, "vqae": 0.75},
        "noise_<b>": {"convgan": 0.5, "vqae": 0.5},
    }
    stamps = ["DEMO: embedded corpus, not the paper's data", "RANDOM WEIGHTS: noise_<b>"]
    changed = record(profile="demo", stamps=stamps, detectors=entries, skipped_images=2, protocol_base="clean")
    return FakeRun(tmp_path / "demo", accuracy=accuracy, record=changed, images=60, abstains={"noise_<b>": 4})

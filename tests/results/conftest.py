"""Synthetic test sets for the statistics."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from harness.results.bootstrap import SetScores


def digests(prefix: str, count: int) -> list[str]:
    return [hashlib.sha256(f"{prefix}-{i}".encode()).hexdigest() for i in range(count)]


def make_set(
    name: str = "g",
    *,
    generated: int = 60,
    photographic: int = 50,
    shifts: tuple[float, ...] = (0.5, 1.5),
    ties: bool = False,
    seed: int = 0,
) -> SetScores:
    """Normal scores, generated shifted by `shifts[d]`, threshold 0.5; photographs are the same in every set."""
    rng = np.random.default_rng(seed)
    sha = np.array(digests("photograph", photographic) + digests(name, generated), dtype=object)
    label = np.r_[np.zeros(photographic), np.ones(generated)].astype(np.int8)
    score = rng.normal(size=(len(shifts), len(label))) + label * np.array(shifts)[:, None]
    if ties:
        score = np.round(score * 2) / 2
    return SetScores(
        name=name,
        sha256=sha,
        label=label,
        detectors=tuple(f"d{i}" for i in range(len(shifts))),
        score=score,
        threshold=np.full(score.shape, 0.5),
        present=np.ones(score.shape, bool),
    )


@pytest.fixture
def set_maker():
    return make_set

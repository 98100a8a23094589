"""A sweep folder as the program writes one: two swept keys, a trial of each end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from training_support import history

from harness.results.sweep import SpaceRecord, SweepFolder, SweepRecord, TrialResult, write_sweep

KEY = "5e" * 32
TASKS = ("face_coarse", "make/model")


def trial_key(number: int) -> str:
    return f"a{number:x}" * 32


def _entry(epochs: int, lift: float) -> dict[str, Any]:
    rows = history(5 * epochs, TASKS)
    return {
        "history": rows,
        "evaluations": [
            {"step": 5 * e, "epoch": e, "metrics": {"accuracy": lift + e / 100, "kept": 0.5}}
            for e in range(1, epochs + 1)
        ],
        "readings": {
            "step": [r["step"] for r in rows], "images_per_second": [100.0] * len(rows),
            "memory_mib": [500] * len(rows),
        },
    }  # fmt: skip


def trials() -> list[TrialResult]:
    """Finished, finished and best, stopped at 2, failed without a history, equal to the first."""
    rates = (1e-4, 1e-3, 1e-5, 9e-3, 1e-4)
    methods = ("exact", "finite_difference", "exact", "exact", "exact")
    out = []
    for number, (rate, method) in enumerate(zip(rates, methods, strict=True)):
        values = {"settings.lambda_lr": rate, "protocol.hypergradient": method}
        state = ("finished", "finished", "stopped", "failed", "repeats")[number]
        epochs = {"stopped": 2, "failed": 0}.get(state, 4)
        lift = 0.5 + 0.1 * (number % 4 == 1)
        last = math.nan if state == "failed" else lift + epochs / 100
        entry = {} if state in ("failed", "repeats") else _entry(epochs, lift)
        reason = {"stopped": "stopped after epoch 2: 0.52 against 0.6", "failed": "loss is not finite",
                  "repeats": "as trial 0"}.get(state, "")  # fmt: skip
        key = trial_key(0 if state == "repeats" else number)
        out.append(TrialResult(
            number, values, state, epochs, last, epochs, last, key, 8, entry, 0 if state == "repeats" else None, reason,
            "ab" * 32 if state in ("finished", "repeats") else "",
        ))  # fmt: skip
    return out


def record(**changes: Any) -> SweepRecord:
    """The record of those trials."""
    spaces = {
        "settings.lambda_lr": SpaceRecord(kind="loguniform", values=[1e-5, 1e-2], logarithmic=True),
        "protocol.hypergradient": SpaceRecord(kind="choice", values=["exact", "finite_difference"]),
    }
    whole: dict[str, Any] = {
        "name": "rates", "title": "Rates", "profile": "demo", "key": KEY, "spaces": spaces, "metric": "accuracy",
        "document": {"sweep": "rates", "recipe": "lam", "samples": 5, "seed": 2024,
                     "objective": {"metric": "accuracy", "mode": "max"}, "scheduler": {"asha": {"grace": 2}}},
        "mode": "max", "rungs": [2], "base": {"detector": "blades-oc", "epochs": 4}, "trials": 5,
        "counts": {"finished": 2, "stopped": 1, "failed": 1, "crashed": 0, "repeats": 1}, "trained": 4, "best": 1,
        "started": "2026-11-20T10:00:00+00:00", "finished": "2026-11-20T10:02:00+00:00",
        "command": ["harness", "sweep", "rates"], "stamps": ["DEMO"],
        "environment": {"git_commit": "d" * 40, "git_dirty": False, "device": "cpu"}, **changes,
    }  # fmt: skip
    return SweepRecord(**whole)


def write(folder: Path, **changes: Any) -> SweepFolder:
    """A sweep folder without its figures."""
    return write_sweep(folder, record(**changes), trials())

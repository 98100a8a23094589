"""What the store says of a trained recipe, made up: for tests of training folders, their figures and their logging."""

from __future__ import annotations

import math
from typing import Any

KEY, SHA = "a1" * 32, "b2" * 32
TASKS = ("face_coarse", "focal length", "make/model")


def _audit(step: int, tasks: tuple[str, ...]) -> dict[str, Any]:
    exact = {task: (-1.0) ** i * (step + i) / 7 for i, task in enumerate(tasks)}
    rows = []
    for scale in (1.0, 0.1, 0.001):
        found = {task: value * (1 + scale / 2) for task, value in exact.items()}
        rows.append({
            "scale": scale, "eps": 1e-4 * scale, "difference": found,
            "relative": {task: scale / 2 if task != "make/model" else None for task in tasks},
            "overall": scale / 2, "same_sign": 1.0,
        })  # fmt: skip
    return {"exact": exact, "v_norm": 3.5, "differences": rows}


def history(
    steps: int, tasks: tuple[str, ...] = TASKS, *, weights: bool = True, audit: int = 0
) -> list[dict[str, Any]]:
    """Rows of a training of five steps an epoch; ``audit``: every that many steps, the first included."""
    rows = []
    for step in range(1, steps + 1):
        losses = {task: 0.7 / (1 + i) + math.sin(step + i) / 10 for i, task in enumerate(tasks)}
        row: dict[str, Any] = {
            "step": step, "epoch": (step - 1) // 5 + 1, "lr": 1e-3 / step, "loss": sum(losses.values()),
            "losses": losses,
        }  # fmt: skip
        if weights:
            row |= {
                "lambda": {task: 1 + 1e-3 * step * (i - 1) for i, task in enumerate(tasks)},
                "outer_loss": 0.3,
                "hypergradient": {task: 0.01 * i for i, task in enumerate(tasks)},
            }
        if audit and (step - 1) % audit == 0:
            row["audit"] = _audit(step, tasks)
        rows.append(row)
    return rows


def entry(steps: int = 12, *, tasks: tuple[str, ...] = TASKS, **changes: Any) -> dict[str, Any]:
    """The store's entry of a recipe that was resumed once."""
    how = {name: changes.pop(name) for name in ("weights", "audit") if name in changes}
    recipe = {
        "recipe": "lam", "version": 1, "detector": "none", "options": {"encoder": "tiny"}, "protocol": "paper",
        "step": "bilevel", "settings": {"lambda_lr": 3e-4, "tasks": list(tasks)}, "lr": 1e-3, "epochs": steps // 5 + 1,
    }  # fmt: skip
    protocol = {"outer_batch": "heldout", "ranking_scale": 2.0}
    sessions = [
        {"first_step": 1, "started": "2026-11-20T10:00:00+00:00", "command": ["harness", "train", "lam"]},
        {"first_step": 6, "started": "2026-11-20T10:01:00+00:00", "command": ["harness", "train", "lam"]},
    ]
    return {
        "sha256": SHA, "recipe": recipe, "metrics": {"accuracy": 0.75, "kept": 0.5},
        "description": {
            "stage": {"protocol": protocol}, "inputs": ["c3" * 32], "edits": {}, "numerics": {"threads": 1}, "seed": 1,
        },
        "history": history(steps, tasks, **how), "sessions": sessions, "finished": "2026-11-20T10:02:00+00:00",
        "environment": {"git_commit": "d" * 40, "git_dirty": False, "device": "cpu"},
        "readings": {
            "step": list(range(1, steps + 1)), "images_per_second": [50.0 + s for s in range(steps)],
            "memory_mib": [600] * steps,
        },
        "evaluations": [
            {"step": 5, "epoch": 1, "metrics": {"accuracy": 0.6, "kept": 0.4}},
            {"step": steps, "epoch": steps // 5, "metrics": {"accuracy": 0.75, "kept": 0.5}},
        ],
        **changes,
    }  # fmt: skip


def report(*values: tuple[str, str, float, float, float, float | None]) -> dict[str, Any]:
    """What the store says of a report: rows of task, metric, value, low, high, chance."""
    names = ("task", "metric", "value", "low", "high", "chance")
    given = values or (
        ("face_coarse", "accuracy", 0.7, 0.6, 0.8, 0.5),
        ("make/model", "balanced_accuracy", 0.2, 0.1, 0.3, 0.25),
    )
    rows = [{**dict(zip(names, row, strict=True)), "images": 40} for row in given]
    return {"split": "report", "sha256": SHA, "inputs": ["d4" * 32], "rows": rows}

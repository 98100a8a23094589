"""Recipes of seconds for tests of the command line: a bi-level one with every kind of layer, and a joint one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

SETTINGS = {"tasks": ["face_coarse", "face_fine"], "work_size": 32, "manipulations": [0, 1, 3]}
LAM: dict[str, Any] = {
    "recipe": "lam", "detector": "blades-oc", "options": {"encoder": "tiny", "image_size": 32}, "step": "bilevel",
    "settings": {**SETTINGS, "lambda_lr": 0.01, "hypergradient_audit": 10}, "epochs": 5, "batch_size": 8, "lr": 1e-3,
    "evaluate_every": 2, "seed": 1,
}  # fmt: skip
JOINT: dict[str, Any] = {**LAM, "recipe": "joint", "step": "joint", "settings": SETTINGS, "epochs": 1}
FIXED = ("--device", "cpu", "--threads", "1", "--every", "2")


def recipe(folder: Path, document: dict[str, Any] = LAM, **changes: Any) -> Path:
    """The recipe as a file in a folder."""
    path = folder / f"{document['recipe']}.yaml"
    path.write_text(yaml.safe_dump({**document, **changes}))
    return path


def released_layout() -> Any:
    """The fixture `fdf_root`, a released training folder, from the tests of its reader."""
    path = Path(__file__).resolve().parents[1] / "data" / "training" / "conftest.py"
    spec = importlib.util.spec_from_file_location("released_layout", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fdf_root

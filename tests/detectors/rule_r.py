"""Weights by base rule R of the golden folders' rule.md, and the contract's promises for one detector."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.api.contract import Detector
from harness.api.weights import ResolvedWeights, file_digest

Keys = Iterable[tuple[str, list[int], str]]


def official_keys(folder: Path) -> list[tuple[str, list[int], str]]:
    """Name, shape and dtype of every tensor of an official file, from a golden folder's keys.json."""
    content = json.loads((folder / "keys.json").read_text())
    keys = content["keys"] if isinstance(content, dict) else content
    return [(name, shape, dtype) for name, shape, dtype in keys]


def rule_r(keys: Keys, only: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """Tensors by rule R over all the sorted keys; those whose name holds none of `only` are left empty, not drawn."""
    shapes = {name: tuple(shape) for name, shape, _ in keys}
    dtypes = {name: dtype for name, _, dtype in keys}
    return {
        name: _value(name, shapes, dtypes[name], 6000 + i) if any(part in name for part in only) else torch.zeros(0)
        for i, name in enumerate(sorted(shapes))
    }


def _value(name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str, seed: int) -> Tensor:
    shape, (module, _, last) = shapes[name], name.rpartition(".")
    if not dtype.startswith("float"):
        return torch.zeros(shape, dtype=torch.int64)
    if last == "logit_scale":
        return torch.tensor(math.log(1 / 0.07), dtype=torch.float32)
    draw = np.random.default_rng(seed).standard_normal(shape)
    if last == "running_mean":
        value = 0.1 * draw
    elif last == "running_var":
        value = 1 + 0.1 * np.abs(draw)
    elif len(shapes.get(f"{module}.weight", ())) == 1:
        value = 1 + 0.1 * draw if last == "weight" else 0.1 * draw
    elif last.endswith("bias"):
        value = 0.01 * draw
    elif len(shape) == 4:
        value = draw * math.sqrt(2 / math.prod(shape[1:]))
    else:
        value = 0.02 * draw
    return torch.from_numpy(np.asarray(value).astype(np.float32))


def stored(path: Path, content: Any) -> dict[str, ResolvedWeights]:
    """A checkpoint written with `torch.save`, as the slot `weights`."""
    torch.save(content, path)
    return {"weights": ResolvedWeights("file", file_digest(path), path)}


def random_weights(seed: int = 7) -> dict[str, ResolvedWeights]:
    """Stated random weights as the slot `weights`."""
    return {"weights": ResolvedWeights("random", f"random:{seed}", seed=seed)}


def drawn_image(seed: int, width: int, height: int) -> np.ndarray:
    """Pixels `[height, width, 3]` uint8 as rule.md draws them (a: 71, 256×256; b: 72, 301×247)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    channels = []
    for _ in range(3):
        value = np.zeros((height, width))
        for _ in range(4):
            fx, fy = rng.uniform(0.5, 6, 2)
            phase, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1)
            value += size * np.sin(2 * np.pi * (fx * x / width + fy * y / height) + phase)
        channels.append(127.5 + 40 * value + rng.normal(0, 10, (height, width)))
    return np.stack(channels, axis=-1).round().clip(0, 255).astype(np.uint8)


def assert_promises(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """`harness detectors check` of a detector, registered or not."""
    from harness.engine import selfcheck

    torch.set_num_threads(1)
    monkeypatch.setattr(selfcheck, "make_detector", lambda name: detector)
    result = selfcheck.check_detector(detector.name)
    assert result.ok, result.faults
    assert len(result.passed) >= 9

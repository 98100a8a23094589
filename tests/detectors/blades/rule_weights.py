"""Checkpoints whose every tensor follows from its name, by golden/encoder_rule.md; also a script.

`python tests/detectors/blades/rule_weights.py GOLDEN_DIR OUT_DIR` writes OC.pth and BC.pth in the authors' format.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def rule_state(golden: Path, network: str, only: str = "") -> dict[str, Tensor]:
    """Tensors of `CLIP_EXIF_Net` or `BC_MLP` by name, float32; `only` keeps names that contain it."""
    keys = json.loads((golden / "encoder_keys.json").read_text())[network]
    shapes = {name: tuple(shape) for name, shape, _ in keys}
    floating = {name: dtype.startswith("float") for name, _, dtype in keys}
    state: dict[str, Tensor] = {}
    for i, name in enumerate(sorted(shapes)):
        if only in name:
            state[name] = _value(name, shapes, floating[name], 1000 + i)
    return state


def _value(name: str, shapes: dict[str, tuple[int, ...]], floating: bool, seed: int) -> Tensor:
    shape = shapes[name]
    module, _, last = name.rpartition(".")
    if not floating:
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
    return torch.from_numpy(value.astype(np.float32))


def main(golden: Path, out: Path) -> None:
    """Write OC.pth and BC.pth as the authors save them: a dictionary with `model`, and more beside it."""
    out.mkdir(parents=True, exist_ok=True)
    for network, file in (("CLIP_EXIF_Net", "OC.pth"), ("BC_MLP", "BC.pth")):
        torch.save({"model": rule_state(golden, network), "epoch": 19}, out / file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

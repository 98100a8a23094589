"""Trains a tiny encoder for three steps: `several_processes.py OUT KIND SIZE RANK PORT`; the first one writes OUT.

KIND: `joint`, or the bi-level step: `bilevel`, with the `difference`, or `lagged`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import distributed

from detectors.blades.bilevel_step import BladesBilevelStep
from detectors.blades.config import EncoderConfig
from detectors.blades.image_tower import BladesPreprocess
from detectors.blades.joint import BladesJointStep
from harness.api.protocol import Protocol
from harness.api.trainer import train
from harness.api.training import Recipe, TrainingImages, stream

TAGS = ("iso", "make")


def images() -> TrainingImages:
    counts = {"train": 16, "outer": 8, "select": 4}
    return TrainingImages(
        read=lambda split, i: stream(1, split, i).integers(0, 256, (32, 32, 3)).astype(np.uint8),
        labels={s: np.zeros(n, np.int8) for s, n in counts.items()},
        generators={s: [""] * n for s, n in counts.items()},
        digests={s: [f"{s}{i}" for i in range(n)] for s, n in counts.items()},
        preprocess=BladesPreprocess(32),
        tags={s: {tag: (np.arange(n) % 4 - 1).astype(np.int16) for tag in TAGS} for s, n in counts.items()},
        tag_levels=3,
    )


def main() -> None:
    out, kind, size, rank, port = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
    if size > 1:
        where = f"tcp://127.0.0.1:{port}"
        distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=size)
    settings = {"work_size": 32, "freeze_batchnorm": True}
    make = BladesJointStep if kind == "joint" else BladesBilevelStep
    if kind != "joint":
        settings |= {"lambda_lr": 1e-2, "lagged": kind == "lagged"}
    protocol = Protocol.named("paper", hypergradient="finite_difference" if kind == "difference" else "exact")
    step = make(EncoderConfig.tiny(), settings, images(), protocol)
    recipe = Recipe(
        recipe="t",
        detector="blades-oc",
        step="joint" if kind == "joint" else "bilevel",
        epochs=3,
        batch_size=16,
        lr=1e-3,
        seed=2,
    )
    told: list[str] = []
    result = train(step, recipe, threads=1, emit=lambda event: told.append(event.kind))
    if rank == 0:
        save_file(result.tensors, out / "tensors.safetensors")
        (out / "history.json").write_text(json.dumps([result.history, result.metrics]))
    (out / f"rank{rank}.json").write_text(json.dumps([result.history[-1].get("lambda"), len(told)]))
    if size > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""Bi-level steps of one kind in a process of its own.

`python one_bilevel.py KIND PRESET SIDE BATCH THREADS [OPTION=VALUE ...]`: KIND is `released`, `difference` or `exact`,
options are settings of the bi-level step. Answers each line on stdin with a line of JSON: `step` with the wall and
processor seconds of one step and its task losses, `profile` with the share of each of torch's operations in the
processor time of one, `end` with the largest resident memory in MiB.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml

from detectors.blades.bilevel_step import BilevelBatch, BladesBilevelStep
from detectors.blades.config import EncoderConfig
from detectors.blades.image_tower import BladesPreprocess
from detectors.blades.joint import JointBatch
from detectors.blades.losses import task_loss, task_losses
from detectors.blades.prompts import CONTEXT, compact_vocabulary, prompt_tokens
from detectors.blades.tasks import task_table
from harness.api.protocol import Protocol
from harness.api.training import Place, TrainingImages


def neighbour(name: str):
    """A module beside this file (the folder is no package)."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn_batch(batch: int, side: int, seed: int) -> JointBatch:
    """Noise with labels of all eleven tasks; the first half photographic."""
    generator = torch.Generator().manual_seed(seed)
    labels = {
        task.name: torch.randint(task.num_classes, (batch,), generator=generator) for task in task_table()
    }  # fmt: skip
    labels["face_coarse"] = (torch.arange(batch) >= (batch + 1) // 2).long()
    labels["face_fine"] = torch.randint(2, (batch, 3), generator=generator) * labels["face_coarse"][:, None]
    inputs = torch.randn(batch, 3, side, side, generator=generator)
    return JointBatch(inputs, labels, {}, tuple(str(i) for i in range(batch)))


def ours(kind: str, preset: str, batches: tuple[JointBatch, JointBatch], settings: dict) -> Callable[[], list[float]]:
    """Steps through the training step itself."""
    splits = ("train", "outer")
    images = TrainingImages(
        read=lambda split, i: np.zeros((8, 8, 3), np.uint8), labels={s: np.zeros(2, np.int8) for s in splits},
        generators={s: ["", ""] for s in splits}, digests={s: ["a", "b"] for s in splits},
        preprocess=BladesPreprocess(8),
    )  # fmt: skip
    method = "exact" if kind == "exact" else "finite_difference"
    protocol = Protocol.named("paper", hypergradient=method, virtual_weight_decay=1e-3)
    step = BladesBilevelStep(EncoderConfig.named(preset), settings, images, protocol)
    step.start(0, "cpu")
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-5, weight_decay=1e-3)
    place = Place("benchmark", 1, 1, 1e-5, 1e-5)
    return lambda: list(step.update(BilevelBatch(*batches), optimizer, place).losses.values())


def released(preset: str, batches: tuple[JointBatch, JointBatch]) -> Callable[[], list[float]]:
    """Steps of the released procedure on an equal encoder."""
    from detectors.blades.encoder import JointEncoder

    table, config = task_table(), EncoderConfig.named(preset)
    tokens = prompt_tokens(table, CONTEXT if config.context >= CONTEXT else config.context)
    if config.vocab_size <= tokens.max():
        tokens, _ = compact_vocabulary(tokens)
    model = JointEncoder.random(config, 0).train()
    step = neighbour("released_step").ReleasedStep(model, torch.ones(len(table)))
    inner, outer = batches
    ids = torch.from_numpy(tokens)

    def inner_losses(model: torch.nn.Module) -> torch.Tensor:
        return task_losses(model(inner.inputs, ids), inner.labels, table=table)

    def outer_loss(model: torch.nn.Module) -> torch.Tensor:
        return task_loss(table["face_coarse"], model(outer.inputs, ids), outer.labels)

    return lambda: step(inner_losses, outer_loss)


def profile(step: Callable[[], list[float]]) -> dict[str, float]:
    """Per cent of a step's processor time in each operation itself, those of one per cent and more."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        step()
    times = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    whole = sum(times.values())
    ranked = sorted(times.items(), key=lambda item: -item[1])
    return {name: round(100 * time / whole, 1) for name, time in ranked if time >= whole / 100}


def main(kind: str, preset: str, side: int, batch: int, threads: int, settings: dict) -> None:
    """Take steps as long as somebody asks for them."""
    torch.set_num_threads(threads)
    batches = (drawn_batch(batch, side, 1), drawn_batch(batch, side, 2))
    step = released(preset, batches) if kind == "released" else ours(kind, preset, batches, settings)
    for line in sys.stdin:
        if line.strip() == "end":
            print(json.dumps({"peak_mib": neighbour("one_detector").peak_mib()}), flush=True)
            return
        if line.strip() == "profile":
            print(json.dumps(profile(step)), flush=True)
            continue
        began, processor = time.perf_counter(), time.process_time()
        losses = step()
        seconds = {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - processor}
        print(json.dumps({**seconds, "losses": losses}), flush=True)


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[6:])
    options = {key: yaml.safe_load(value) for key, value in given.items()}
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), options)

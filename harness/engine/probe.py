"""``--batch-size auto``: the largest micro-batch a GPU holds, found once and said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from harness.api.errors import ConfigError
from harness.api.events import Event, Listener
from harness.engine.rows import PreparedRow

LARGEST = 512


def with_probed_batches(rows: Sequence[PreparedRow], device: str, emit: Listener) -> list[PreparedRow]:
    """Rows with the largest power of two that fits the device as batch size; on a CPU each detector's default.

    The input is one made image of 512 x 512 pixels through the row's own preprocess, repeated.

    Raises:
        ConfigError: the GPUs are those of other machines (see :func:`check_probe`).
    """
    if not device.startswith("cuda"):
        emit(Event("note", {"text": "--batch-size auto: on a CPU each detector keeps its default"}))
        return list(rows)
    check_probe(device)
    return [replace(row, batch_size=_probe(row, device, emit)) if _can(row) else row for row in rows]


def check_probe(device: str) -> None:
    """Refuse to measure what is not here: under Ray this machine needs no GPU.

    Raises:
        ConfigError: there is no GPU to measure on.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            "--batch-size auto measures on a GPU of this machine, which has none", where=f"--device {device}",
            fix="state a number (--batch-size 64), leave it out, or start the run on a machine with such a GPU",
        )  # fmt: skip


def _can(row: PreparedRow) -> bool:
    ready = all(slot in row.weights for slot in row.chain.extractor.slots)
    return row.missing is None and row.batch_size is None and ready and not row.chain.transforms


def _probe(row: PreparedRow, device: str, emit: Listener) -> int:
    import torch

    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    tensor = row.chain.preprocess(pixels)
    run = row.chain.extractor.load(row.weights, device)
    size = row.chain.extractor.micro_batch
    while size > 1 and size < LARGEST:
        try:
            with torch.no_grad():
                run(tensor.expand(2 * size, *tensor.shape).to(device))
        except torch.cuda.OutOfMemoryError:
            break
        size *= 2
    torch.cuda.empty_cache()
    emit(Event("note", {"text": f"--batch-size auto: {row.name} runs {size} images a forward"}))
    return size

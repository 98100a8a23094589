"""One training as a process is given it, whoever started the process: images, step, trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.api.contract import Transform, Weights
from harness.api.errors import ConfigError, WeightsError
from harness.api.events import Event, Listener, silent
from harness.api.training import Recipe, TrainingImages
from harness.data.training.cache import FOLDER, cached
from harness.engine.training_data import ReadRow

if TYPE_CHECKING:
    from harness.api.trainer import Asked, TrainResult
    from harness.engine.recipes import RecipeWork

TRAINING = "training"
"""Folder of the store that holds checkpoints of trainings under way."""


@dataclass(frozen=True)
class Job:
    """What a process needs to take part in a training; can be sent to another process.

    Attributes:
        work: the recipe with its images.
        read: gives the uint8 pixels of a manifest row, with the run's edits applied.
        store: root of the store; every process must see it.
        every: optimiser steps between two checkpoints.
        threads: of this training in all; a process takes its share.
    """

    work: RecipeWork
    read: ReadRow
    store: Path
    every: int
    threads: int

    @property
    def processes(self) -> int:
        """How many train together."""
        return self.work.recipe.processes

    @property
    def threads_each(self) -> int:
        """Threads of one process."""
        return threads_each(self.work.recipe, self.threads)

    @property
    def checkpoints(self) -> Path:
        """Folder of this training's checkpoints."""
        return self.store / TRAINING / self.work.key

    def images(self, emit: Listener = silent) -> tuple[TrainingImages, dict[str, Any]]:
        """The images, decoded once into the store where there is room, and the weights that the step starts from.

        Where they are not decoded yet, ``progress`` says how many are.
        """
        from harness.engine.inline import pin_numerics

        stage = f"recipe {self.work.recipe.recipe}: {'making maps' if self.work.transforms else 'decoding'}"

        def show(done: int, total: int) -> None:
            emit(Event("progress", {"stage": stage, "done": done, "total": total, "unit": "images"}))

        images, start = self.work.source.images(self.work.preprocess, self.read), dict(self.work.start)
        made_by: Any = None
        if self.work.transforms:
            pin_numerics(self.threads_each)
            images = mapped(images, self.work.transforms, start, self.work.device)
            for slot in (slot for t in self.work.transforms for slot in t.slots):
                start.pop(slot)
            made_by = self.work.key  # maps follow from the transform and its weights, which are in the recipe's key
        edits = {"edits": self.work.edits, "maps": made_by}
        images = cached(images, self.store / FOLDER, edits=edits, progress=show)
        return images, start

    def train(self, device: str, emit: Listener, asked: Asked | None = None) -> TrainResult:
        """Train in this process; where `torch.distributed` runs, together with the others that do the same.

        Raises:
            TrainingError, ConfigError, Interrupted, StoreError: as ``harness.api.trainer.train``.
        """
        from harness.api.checkpoint import Checkpoints
        from harness.api.trainer import nobody, train

        images, start = self.images(emit)
        work = self.work
        step = work.extractor.train_step(work.recipe.settings, images, work.protocol, work.recipe.step)
        step.begin_with(start)
        return train(
            step, work.recipe, emit=emit, device=device, threads=self.threads_each,
            checkpoints=Checkpoints(self.checkpoints, self.every), asked=asked or nobody,
        )  # fmt: skip


def files_of(work: RecipeWork) -> list[Path]:
    """What every machine must see besides the store: an image as an example, and the files that it starts from."""
    return [work.source.example(), *(w.path for w in work.start.values() if w.path is not None)]


def threads_each(recipe: Recipe, threads: int) -> int:
    """Threads of one of a recipe's processes, which share ``threads``; at least 1."""
    return max(1, threads // recipe.processes)


def mapped(images: TrainingImages, transforms: Sequence[Transform], weights: Weights, device: str) -> TrainingImages:
    """Training images of a detector that reads maps: ``read`` gives the last transform's map ``[H, W, C]`` uint8 of the
    preprocessed image, and no preprocess is left to do.

    Raises:
        ConfigError: maps that are not 8 bits.
        WeightsError: a transform's weights are not among the recipe's ``start``.
    """
    from harness.api.preprocess import to_tensor

    absent = [slot for t in transforms for slot in t.slots if slot not in weights]
    if absent:
        fix = f"name its file in the recipe: start: {{{absent[0]}: FILE}}"
        raise WeightsError("this detector trains on maps, whose transform needs weights", f"slot {absent[0]}", fix)
    loaded = [t.load(weights, device) for t in transforms]

    def read(split: str, i: int) -> np.ndarray:
        value = images.preprocess(images.read(split, i))[None]
        for function in loaded:
            value = function(value)
        made = value[0].permute(1, 2, 0).contiguous().cpu().numpy()
        if made.dtype != np.uint8:
            raise ConfigError(f"training on maps of {made.dtype} is not here", fix="maps of 8 bits are")
        return np.asarray(made)

    return replace(images, read=read, preprocess=to_tensor)

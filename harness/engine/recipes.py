"""Training stages of a plan: a recipe's key, its images, and its product in the store."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.api.contract import Chain, Extractor, Preprocess, Transform, Weights
from harness.api.errors import ConfigError, StoreError, WeightsError
from harness.api.events import Event, Listener
from harness.api.protocol import Protocol
from harness.api.registry import make_detector
from harness.api.training import Recipe, TrainingImages
from harness.api.weights import ResolvedWeights, file_digest
from harness.data.training.cache import FOLDER, cached
from harness.engine.keys import Numerics, stage_identity, stage_key
from harness.engine.rows import recipe_protocol, start_weights
from harness.engine.source import source_digest
from harness.engine.training_data import ReadRow, TrainingSource
from harness.results.store import Store

TRAINING = "training"  # folder of the store that holds checkpoints of trainings under way


@dataclass(frozen=True)
class RecipeWork:
    """A recipe with its key, the extractor it trains, and the images it may see."""

    key: str
    recipe: Recipe
    extractor: Extractor
    preprocess: Preprocess
    protocol: Protocol
    description: Mapping[str, Any]
    source: TrainingSource
    edits: Mapping[str, Any]
    device: str
    start: Weights
    transforms: tuple[Transform, ...] = ()


def recipe_work(
    recipe: Recipe,
    source: TrainingSource,
    edits: Mapping[str, Any],
    threads: int,
    device: str = "cpu",
    weights_root: Path = Path("pretrained"),
) -> RecipeWork:
    """The training stage of a recipe on some images. Its key holds the recipe (less its name and comments), the
    source of the extractor, of its step and of the trainer, the digests of the images and of their annotations, the
    digests of the files it starts from, the edits and the numerics.

    Raises:
        ProtocolError: the recipe's extractor cannot be trained.
        WeightsError: a file it starts from is not there.
    """
    import harness.api.trainer as trainer

    protocol, start = recipe_protocol(recipe), start_weights(recipe, weights_root)
    chain = Chain.of(make_detector(recipe.detector, recipe.options, protocol))
    settled = recipe.model_dump(mode="json", exclude={"recipe", "protocol", "start"})
    identity = {
        "recipe": settled,
        "protocol": protocol.model_dump(mode="json"),
        "extractor": stage_identity(chain.extractor, dict.fromkeys(chain.extractor.slots, "trained")),
        "preprocess": stage_identity(chain.preprocess, {}),
        "transforms": [
            stage_identity(t, {s: start[s].identity if s in start else "absent" for s in t.slots})
            for t in chain.transforms
        ],
        "step": source_digest(chain.extractor.step_class(recipe.step)),
        "trainer": source_digest(trainer.TrainResult),
        "start": {slot: weights.identity for slot, weights in start.items()},
    }
    numerics = Numerics.here(device, recipe.batch_size, threads)
    key, description = stage_key(
        "recipe", identity, inputs=source.identity(), numerics=numerics, edits=edits, seed=recipe.seed
    )
    made = (chain.extractor, chain.preprocess, protocol, description)
    return RecipeWork(key, recipe, *made, source, edits, device, start, tuple(chain.transforms))


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


def trained_weights(work: RecipeWork, store: Store) -> ResolvedWeights | None:
    """The recipe's product, if the store has it whole; None if it must be trained."""
    entry = store.entry("recipes", work.key)
    if entry is None:
        return None
    path = store.blob(str(entry["sha256"]))
    if not path.is_file() or file_digest(path) != path.stem:
        return None
    return ResolvedWeights("recipe", f"recipe:{work.key}", path=path, label=f"recipe {work.recipe.recipe}")


def train_recipe(
    work: RecipeWork, store: Store, read: ReadRow, emit: Listener, threads: int, every: int = 500
) -> ResolvedWeights:
    """Train a recipe unless the store has it; a lock keeps two runs from training one recipe twice.

    A training that was killed goes on from its last checkpoint (``every`` so many steps), which lies in the store
    until the result does. The stored entry has history and metrics, and when and how it ran (``training_log``; what
    a training folder is made of). ``read(row)`` gives the uint8 pixels of a manifest row, with the run's edits applied.

    Raises:
        TrainingError, Interrupted: as ``harness.api.trainer.train``.
    """
    from safetensors.torch import save

    from harness.api.checkpoint import Checkpoints
    from harness.api.trainer import train
    from harness.engine.training_log import TrainingLog

    with store.lock(f"recipe-{work.key}"):
        done = trained_weights(work, store)
        if done is not None:
            return done
        name, folder = work.recipe.recipe, store.root / TRAINING / work.key
        for note in work.source.notes:
            emit(Event("note", {"text": f"recipe {name}: {note}"}))
        images, start = work.source.images(work.preprocess, read), dict(work.start)
        made_by: Any = None
        if work.transforms:
            images = mapped(images, work.transforms, start, work.device)
            for slot in (slot for t in work.transforms for slot in t.slots):
                start.pop(slot)
            made_by = work.key  # maps follow from the transform and its weights, which are in the recipe's key
        images = cached(images, store.root / FOLDER, edits={"edits": work.edits, "maps": made_by})
        emit(Event("stage_start", {"stage": f"train {name}", "total": work.recipe.epochs}))
        step = work.extractor.train_step(work.recipe.settings, images, work.protocol, work.recipe.step)
        step.begin_with(start)
        log = TrainingLog(folder, emit)
        result = train(
            step, work.recipe, emit=log, device=work.device, threads=threads, checkpoints=Checkpoints(folder, every)
        )
        sha = store.put_blob(save({k: v.contiguous() for k, v in result.tensors.items()}))
        store.put_entry("recipes", work.key, {
            "sha256": sha, "recipe": work.recipe.model_dump(mode="json"), "description": work.description,
            "metrics": result.metrics, "history": result.history, **log.document(work.device, threads),
        }, replace=True)  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)
        emit(Event("stage_end", {"stage": f"train {name}", "sha256": sha, "metrics": result.metrics}))
    final = trained_weights(work, store)
    if final is None:
        raise StoreError("a trained recipe did not reach the store", where=store.root)
    return final

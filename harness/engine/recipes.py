"""Training stages of a plan: a recipe's key, its images, and its product in the store."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.api.contract import Chain, Extractor, Preprocess
from harness.api.errors import StoreError
from harness.api.events import Event, Listener
from harness.api.protocol import Protocol
from harness.api.registry import make_detector
from harness.api.training import Recipe
from harness.api.weights import ResolvedWeights, file_digest
from harness.data.training.cache import cached
from harness.engine.keys import Numerics, stage_identity, stage_key
from harness.engine.rows import recipe_protocol
from harness.engine.source import source_digest
from harness.engine.training_data import ReadRow, TrainingSource
from harness.results.store import Store

if TYPE_CHECKING:
    pass

PIXELS = "pixels"  # folder of the store that holds caches of decoded images
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


def recipe_work(
    recipe: Recipe, source: TrainingSource, edits: Mapping[str, Any], threads: int, device: str = "cpu"
) -> RecipeWork:
    """The training stage of a recipe on some images. Its key holds the recipe (less its name and comments), the
    source of the extractor, of its step and of the trainer, the digests of the images and of their annotations, the
    edits and the numerics.

    Raises:
        ProtocolError: the recipe's extractor cannot be trained.
    """
    import harness.api.trainer as trainer

    protocol = recipe_protocol(recipe)
    chain = Chain.of(make_detector(recipe.detector, recipe.options, protocol))
    settled = recipe.model_dump(mode="json", exclude={"recipe", "protocol"})
    identity = {
        "recipe": settled,
        "protocol": protocol.model_dump(mode="json"),
        "extractor": stage_identity(chain.extractor, dict.fromkeys(chain.extractor.slots, "trained")),
        "preprocess": stage_identity(chain.preprocess, {}),
        "step": source_digest(chain.extractor.step_class(recipe.step)),
        "trainer": source_digest(trainer.TrainResult),
    }
    numerics = Numerics.here(device, recipe.batch_size, threads)
    key, description = stage_key(
        "recipe", identity, inputs=source.identity(), numerics=numerics, edits=edits, seed=recipe.seed
    )
    return RecipeWork(key, recipe, chain.extractor, chain.preprocess, protocol, description, source, edits, device)


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
        images = cached(work.source.images(work.preprocess, read), store.root / PIXELS, edits=work.edits)
        emit(Event("stage_start", {"stage": f"train {name}", "total": work.recipe.epochs}))
        step = work.extractor.train_step(work.recipe.settings, images, work.protocol, work.recipe.step)
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

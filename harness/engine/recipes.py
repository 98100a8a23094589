"""Training stages of a plan: a recipe's key, its images, and its product in the store."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.api.contract import Chain, Extractor, Preprocess, Transform, Weights
from harness.api.errors import StoreError
from harness.api.events import Event, Listener
from harness.api.protocol import Protocol
from harness.api.registry import make_detector
from harness.api.training import Recipe
from harness.api.weights import ResolvedWeights, file_digest
from harness.engine.bundled import absolute
from harness.engine.keys import Numerics, stage_identity, stage_key
from harness.engine.origins import Origin, read_origin, together
from harness.engine.processes import Launcher, Torchrun, launcher_of
from harness.engine.rows import recipe_protocol, start_weights
from harness.engine.source import target_digest
from harness.engine.training_data import ReadRow, TrainingSource
from harness.engine.training_job import Job, threads_each
from harness.results.store import Store

TRAINER = "harness.api.trainer:train"
"""What drives every training."""


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
    digests of the files it starts from, the edits and the numerics. ``threads`` are shared by its processes.

    Raises:
        ProtocolError: the recipe's extractor cannot be trained.
        WeightsError: a file it starts from is not there.
    """
    protocol, start = recipe_protocol(recipe), absolute(start_weights(recipe, weights_root))
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
        "step": target_digest(chain.extractor.step_target(recipe.step)),
        "trainer": target_digest(TRAINER),
        "start": {slot: weights.identity for slot, weights in start.items()},
    }
    numerics = Numerics.here(device, recipe.batch_size, threads_each(recipe, threads))
    key, description = stage_key(
        "recipe", identity, inputs=source.identity(), numerics=numerics, edits=edits, seed=recipe.seed
    )
    made = (chain.extractor, chain.preprocess, protocol, description)
    return RecipeWork(key, recipe, *made, source, edits, device, start, tuple(chain.transforms))


def trained_weights(work: RecipeWork, store: Store) -> ResolvedWeights | None:
    """The recipe's product, if the store has it whole; None if it must be trained."""
    entry = store.entry("recipes", work.key)
    if entry is None:
        return None
    path = store.blob(str(entry["sha256"]))
    if not path.is_file() or file_digest(path) != path.stem:
        return None
    return ResolvedWeights("recipe", f"recipe:{work.key}", path=path, label=f"recipe {work.recipe.recipe}")


def origin_of(work: RecipeWork) -> Origin:
    """What the recipe's product says of itself; images that the files it starts from were trained on count too."""
    before = [read_origin(weights.path) for weights in work.start.values() if weights.path is not None]
    sets = [origin.generators for origin in before if origin is not None]
    return Origin(work.key, together([work.source.generated(), *sets]))


def train_recipe(
    work: RecipeWork,
    store: Store,
    read: ReadRow,
    emit: Listener,
    threads: int,
    every: int = 500,
    launcher: Launcher | None = None,
) -> ResolvedWeights:
    """Train a recipe unless the store has it; a lock keeps two runs from training one recipe twice.

    A training that was killed goes on from its last checkpoint (``every``: steps; or a minute), which lies in the store
    until the result does. The stored entry has history and metrics, and when and how it ran (``training_log``; what
    a training folder is made of). ``read(row)`` gives the uint8 pixels of a manifest row, with the run's edits applied.
    ``launcher`` says who starts the recipe's processes (``harness.engine.processes``), by default this one; they share
    ``threads``. Under torchrun every process calls this: the first one alone asks the store and writes to it.

    Raises:
        TrainingError, Interrupted: as ``harness.api.trainer.train``.
    """
    start = launcher or launcher_of(work.recipe)
    job = Job(work, read, store.root.resolve(), every, threads)
    if isinstance(start, Torchrun) and start.rank > 0:
        if start.hears(job):
            start(job, emit)
        start.waits()
        return _from_store(work, store)
    with store.lock(f"recipe-{work.key}"):
        found = trained_weights(work, store)
        if isinstance(start, Torchrun):
            start.says(job, found is None)
        if found is None:
            _trained(job, store, emit, start)
    if isinstance(start, Torchrun):
        start.waits()
    return found or _from_store(work, store)


def _trained(job: Job, store: Store, emit: Listener, start: Launcher) -> None:
    """Train and put into the store what came of it."""
    from safetensors.torch import save

    from harness.engine.training_log import TrainingLog

    work, name = job.work, job.work.recipe.recipe
    origin = origin_of(work)
    for note in work.source.notes:
        emit(Event("note", {"text": f"recipe {name}: {note}"}))
    emit(Event("stage_start", {"stage": f"train {name}", "total": work.recipe.epochs}))
    if work.recipe.processes > 1:
        job.images(emit)  # decoded here once, for all processes
    log = TrainingLog(job.checkpoints, emit)
    result = start(job, log)
    tensors = {k: v.contiguous() for k, v in result.tensors.items()}
    sha = store.put_blob(save(tensors, origin.metadata()))
    store.put_entry("recipes", work.key, {
        "sha256": sha, "recipe": work.recipe.model_dump(mode="json"), "description": work.description,
        "metrics": result.metrics, "history": result.history, **log.document(work.device, job.threads_each),
    }, replace=True)  # fmt: skip
    shutil.rmtree(job.checkpoints, ignore_errors=True)
    emit(Event("stage_end", {"stage": f"train {name}", "sha256": sha, "metrics": result.metrics}))


def _from_store(work: RecipeWork, store: Store) -> ResolvedWeights:
    found = trained_weights(work, store)
    if found is None:
        raise StoreError("a trained recipe did not reach the store", where=store.root)
    return found

"""Training stages of a plan: a recipe's key, its images, and its product in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.api.contract import Chain, Extractor, Preprocess
from harness.api.errors import DataError, StoreError
from harness.api.events import Event, Listener
from harness.api.protocol import Protocol
from harness.api.registry import make_detector
from harness.api.training import Recipe, TrainingImages
from harness.api.weights import ResolvedWeights, file_digest
from harness.data.training.cache import cached
from harness.data.training.sidecars import Annotations, read_annotations
from harness.engine.keys import Numerics, set_digest, stage_identity, stage_key
from harness.engine.rows import recipe_protocol
from harness.engine.source import source_digest
from harness.results.digests import digests_array
from harness.results.store import Store

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "outer", "select")
PIXELS = "pixels"  # folder of the store that holds caches of decoded images


@dataclass(frozen=True)
class RecipeWork:
    """A recipe with its key, the extractor it trains, and the manifest rows it may see by split."""

    key: str
    recipe: Recipe
    extractor: Extractor
    preprocess: Preprocess
    protocol: Protocol
    description: Mapping[str, Any]
    rows: Mapping[str, np.ndarray]
    annotations: Mapping[str, Annotations]
    edits: Mapping[str, Any]


def _rows(manifest: pd.DataFrame, dataset: str, recipe: Recipe, split: str, count: int) -> np.ndarray:
    label, name = manifest["label"], manifest["generator"]
    here = manifest["split"] == split
    rows = np.flatnonzero((here & (label == 0) & (manifest["dataset"] == dataset)).to_numpy())
    rows = rows[np.argsort(manifest["order"].to_numpy()[rows], kind="stable")][:count]
    if split == "train" and recipe.max_images is not None:
        rows = rows[: recipe.max_images]
    made = np.flatnonzero((here & (label == 1) & name.isin(list(recipe.generators))).to_numpy())
    return np.concatenate([rows, made[np.argsort(manifest["sha256"].to_numpy()[made])]])


def _annotations(
    root: Path, manifest: pd.DataFrame, dataset: str, rows: Mapping[str, np.ndarray], edits: Mapping[str, Any]
) -> dict[str, Annotations]:
    """What the dataset's folder says of the photographs of each split; landmarks only of images as they are stored."""
    everything = np.unique(np.concatenate([*rows.values()]))
    table = manifest.iloc[everything]
    sizes = list(zip(table["width"].tolist(), table["height"].tolist(), strict=True))
    known = read_annotations(root / dataset, table["path"].tolist(), sizes)
    if edits.get("rotate") and known.points is not None:
        notes = (*known.notes, "landmarks are not used: they refer to images before rotation")
        known = replace(known, points=None, notes=notes)
    return {split: known.take(np.searchsorted(everything, part)) for split, part in rows.items()}


def recipe_work(
    recipe: Recipe, manifest: pd.DataFrame, root: Path, dataset: str, count: int, edits: Mapping[str, Any], threads: int
) -> RecipeWork:
    """The training stage of a recipe on this data. Its key holds the recipe (less its name and comments), the
    source of the extractor, of its step and of the trainer, the digests of the images and of their annotations, the
    edits and the numerics.

    Raises:
        DataError: no photograph to train on.
        ProtocolError: the recipe's extractor cannot be trained.
    """
    import harness.api.trainer as trainer

    protocol = recipe_protocol(recipe)
    chain = Chain.of(make_detector(recipe.detector, recipe.options, protocol))
    rows = {split: _rows(manifest, dataset, recipe, split, count) for split in SPLITS}
    if len(rows["train"]) == 0:
        raise DataError(f"recipe {recipe.recipe!r}: dataset {dataset!r} has no `train` photographs to train on")
    digests = digests_array(manifest["sha256"])
    labels = manifest["label"].to_numpy()
    names = manifest["generator"].to_numpy()
    sets = [set_digest(digests[r], labels[r], [str(n) for n in names[r]]) for r in rows.values()]
    annotations = _annotations(root, manifest, dataset, rows, edits)
    sets += [known.digest() for known in annotations.values()]
    settled = recipe.model_dump(mode="json", exclude={"recipe", "protocol"})
    identity = {
        "recipe": settled,
        "protocol": protocol.model_dump(mode="json"),
        "extractor": stage_identity(chain.extractor, dict.fromkeys(chain.extractor.slots, "trained")),
        "preprocess": stage_identity(chain.preprocess, {}),
        "step": source_digest(chain.extractor.step_class(recipe.step)),
        "trainer": source_digest(trainer.TrainResult),
    }
    numerics = Numerics.here("cpu", recipe.batch_size, threads)
    key, description = stage_key("recipe", identity, inputs=sets, numerics=numerics, edits=edits, seed=recipe.seed)
    return RecipeWork(key, recipe, chain.extractor, chain.preprocess, protocol, description, rows, annotations, edits)


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
    work: RecipeWork,
    store: Store,
    read: Callable[[int], np.ndarray],
    manifest: pd.DataFrame,
    emit: Listener,
    threads: int,
) -> ResolvedWeights:
    """Train a recipe unless the store has it; a lock keeps two runs from training one recipe twice.

    ``read(row)`` gives the uint8 pixels of a manifest row, with the run's edits applied.
    """
    from safetensors.torch import save

    from harness.api.trainer import train

    with store.lock(f"recipe-{work.key}"):
        done = trained_weights(work, store)
        if done is not None:
            return done
        images = TrainingImages(
            read=lambda split, i: read(int(work.rows[split][i])),
            labels={s: manifest["label"].to_numpy()[r].astype(np.int8) for s, r in work.rows.items()},
            generators={s: [str(g) for g in manifest["generator"].to_numpy()[r]] for s, r in work.rows.items()},
            digests={s: [str(d) for d in manifest["sha256"].to_numpy()[r]] for s, r in work.rows.items()},
            preprocess=work.preprocess,
            tags={s: known.tags for s, known in work.annotations.items()},
            tag_levels=max(known.tag_levels for known in work.annotations.values()),
            landmarks=lambda split, i: work.annotations[split].landmarks(i),
        )
        for note in work.annotations["train"].notes:
            emit(Event("note", {"text": f"recipe {work.recipe.recipe}: {note}"}))
        images = cached(images, store.root / PIXELS, edits=work.edits)
        emit(Event("stage_start", {"stage": f"train {work.recipe.recipe}", "total": work.recipe.epochs}))
        step = work.extractor.train_step(work.recipe.settings, images, work.protocol, work.recipe.step)
        result = train(step, work.recipe, emit=emit, threads=threads)
        sha = store.put_blob(save({k: v.contiguous() for k, v in result.tensors.items()}))
        store.put_entry("recipes", work.key, {
            "sha256": sha, "recipe": work.recipe.model_dump(mode="json"), "description": work.description,
            "metrics": result.metrics, "history": result.history,
        }, replace=True)  # fmt: skip
        emit(Event("stage_end", {"stage": f"train {work.recipe.recipe}", "sha256": sha, "metrics": result.metrics}))
    final = trained_weights(work, store)
    if final is None:
        raise StoreError("a trained recipe did not reach the store", where=store.root)
    return final

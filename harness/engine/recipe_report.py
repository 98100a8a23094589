"""What a trained recipe achieves on the split `report`, which training never sees: computed once, kept in the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.api.errors import StoreError
from harness.api.events import Event, Listener
from harness.api.training import TrainingImages
from harness.engine.inline import pin_numerics
from harness.engine.keys import stage_key
from harness.engine.recipes import RecipeWork, trained_weights
from harness.engine.training_data import REPORT, ReadRow
from harness.engine.training_job import Job
from harness.results.store import Store

KIND = "reports"
"""Kind of the store's entries that hold them."""


def report_recipe(
    work: RecipeWork, store: Store, read: ReadRow, emit: Listener, threads: int, device: str
) -> dict[str, Any]:
    """The report of a recipe that the store has: JSON values ``split``, ``sha256`` of the weights, ``inputs`` (digests
    of the images and annotations) and ``rows``, one a number (``TrainStep.report``); no rows where the step measures
    nothing.

    The key of the entry holds the recipe's key (which holds the source of the step), the weights and the digests of
    the images: a second call computes nothing.

    Args:
        read: gives the uint8 pixels of a manifest row, as for training.
        threads: intra-op threads, pinned here; device: a torch device of this machine.

    Raises:
        StoreError: the store does not have the trained recipe.
        DataError: no photograph is in the split.
    """
    made = trained_weights(work, store)
    if made is None or made.path is None:
        raise StoreError(f"recipe {work.recipe.recipe} is not in the store", where=store.root, fix="train it first")
    source = work.source.held_out()
    inputs, sha = source.identity(), made.path.stem
    key, _ = stage_key("report", {"recipe": work.key, "weights": sha}, inputs=inputs, numerics=None, edits=work.edits)
    stored = store.entry(KIND, key)
    if stored is not None:
        return stored
    pin_numerics(threads)
    images, _ = Job(replace(work, source=source), read, store.root.resolve(), 1, threads).images(emit)
    stage = f"report on {work.recipe.recipe}"
    emit(Event("stage_start", {"stage": stage, "total": images.count(REPORT)}))
    found = {"split": REPORT, "sha256": sha, "inputs": inputs, "rows": _rows(work, made.path, images, read, device)}
    store.put_entry(KIND, key, found)
    emit(Event("stage_end", {"stage": stage}))
    return found


def _rows(work: RecipeWork, weights: Path, images: TrainingImages, read: ReadRow, device: str) -> list[dict[str, Any]]:
    """The step's measures; the step is made from the images it was trained on, of which it reads no pixel here."""
    from safetensors.torch import load_file

    known = work.source.images(work.preprocess, read)
    step = work.extractor.train_step(work.recipe.settings, known, work.protocol, work.recipe.step)
    step.start(work.recipe.seed, device)  # brings the step onto its device; the weights it draws play no part
    return step.report(load_file(weights), images, REPORT)

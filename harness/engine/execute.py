"""Executes a plan: recipes, item stages, heads, thresholds, scores. A row that fails is recorded, the rest go on."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.api.errors import ConfigError, DataError, HarnessError, StoreError
from harness.api.events import Event, Listener
from harness.engine.bundled import describe_weights
from harness.engine.fitting import fitted_head, score_row, threshold_of
from harness.engine.images import Reader
from harness.engine.inline import LostError, pin_numerics, run_stage
from harness.engine.plan import ItemStage, Plan, RowPlan
from harness.engine.recipes import train_recipe
from harness.results.files import to_json, write_atomic
from harness.results.store import Store, write_head

if TYPE_CHECKING:
    import pandas as pd

FEW_CALIBRATION = 100
"""Calibration photographs below which a quantile of 5 % hangs on a handful of scores, and the run says so."""

STOPS = (DataError, StoreError)
"""Errors that end a run: they are about the images or the disk, not about one detector."""


@dataclass
class Outcome:
    """What execution gave: score tables, failures by row (message and traceback), images computed by stage."""

    scores: list[pd.DataFrame] = field(default_factory=list)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)


def check_disk(plan: Plan, store: Store) -> None:
    """Refuse to start when the results will not fit on the store's disk.

    Raises:
        StoreError: with the numbers.
    """
    import shutil

    need = sum(len(s.missing) * s.bytes_each for s in plan.stages.values())
    free = shutil.disk_usage(store.root).free
    if need * 1.05 + (64 << 20) > free:
        raise StoreError(
            f"the results need {need / 1e9:.2f} GB and the store's disk has {free / 1e9:.2f} GB free", where=store.root,
            fix="free space, or name a store on another disk with --store",
        )  # fmt: skip


def check_weights(plan: Plan) -> None:
    """Load the weights files of every stage with work to do, once, before anything is computed.

    Raises:
        WeightsError: a file does not fit its network; the row is named.
    """
    for stage in plan.stages.values():
        files = [w for w in stage.weights.values() if w.kind == "file"]
        if not files or len(stage.missing) == 0:
            continue
        try:
            stage.stage.load(stage.weights, "cpu")
        except HarnessError as error:
            where = f"{error.where or files[0].path} (row {', '.join(dict.fromkeys(stage.rows))})"
            raise type(error)(error.what, where=where, fix=error.fix) from error
        except Exception:  # a fault of the plugin, not of the file: recorded for its rows when their turn comes
            continue


def rows_lookup(stage: ItemStage, plan: Plan) -> Callable[[np.ndarray], list[int]]:
    """A function from item digests of a stage to manifest rows."""
    items = next(p.items for p in plan.rows if any(s.key == stage.key for s in p.stages))
    order = np.argsort(items, kind="stable")
    ranked = items[order]

    def rows_of(wanted: np.ndarray) -> list[int]:
        return [int(i) for i in order[np.searchsorted(ranked, wanted)]]

    return rows_of


class Executor:
    """Runs a plan inline, telling ``emit`` what happens."""

    def __init__(self, plan: Plan, store: Store, reader: Reader, emit: Listener, workers: int) -> None:
        self.plan, self.store, self.reader, self.emit, self.workers = plan, store, reader, emit, workers
        self.out = Outcome()

    def _fail(self, rows: list[str], error: Exception) -> None:
        text = str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
        for row in dict.fromkeys(rows):
            self.out.failures[row] = {"message": text, "traceback": trace}
            self.emit(Event("warning", {"text": f"row {row} failed: {text}"}))

    def _train(self) -> None:
        for work in self.plan.recipes.values():
            stages = [
                s for s in self.plan.stages.values() for w in s.weights.values() if w.identity == f"recipe:{work.key}"
            ]
            try:
                pin_numerics(self.plan.settings.threads)
                made = train_recipe(work, self.store, self.reader.pixels, self.emit, self.plan.settings.threads)
            except STOPS:
                raise
            except Exception as error:
                self._fail([row for stage in stages for row in stage.rows], error)
                continue
            for stage in stages:
                stage.weights = {k: made if w.identity == made.identity else w for k, w in stage.weights.items()}
            for row in self.plan.rows:
                head = row.head
                head.weights = {k: made if w.identity == made.identity else w for k, w in head.weights.items()}
            entry = self.store.entry("recipes", work.key) or {}
            self.out.recipes[work.recipe.recipe] = {
                "key": work.key, "sha256": entry.get("sha256"), "metrics": entry.get("metrics", {}),
            }  # fmt: skip

    def _stage(self, stage: ItemStage) -> None:
        settings = self.plan.settings
        done = run_stage(
            stage, rows_lookup(stage, self.plan), self.reader, self.store, device=settings.device,
            threads=settings.threads, workers=self.workers, emit=self.emit,
        )  # fmt: skip
        self.out.computed[stage.key] = self.out.computed.get(stage.key, 0) + done

    def _items(self) -> None:
        for stage in self.plan.stages.values():
            if all(row in self.out.failures for row in stage.rows):
                continue
            if stage.source is not None and all(r in self.out.failures for r in stage.source.rows):
                continue
            try:
                try:
                    self._stage(stage)
                except LostError:
                    if stage.source is None:
                        raise
                    self._stage(stage.source)
                    self._stage(stage)
            except STOPS:
                raise
            except Exception as error:
                self._fail(stage.rows, error)

    def _score(self, row: RowPlan, fitted_root: Path) -> None:
        head = fitted_head(row.head, self.plan, row, self.store, self.emit)
        threshold = threshold_of(row, head, self.store)
        self.out.scores.append(score_row(self.plan, row, head, threshold, self.store))
        self.out.thresholds[row.row.name] = threshold
        calibrated = len(row.calibration_rows)
        few = [f"its threshold rests on {calibrated} photographs only"] if 0 < calibrated < FEW_CALIBRATION else []
        for warning in [*row.row.detector.warnings(len(row.head.fit_rows)), *few]:
            self.out.warnings.append(f"{row.row.name}: {warning}")
            self.emit(Event("warning", {"text": f"{row.row.name}: {warning}"}))
        save_fitted(fitted_root / row.row.name, row, self.plan, self.store, threshold)

    def run(self, fitted_root: Path) -> Outcome:
        """Everything; what each row fitted is written under ``fitted_root``.

        Raises:
            DataError, StoreError: an image or the disk stopped the run; what was computed is in the store.
        """
        self._train()
        self._items()
        for row in self.plan.rows:
            if row.row.name in self.out.failures:
                continue
            try:
                try:
                    self._score(row, fitted_root)
                except LostError:
                    self._items()
                    self._score(row, fitted_root)
            except STOPS:
                raise
            except Exception as error:
                self._fail([row.row.name], error)
        return self.out


def save_fitted(folder: Path, row: RowPlan, plan: Plan, store: Store, threshold: float) -> None:
    """Write a fitted detector: configuration, weights by digest, fitted head, threshold, digests of the sets used."""
    stored = store.head(row.head.key)
    if stored is None:
        raise StoreError("a fitted head is gone from the store", where=row.head.key, fix="run again")
    write_head(folder / "head", *stored)
    sha = plan.manifest["sha256"].to_numpy()
    resolved = {slot: w for stage in row.stages for slot, w in stage.weights.items()} | dict(row.head.weights)
    weights = {slot: describe_weights(folder, slot, w) for slot, w in resolved.items()}
    document = {
        "detector": row.row.detector.name,
        "row": row.row.name,
        "options": row.row.detector.options.model_dump(mode="json"),
        "protocol": row.row.detector.protocol.model_dump(mode="json"),
        "weights": weights,
        "threshold": threshold,
        "keys": {"features": row.extractor.key, "head": row.head.key, "threshold": row.threshold_key},
        "fit_images": len(row.head.fit_rows),
        "fit_set": _set(sha, row.head.fit_rows),
        "calibration_images": len(row.calibration_rows),
        "calibration_set": _set(sha, row.calibration_rows),
        "edits": dict(plan.settings.edits),
        "numerics": row.extractor.description["numerics"],
        "micro_batches": [stage.micro_batch for stage in row.stages],
    }
    write_atomic(folder / "fitted.json", to_json(document))


def _set(sha: np.ndarray, rows: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256("".join(str(s) for s in sha[rows]).encode()).hexdigest()


def with_device(device: str) -> str:
    """The device a user asked for, checked.

    Raises:
        ConfigError: torch cannot see it.
    """
    if device == "cpu":
        return device
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"device {device!r} cannot be used: {first}", fix="use --device cpu or auto") from error
    return device

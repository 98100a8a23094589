"""Executes a plan: recipes, item stages, heads, thresholds, scores. A row that fails is recorded, the rest go on."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.api.errors import ClusterError, ConfigError, DataError, HarnessError, ProtocolError, StoreError
from harness.api.events import Event, Listener
from harness.engine.bundled import describe_weights
from harness.engine.engines import Engine, Inline, RemoteError
from harness.engine.fitting import fitted_head, score_row, threshold_of
from harness.engine.images import Reader
from harness.engine.inline import LostError, pin_numerics
from harness.engine.plan import HeadWork, ItemStage, Plan, RowPlan
from harness.engine.recipes import train_recipe, trained_weights
from harness.results.files import to_json, write_atomic
from harness.results.store import Store, write_head

if TYPE_CHECKING:
    from harness.engine.frames import RowScores

FEW_CALIBRATION = 100
"""Calibration photographs below which a quantile of 5 % hangs on a handful of scores, and the run says so."""

STOPS = (DataError, StoreError, ClusterError)
"""Errors that end a run: they are about the images, the disk or the cluster, not about one detector. In a training an
error about images is about those of one recipe: its rows fail."""


@dataclass
class Outcome:
    """What execution gave: score tables, failures by row (message and traceback), images computed by stage; images set
    aside, an entry an image and row: ``row``, ``sha256``, ``path``, ``why``."""

    scores: list[RowScores] = field(default_factory=list)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    set_aside: list[dict[str, str]] = field(default_factory=list)


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


class Executor:
    """Runs a plan by an engine (which is entered by the caller; None: inline), telling ``emit`` what happens."""

    def __init__(
        self, plan: Plan, store: Store, reader: Reader, emit: Listener, workers: int, engine: Engine | None = None,
        every: int = 500,
    ) -> None:  # fmt: skip
        self.plan, self.store, self.reader, self.emit, self.every = plan, store, reader, emit, every
        self.engine: Engine = engine or Inline(plan, store, reader, emit, workers)
        self.out = Outcome()
        self.aside: dict[str, dict[bytes, str]] = {}
        """Digests of the images that a stage cannot do, and why, by the stage's key."""

    def _fail(self, rows: list[str], error: Exception) -> None:
        text = str(error) if isinstance(error, HarnessError | RemoteError) else f"{type(error).__name__}: {error}"
        trace = error.trace if isinstance(error, RemoteError) else "".join(traceback.format_exception(error))
        for row in dict.fromkeys(rows):
            self.out.failures[row] = {"message": text, "traceback": trace}
            self.emit(Event("warning", {"text": f"row {row} failed: {text}"}))

    def _train(self) -> None:
        for work in self.plan.recipes.values():
            stages = [
                s for s in self.plan.stages.values() for w in s.weights.values() if w.identity == f"recipe:{work.key}"
            ]
            try:
                threads = self.plan.settings.threads
                pin_numerics(threads)
                launcher = None if trained_weights(work, self.store) is not None else self.engine.launcher()
                made = train_recipe(work, self.store, self.reader.pixels, self.emit, threads, self.every, launcher)
            except (StoreError, ClusterError):
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
        before = {} if stage.source is None else self.aside.get(stage.source.key, {})
        done = self.engine.items(stage, np.array(list(before), "S32"))
        self.out.computed[stage.key] = self.out.computed.get(stage.key, 0) + done.images
        self.aside[stage.key] = {**before, **done.aside}

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

    def _open(self) -> list[RowPlan]:
        return [row for row in self.plan.rows if row.row.name not in self.out.failures]

    def _heads(self) -> None:
        """What the engine makes of heads before anybody asks; a row whose fit or calibration set lacks an image that
        was set aside fails before."""
        for row in self._open():
            lacking = self._lacking(row)
            if lacking is not None:
                self._fail([row.row.name], lacking)
        for row_name, error in self.engine.heads(self._open()).items():
            if isinstance(error, STOPS) and not isinstance(error, LostError):
                raise error
            if not isinstance(error, LostError):  # what was lost is computed again when the row is scored
                self._fail([row_name], error)

    def _lacking(self, row: RowPlan) -> ProtocolError | None:
        aside = self.aside.get(row.extractor.key)
        if not aside:
            return None
        sets = [("calibration", row.calibration_rows)]
        head: HeadWork | None = row.head
        while head is not None:
            sets.insert(0, ("fit", head.fit_rows))
            head = head.upstream
        for name, rows in sets:
            for manifest_row in rows:
                why = aside.get(bytes(row.items[manifest_row]))
                if why is not None:
                    return ProtocolError(
                        f"an image of the {name} set ended every worker that read it ({why}); without it this set would"
                        " be another", where=self.reader.path(int(manifest_row)),
                        fix="replace the image or take it off its list, or leave the row out",
                    )  # fmt: skip
        return None

    def _list_aside(self, row: RowPlan) -> None:
        """Put the images that a row has no result of into the record."""
        aside = self.aside.get(row.extractor.key)
        if not aside:
            return
        seen: set[str] = set()
        for manifest_row in self.plan.cell_rows:
            why, sha = aside.get(bytes(row.items[manifest_row])), self.reader.digests[int(manifest_row)]
            if why is None or sha in seen:
                continue
            seen.add(sha)
            path = self.reader.paths[int(manifest_row)]
            self.out.set_aside.append({"row": row.row.name, "sha256": sha, "path": path, "why": why})
            text = f"row {row.row.name}: {path} has no score: every worker ended or hung over it ({why})"
            self.emit(Event("warning", {"text": text}))

    def _score(self, row: RowPlan, fitted_root: Path) -> None:
        head = fitted_head(row.head, self.plan, row, self.store, self.emit)
        threshold = threshold_of(row, head, self.store)
        aside = np.array(list(self.aside.get(row.extractor.key, {})), "S32")
        self.out.scores.append(score_row(self.plan, row, head, threshold, self.store, aside))
        self.out.thresholds[row.row.name] = threshold
        calibrated = len(row.calibration_rows)
        few = [f"its threshold rests on {calibrated} photographs only"] if 0 < calibrated < FEW_CALIBRATION else []
        for warning in [*row.row.detector.warnings(len(row.head.fit_rows)), *few]:
            self.out.warnings.append(f"{row.row.name}: {warning}")
            self.emit(Event("warning", {"text": f"{row.row.name}: {warning}"}))
        self._list_aside(row)
        save_fitted(fitted_root / row.row.name, row, self.plan, self.store, threshold)

    def run(self, fitted_root: Path) -> Outcome:
        """Everything; what each row fitted is written under ``fitted_root``.

        Raises:
            DataError, StoreError, ClusterError: an image, the disk or the cluster stopped the run; what was computed
                is in the store.
        """
        self._train()
        self._items()
        self._heads()
        for row in self._open():
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
        "fit_set": _set(plan, row.head.fit_rows),
        "calibration_images": len(row.calibration_rows),
        "calibration_set": _set(plan, row.calibration_rows),
        "edits": dict(plan.settings.edits),
        "numerics": row.extractor.description["numerics"],
        "micro_batches": [stage.micro_batch for stage in row.stages],
    }
    write_atomic(folder / "fitted.json", to_json(document))


def _set(plan: Plan, rows: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256("".join(plan.sha256(rows)).encode()).hexdigest()


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

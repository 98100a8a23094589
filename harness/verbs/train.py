"""``train``: one recipe, from its data to a weights file in the store and a training folder, resumable."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import ConfigError, DataError, HarnessError
from harness.api.events import Event, Listener, silent
from harness.results.files import require_writable, write_atomic
from harness.verbs.progress import Progress, clock

if TYPE_CHECKING:
    import numpy as np

    from harness.api.training import Recipe
    from harness.engine.images import Reader
    from harness.engine.origins import Origin
    from harness.engine.plan import Plan
    from harness.engine.training_data import ReadRow, TrainingSource
    from harness.results.store import Store


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked for; the command line's options, one to one."""

    recipe: str
    data_root: Path | None = None
    profile: str | None = None
    out: Path = Path("runs")
    export: Path | None = None
    settings: tuple[str, ...] = ()
    every: int = 500
    threads: int | None = None
    workers: int | None = None
    device: str = "auto"
    allow_outside: bool = False
    store: Path = Path(".blades-store")
    weights_root: Path = Path("pretrained")
    tracking_uri: str | None = None
    engine: str = "inline"
    ray_address: str | None = None
    report: bool = False


@dataclass(frozen=True)
class TrainDone:
    """What a training gave: the recipe's key, the weights file and its sha256, metrics on `select`, steps, the
    training folder, the command that opens MLflow (None where nothing was logged), and what a suite calls the recipe
    (None where ``--set`` changed it). Under torchrun ``rank`` says which process this is; those but the first (0) have
    no folder and nothing to say. ``report`` has the numbers on `report` where they were asked for."""

    recipe: str
    key: str
    path: Path
    sha256: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    trained: bool = True
    folder: Path | None = None
    ui_command: str | None = None
    named: str | None = None
    rank: int = 0
    report: Sequence[Mapping[str, Any]] | None = None

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "recipe": self.recipe, "key": self.key, "checkpoint": str(self.path), "sha256": self.sha256,
            "metrics": dict(self.metrics), "steps": self.steps, "trained": self.trained,
            "folder": None if self.folder is None else str(self.folder), "mlflow_ui": self.ui_command,
            **({} if self.report is None else {"report": list(self.report)}),
        }  # fmt: skip

    def text(self) -> str:
        """For people."""
        lines = [f"checkpoint: {self.path}", f"sha256:     {self.sha256}"]
        lines += [f"select:     {name} {value:.4g}" for name, value in self.metrics.items()]
        lines += [] if self.report is None else ["", _report_text(self.report), ""]
        lines += [f"folder:     {self.folder}"] if self.folder else []
        lines += [f"MLflow:     {self.ui_command}"] if self.ui_command else []
        if not self.trained:
            lines.append("the store had it: nothing was trained")
        recipe = f"`weights: recipe:{self.named}` in a suite on the same data, or " if self.named else ""
        lines.append(f"use it:     {recipe}the file as weights anywhere")
        return "\n".join(lines)


def _report_text(rows: Sequence[Mapping[str, Any]]) -> str:
    from harness.results.training import report_table
    from reports.training import report_text

    return report_text(report_table(rows)) if rows else "on report: this step measures nothing"


def _recipe(name: str, settings: Sequence[str]) -> Recipe:
    """The recipe with ``--set`` keys changed."""
    from harness.engine.rows import load_recipe, validated_recipe
    from harness.engine.suite import assignment, put

    document = load_recipe(name).model_dump(mode="json")
    for setting in settings:
        put(document, *assignment(setting))
    return validated_recipe(document, name)


def root_of(request: TrainRequest, say: Listener) -> Path:
    """The data root that was asked for; the demo corpus is made where it is not there.

    Raises:
        ConfigError, DataError: an unknown profile, or a folder that is not there.
    """
    from harness.verbs.run import demo_root

    if request.data_root is not None:
        if request.profile == "demo":
            raise ConfigError("--profile demo is the embedded corpus; it has no --data-root", fix="give one of them")
        if not request.data_root.is_dir():
            raise DataError("the data root is not there", where=request.data_root, fix="check --data-root")
        return request.data_root
    if request.profile not in (None, "demo", "full"):
        raise ConfigError(f"unknown profile {request.profile!r}", fix="use demo or full")
    if request.profile == "demo":
        return demo_root(request.store, say)
    if not Path("data").is_dir():
        raise DataError("there is no ./data", Path.cwd(), "name the images with --data-root, or --profile demo")
    return Path("data")


def recipe_images(
    recipe: Recipe, root: Path, request: TrainRequest, say: Listener
) -> tuple[TrainingSource, Reader | None]:
    """The recipe's images, and what reads manifest rows (None where there is no manifest)."""
    from harness.data.edits import InputEdits
    from harness.data.layouts import CELEBA, DataSpec
    from harness.data.manifest import build_manifest
    from harness.data.problems import require
    from harness.engine.images import Reader
    from harness.engine.training_data import released_faces, suite_faces

    if recipe.data.layout == "released":
        return released_faces(recipe, root, _hashing(say)), None
    spec = DataSpec(photographs=(CELEBA,), generators=recipe.generators or ())
    result = build_manifest(
        root, spec, seen=recipe.generators, allow_outside=request.allow_outside, workers=request.workers,
        seed=spec.splits.seed,
    )  # fmt: skip
    require((p for p in result.problems if recipe.generators or p.kind != "no-generators"), root)
    manifest = result.table
    reader = Reader(root, list(manifest["path"]), list(manifest["sha256"]), InputEdits())
    return suite_faces(recipe, manifest, root, CELEBA.dataset, COUNT, {}), reader


COUNT = 25_000
"""Photographs of a split that are trained on at most: a suite's default ``fit.count``, so that keys agree."""


def _hashing(say: Listener) -> Any:
    def show(done: int, total: int) -> None:
        say(Event("progress", {"stage": "reading faces", "done": done, "total": total, "unit": "images"}))

    return show


def train_one(request: TrainRequest, *, emit: Listener | None = None) -> TrainDone:
    """Train a recipe as the command line does (see ``harness train --help``).

    Raises:
        HarnessError: bad input, or a loss that is not finite.
        KeyboardInterrupt: asked to stop; run again to go on.
    """
    from harness.engine.execute import with_device
    from harness.engine.processes import Torchrun, chosen_launcher
    from harness.engine.recipe_report import report_recipe
    from harness.engine.recipes import origin_of, recipe_work, train_recipe, trained_weights
    from harness.results.store import Store
    from harness.results.training import file_name

    recipe = _recipe(request.recipe, request.settings)
    launcher = chosen_launcher(recipe, request.engine, request.ray_address)
    rank = launcher.rank if isinstance(launcher, Torchrun) else 0
    began, say = time.monotonic(), silent if rank else emit or Progress()
    require_writable(request.out / "training.json")
    export = None if request.export is None else _export_path(request.export)
    store = Store(request.store, warn=lambda text: say(Event("warning", {"text": text})))
    root = root_of(request, say).resolve()
    source, reader = recipe_images(recipe, root, request, say)
    threads = request.threads or len(os.sched_getaffinity(0))
    there = request.engine == "ray" and request.device == "cuda"  # on the cluster's machines, not needed on this one
    device = "cuda" if there else with_device(request.device)
    work = recipe_work(recipe, source, {}, threads, device, request.weights_root)
    stored = trained_weights(work, store) is not None
    made = train_recipe(work, store, pixels_of(reader), say, threads, request.every, launcher)
    assert made.path is not None
    if rank:
        return TrainDone(recipe.recipe, work.key, made.path, made.path.stem, trained=not stored, rank=rank)
    if export is not None:
        write_export(made.path, export, origin_of(work))
    entry = store.entry("recipes", work.key) or {}
    report = None
    if request.report:
        report = report_recipe(work, store, pixels_of(reader), say, threads, with_device("auto" if there else device))
    folder = request.out / f"train-{file_name(recipe.recipe)}" / work.key[:16]
    record_training(folder, work.key, recipe, entry, _stamps(request), report)
    ui = logged(folder, request.tracking_uri, say)
    say(Event("note", {"text": f"recipe {recipe.recipe}: done ({clock(time.monotonic() - began)})"}))
    steps, metrics = len(entry.get("history", ())), entry.get("metrics", {})
    path = made.path if export is None else export
    named = None if request.settings else request.recipe
    return TrainDone(
        recipe.recipe, work.key, path, entry["sha256"], metrics, steps, not stored, folder, ui, named,
        report=None if report is None else report["rows"],
    )  # fmt: skip


def record_training(
    folder: Path, key: str, recipe: Recipe, entry: Mapping[str, Any], stamps: Sequence[str],
    report: Mapping[str, Any] | None = None,
) -> list[Path]:  # fmt: skip
    """Write the training folder of a recipe's entry in the store, with its figures; the figures' paths.

    The entry may have been made under another name of the recipe: the name here is this one's.

    Raises:
        StoreError: the folder cannot be written.
    """
    from harness.results.training import write_training
    from reports.training import make_training_figures

    write_training(folder, key, {**entry, "recipe": recipe.model_dump(mode="json")}, stamps, report)
    return [path for path, _ in make_training_figures(folder)]


def record_trainings(run_folder: Path, plan: Plan, store: Store, stamps: Sequence[str]) -> None:
    """The training folder of each recipe of a suite's run that is trained, as ``training/<recipe>`` of the run folder.

    Of the run's stamps those that are about the photographs stand on the figures.
    """
    from harness.results.training import file_name

    mine = [text for text in stamps if text.startswith(("DEMO", "FORMAT MATCHED"))]
    for work in plan.recipes.values():
        entry, name = store.entry("recipes", work.key), work.recipe.recipe
        if entry is not None:
            taken = (run_folder / "training" / file_name(name)).exists()
            place = file_name(f"{name} {work.key[:8]}" if taken else name)
            record_training(run_folder / "training" / place, work.key, work.recipe, entry, mine)


def _stamps(request: TrainRequest) -> list[str]:
    """What every figure of this training must say."""
    demo = ["DEMO: embedded corpus, not the paper's data"] if request.profile == "demo" else []
    return demo + ([f"CHANGED: {' '.join(request.settings)}"] if request.settings else [])


def logged(folder: Path, tracking_uri: str | None, say: Listener) -> str | None:
    """Log a training folder; the command that opens MLflow. A store that cannot be reached is a warning."""
    from harness.verbs.report import log_folder

    if tracking_uri == "off":
        return None
    try:
        return log_folder(folder, tracking_uri)
    except HarnessError as error:
        say(Event("warning", {"text": f"not logged to MLflow: {error}\n  later: harness report {folder} --log"}))
        return None


CONTAINERS = (".pth", ".pt")
"""Endings of files as `torch.save` writes them."""


def _export_path(export: Path) -> Path:
    """Where the weights go.

    Raises:
        ConfigError: a folder, or an ending that says no format. StoreError: it cannot be written.
    """
    if export.suffix not in (".safetensors", *CONTAINERS) or export.is_dir():
        fix = "give it the ending .safetensors, or .pth for the authors' container"
        raise ConfigError("--export names a file by its format", where=export, fix=fix)
    require_writable(export)
    return export


def write_export(weights: Path, export: Path, origin: Origin | None = None) -> None:
    """Write a trained weights file where the user wants it: as it is (.safetensors), or as the authors' files are
    (.pth, .pt): ``torch.save({"model": {name: tensor}})``, the same tensors under the same names. Either says on
    what it was trained, by ``origin`` where the file from the store does not (one of an earlier version).

    Raises:
        StoreError: it cannot be written; what was there stays.
    """
    import io

    import torch
    from safetensors.torch import load_file, save

    from harness.engine.origins import read_origin

    stated = read_origin(weights)
    if export.suffix not in CONTAINERS:
        anew = None if stated is not None or origin is None else save(load_file(weights), origin.metadata())
        write_atomic(export, anew or weights.read_bytes())
        return
    buffer, known = io.BytesIO(), stated or origin
    torch.save({"model": load_file(weights)}, buffer)
    write_atomic(export, buffer.getvalue() if known is None else known.within(buffer.getvalue()))


def pixels_of(reader: Reader | None) -> ReadRow:
    """What reads a manifest row; where there is no manifest, nothing may ask."""
    return _no_rows if reader is None else reader.pixels


def _no_rows(row: int) -> np.ndarray:
    raise AssertionError("images of the released layout are read by their table")


def train(recipe: str | Path, **options: Any) -> TrainDone:
    """Train a recipe from Python: the same options as `TrainRequest`.

    Raises:
        ConfigError: an option that does not exist.
        HarnessError: as `train_one`.
    """
    from dataclasses import fields

    from harness.api.registry import unknown

    known = [f.name for f in fields(TrainRequest)]
    for name in options:
        if name not in known:
            raise unknown("option of train:", name, known)
    for name in ("data_root", "out", "export", "store"):
        if options.get(name) is not None:
            options[name] = Path(options[name])
    if options.get("settings") is not None:
        options["settings"] = tuple(options["settings"])
    return train_one(TrainRequest(recipe=str(recipe), **options))

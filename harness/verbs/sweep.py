"""``sweep``: trials drawn from a recipe's spaces, trained under Ray Tune; a folder, figures, MLflow."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import HarnessError
from harness.api.events import Event, Listener
from harness.engine.sweep import Draw, Sweep, load_sweep, shown, trials_of
from harness.results.files import require_writable
from harness.verbs.progress import PLAIN_SECONDS, Progress, clock

if TYPE_CHECKING:
    from harness.engine.images import Reader
    from harness.engine.recipes import RecipeWork
    from harness.engine.training_data import ReadRow, TrainingSource
    from harness.engine.trials import Trial
    from harness.results.sweep import SweepFolder, SweepRecord, TrialResult


@dataclass(frozen=True)
class SweepRequest:
    """What the user asked for; the command line's options, one to one."""

    sweep: str
    data_root: Path | None = None
    profile: str | None = None
    out: Path = Path("runs")
    settings: tuple[str, ...] = ()
    samples: int | None = None
    concurrent: int | None = None
    every: int = 500
    threads: int = 1
    workers: int | None = None
    device: str = "auto"
    allow_outside: bool = False
    store: Path = Path(".blades-store")
    weights_root: Path = Path("pretrained")
    tracking_uri: str | None = None
    ray_address: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class SweepDone:
    """What a sweep gave: exit code (3: a trial failed), the folder (None for a dry run), how many trials ended in each
    way, how many this command trained, the best trial, the trials as rows, and the command that opens MLflow."""

    exit_code: int
    key: str
    objective: str
    folder: Path | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    trained: int = 0
    best: Mapping[str, Any] | None = None
    trials: Sequence[Mapping[str, Any]] = ()
    ui_command: str | None = None

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "exit_code": self.exit_code, "key": self.key, "objective": self.objective,
            "folder": None if self.folder is None else str(self.folder), "counts": dict(self.counts),
            "trained": self.trained, "best": None if self.best is None else _plain(self.best),
            "trials": [_plain(row) for row in self.trials], "mlflow_ui": self.ui_command,
        }  # fmt: skip

    def text(self) -> str:
        """For people: the table, the best trial and where everything is."""
        lines = [_table(self.trials), ""]
        if self.folder is None:
            return "\n".join([*lines, "nothing was trained: this is a dry run"])
        counted = ", ".join(f"{count} {state}" for state, count in self.counts.items() if count)
        lines.append(f"trials:     {counted}; {self.trained} trained by this command")
        if self.best is not None:
            lines.append(f"best:       trial {self.best['trial']}, {self.objective} {self.best['objective']:.4g}")
        lines.append(f"folder:     {self.folder}")
        lines += [f"MLflow:     {self.ui_command}"] if self.ui_command else []
        return "\n".join(lines)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as columns of text, numbers to four digits."""
    if not rows:
        return ""
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    lines = [names, *cells]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_sweep(request: SweepRequest, *, emit: Listener | None = None) -> SweepDone:
    """Sweep as the command line does (see ``harness sweep --help``).

    Raises:
        HarnessError: bad input; before anything is trained where it can be known.
        KeyboardInterrupt: asked to stop; run again to go on.
    """
    from harness.engine.engines import check_engine
    from harness.engine.execute import with_device
    from harness.engine.sweeping import Sweeping
    from harness.results.record import now
    from harness.results.store import Store
    from harness.verbs.train import logged

    began, started, say = time.monotonic(), now(), emit or Progress()
    profile = "demo" if request.profile == "demo" else "full"
    extra = () if request.samples is None else (f"samples={request.samples}",)
    sweep = load_sweep(request.sweep, profile=profile, settings=(*request.settings, *extra))
    check_engine("ray", request.ray_address, request.device)
    require_writable(request.out / "sweep.json")
    store = Store(request.store, warn=lambda text: say(Event("warning", {"text": text})), read_only=request.dry_run)
    # GPUs are those that Ray gives to trials, on the cluster's machines; this one needs none
    device = "cuda" if request.device == "cuda" else with_device(request.device)
    works = _works(trials_of(sweep), request, device, say)
    sweeping = Sweeping.of(sweep, store, works, device=device, threads=request.threads, every=request.every)
    if request.dry_run:
        return SweepDone(0, sweeping.key, sweep.objective.metric, trials=sweeping.planned())
    progress = _Told(say, sweep, sweeping.trials, len(sweeping.left()))
    sweeping.run(progress, request.concurrent, request.ray_address)
    results = sweeping.results()
    record = sweeping.record(results, trained=len(progress.trained), started=started, stamps=_stamps(request))
    folder = request.out / f"sweep-{sweep.sweep}-{profile}" / sweeping.key[:16]
    made = _written(folder, record, results)
    ui = logged(folder, request.tracking_uri, say)
    say(Event("note", {"text": f"sweep {sweep.sweep}: done ({clock(time.monotonic() - began)})"}))
    bad = sum(record.counts.get(state, 0) for state in ("failed", "crashed"))
    rows = [_row(t) for t in results]
    best = None if record.best is None else rows[record.best]
    for row in rows:
        if row["state"] in ("failed", "crashed"):
            say(Event("warning", {"text": f"trial {row['trial']} {row['state']}: {results[row['trial']].reason}"}))
    return SweepDone(
        3 if bad else 0, record.key, record.metric, made.folder, record.counts, record.trained, best, rows, ui
    )  # fmt: skip


def _stamps(request: SweepRequest) -> list[str]:
    """What every figure of this sweep must say."""
    demo = ["DEMO: embedded corpus, not the paper's data"] if request.profile == "demo" else []
    return demo + ([f"CHANGED: {' '.join(request.settings)}"] if request.settings else [])


def _row(trial: TrialResult) -> dict[str, Any]:
    """A trial for people and for ``--json``."""
    return {"trial": trial.number, **trial.values, "state": trial.state, "epochs": trial.epochs,
            "objective": trial.objective, "best_epoch": trial.best_epoch or None, "best": trial.best}  # fmt: skip


def _written(folder: Path, record: SweepRecord, results: Sequence[TrialResult]) -> SweepFolder:
    from harness.results.sweep import write_sweep
    from reports.sweep import make_sweep_figures

    made = write_sweep(folder, record, results)
    make_sweep_figures(folder)
    return made


def _works(
    draws: Sequence[Draw], request: SweepRequest, device: str, say: Listener
) -> list[tuple[Draw, RecipeWork, ReadRow]]:
    """Each trial's training stage, and what reads its images; these are looked at once for all trials with the same.
    A trial's step is made as it will be later, so that what cannot be meant ends here.

    Raises:
        HarnessError: with the trial in front, where the fault is of what was drawn.
    """
    from harness.engine.keys import digest_of
    from harness.engine.recipes import recipe_work
    from harness.verbs.train import TrainRequest, pixels_of, recipe_images, root_of

    asked = TrainRequest(
        recipe=request.sweep, data_root=request.data_root, profile=request.profile, workers=request.workers,
        allow_outside=request.allow_outside, store=request.store,
    )  # fmt: skip
    root = root_of(asked, say).resolve()
    sources: dict[str, tuple[TrainingSource, Reader | None]] = {}
    works = []
    for draw in draws:
        recipe = draw.recipe
        same = digest_of(
            [recipe.data.model_dump(), recipe.generators, recipe.max_images, recipe.settings.get("levels")]
        )
        if same not in sources:
            sources[same] = recipe_images(recipe, root, asked, say)
        source, reader = sources[same]
        try:
            work = recipe_work(recipe, source, {}, request.threads, device, request.weights_root)
            _check_step(work, pixels_of(reader))
        except HarnessError as error:
            raise type(error)(f"{draw.text()}: {error.what}", error.where, error.fix) from error
        works.append((draw, work, pixels_of(reader)))
    return works


def _check_step(work: RecipeWork, read: ReadRow) -> None:
    """Make the step as a trial will, without weights or pixels: it checks settings and labels."""
    images = work.source.images(work.preprocess, read)
    work.extractor.train_step(work.recipe.settings, images, work.protocol, work.recipe.step)


class _Told:
    """Says how trials go: each end, and in between a line every ten seconds."""

    def __init__(self, say: Listener, sweep: Sweep, trials: Sequence[Trial], left: int) -> None:
        self.say, self.sweep, self.total = say, sweep, len(trials)
        self.trials = {t.number: t for t in trials}
        self.done, self.last = sum(t.entrant.repeats is None for t in trials) - left, 0.0
        self.trained: set[int] = set()
        say(Event("note", {"text": f"{self.total} trials: {self.done} in the store, {left} to train"}))

    def __call__(self, event: Event) -> None:
        if event.kind != "trial":
            self.say(event)
            return
        number, state = int(event.fields["number"]), str(event.fields["state"])
        if state == "running":
            self.trained.add(number)
            self._epoch(number, event.fields)
        elif state != "aside":
            self.done += 1
            self._line(number, f"{state}; {self.done} of {self.total} trials done")

    def _epoch(self, number: int, fields: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - self.last >= PLAIN_SECONDS:
            self.last = now
            epochs = self.trials[number].entrant.epochs
            objective = float(fields["objective"])
            self._line(number, f"epoch {fields['epoch']}/{epochs}, {self.sweep.objective.metric} {objective:.4g}")

    def _line(self, number: int, text: str) -> None:
        values = ", ".join(f"{key.split('.')[-1]} {shown(v)}" for key, v in self.trials[number].values.items())
        self.say(Event("note", {"text": f"trial {number} ({values}): {text}"}))

"""One trial of a sweep: a training by the store's key, judged at its rungs; and what the store knows of all of them.

The store is the truth: what a trial's recipe made (``recipes``), its metrics on `select` epoch by epoch, whether it
ended (``trials``), and the history of one that was stopped or failed (``partial``), all by the recipe's key. So a trial
is never trained twice, by whichever sweep, and what a sweep gives is a function of its trials' values.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import ConfigError
from harness.api.events import Event, silent
from harness.api.training import TrainingError
from harness.engine.halving import Course, Halving, Standing, standings
from harness.engine.recipes import RecipeWork, train_recipe, trained_weights
from harness.engine.training_data import ReadRow
from harness.engine.training_log import TrainingLog
from harness.results.store import Store

if TYPE_CHECKING:
    from harness.api.trainer import TrainResult
    from harness.engine.training_job import Job

TRIALS, PARTIAL = "trials", "partial"
"""Kinds of entries: metrics by epoch and how it ended; history of a training that went no further."""
FINISHED, FAILED = "finished", "failed"
STOPPED, CRASHED, ASIDE = "stopped", "crashed", "aside"
LOOK = 0.5
"""Seconds between two looks at the store while a trial waits for others."""
BEAT = 5.0
"""Seconds between two signs of life of a trial."""
PATIENCE = 60.0
"""Seconds without a sign of life of the trial waited for, after which a trial steps aside: its turn comes again."""


@dataclass(frozen=True)
class Entrant:
    """What every trial must know of the others: number, recipe key, epochs, and whether it repeats a lower one."""

    number: int
    key: str
    epochs: int
    repeats: int | None = None


@dataclass(frozen=True)
class Trial:
    """A trial that can be trained; ``read`` gives the pixels of a manifest row."""

    entrant: Entrant
    values: Mapping[str, Any]
    work: RecipeWork
    read: ReadRow

    @property
    def number(self) -> int:
        """From 0."""
        return self.entrant.number


@dataclass(frozen=True)
class Plan:
    """What holds for every trial of a sweep.

    Attributes:
        entrants: all trials in order.
        metric: the objective's name among the metrics on `select`.
        rule: what stops trials early; None: nothing.
        store: the store's root; every process must see it.
        threads: of one training.
        every: optimiser steps between two checkpoints.
        crashed: a folder of this start of the sweep; a file in it says that a trial is gone (its number).
    """

    entrants: tuple[Entrant, ...]
    metric: str
    rule: Halving | None
    store: Path
    threads: int
    every: int
    crashed: Path


@dataclass
class Board:
    """The courses of trials as the store has them now; those that ended are read once. What crashed is known by its
    file in ``crashed``, or by its number in ``gone``."""

    store: Store
    entrants: Sequence[Entrant]
    metric: str
    rule: Halving | None
    crashed: Path | None = None
    gone: frozenset[int] = frozenset()
    _ended: dict[int, Course] = field(default_factory=dict)

    def course(self, entrant: Entrant) -> Course:
        """What is known of one trial."""
        if entrant.number in self._ended:
            return self._ended[entrant.number]
        if entrant.repeats is not None:
            course = Course(entrant.epochs, {}, ended=True, repeats=True)
        else:
            entry = self.store.entry(TRIALS, entrant.key) or {}
            rows = entry.get("evaluations", ())
            values = {int(e["epoch"]): value_of(e["metrics"], self.metric) for e in rows}
            gone = self.crashed is not None and crash_file(self.crashed, entrant.number).is_file()
            gone |= entrant.number in self.gone
            course = Course(entrant.epochs, values, gone or entry.get("ended") is not None)
        if course.ended:
            self._ended[entrant.number] = course
        return course

    def standings(self, upto: int | None = None) -> list[Standing]:
        """How the trials stand; of those up to a number."""
        entrants = self.entrants if upto is None else self.entrants[: upto + 1]
        if self.rule is None:
            return [Standing() for _ in entrants]
        found = standings([self.course(e) for e in entrants], self.rule)
        for entrant, standing in zip(entrants, found, strict=True):
            if standing.stopped is not None:  # no later value of it counts
                self._ended.setdefault(entrant.number, self.course(entrant))
        return found


def value_of(metrics: Mapping[str, Any], metric: str) -> float:
    """The objective among metrics; NaN where it is absent or null."""
    value = metrics.get(metric)
    return math.nan if value is None else float(value)


def crash_file(folder: Path, number: int) -> Path:
    """What says that a trial of this start is gone, and why."""
    return folder / f"trial-{number}.json"


def remember(store: Store, work: RecipeWork) -> None:
    """Enter what another command trained under a trial's key, so that all can read it cheaply."""
    entry = store.entry("recipes", work.key)
    known = store.entry(TRIALS, work.key) or {}
    if entry is not None and known.get("ended") != FINISHED:
        put_trial(store, work.key, entry["evaluations"], FINISHED)


def put_trial(
    store: Store, key: str, evaluations: Sequence[Mapping[str, Any]], ended: str | None = None, message: str = ""
) -> None:
    """Keep a trial's metrics by epoch and how it ended."""
    document = {"evaluations": list(evaluations), "ended": ended, "message": message}
    store.put_entry(TRIALS, key, document, replace=True)


def settled(trial: Trial, store: Store, standing: Standing) -> bool:
    """Whether there is nothing left to train: finished, failed by its own numbers, or stopped with its history kept."""
    entry = store.entry(TRIALS, trial.work.key) or {}
    if entry.get("ended") == FAILED or trained_weights(trial.work, store) is not None:
        return True
    judgement = standing.stopped
    return judgement is not None and kept_until(store, trial.work.key) >= judgement.epoch


def kept_until(store: Store, key: str) -> int:
    """The epoch up to which the history of a trial that went no further is kept; 0: none."""
    return int((store.entry(PARTIAL, key) or {}).get("epoch", 0))


def keep_partial(plan: Plan, work: RecipeWork, store: Store, evaluations: Sequence[Mapping[str, Any]]) -> int:
    """Keep the history that lies beside a trial's checkpoints, up to its last whole epoch, which is returned."""
    folder = store.root / "training" / work.key
    rows = _history(folder / "history.jsonl")
    whole = [e for e in evaluations if rows and int(e["step"]) <= int(rows[-1]["step"])]
    if not whole:
        return 0
    last = max(whole, key=lambda e: int(e["step"]))
    if kept_until(store, work.key) < int(last["epoch"]):
        store.put_entry(PARTIAL, work.key, {
            "epoch": int(last["epoch"]), "recipe": work.recipe.model_dump(mode="json"),
            "description": work.description, "history": [r for r in rows if int(r["step"]) <= int(last["step"])],
            **TrainingLog(folder, silent).document(work.device, plan.threads),
        }, replace=True)  # fmt: skip
    return int(last["epoch"])


def _history(path: Path) -> list[dict[str, Any]]:
    """Whole rows of a training's history so far."""
    data = path.read_bytes() if path.is_file() else b""
    try:
        return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
    except ValueError:
        return []


def _beat_file(folder: Path, number: int) -> Path:
    return folder / f"alive-{number}"


@contextmanager
def _beating(plan: Plan, number: int) -> Iterator[None]:
    """Inside, this process gives signs of life of a trial."""
    path, over = _beat_file(plan.crashed, number), threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            path.write_text(str(time.time()))

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(time.time()))
    thread = threading.Thread(target=beat, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Run:
    """One trial under way: hears its training, tells others of its values, and asks it to stop at a rung."""

    def __init__(self, plan: Plan, trial: Trial, store: Store, tell: Callable[[dict[str, Any]], None]) -> None:
        self.plan, self.trial, self.store, self.tell = plan, trial, store, tell
        self.board = Board(store, plan.entrants, plan.metric, plan.rule, plan.crashed)
        known = store.entry(TRIALS, trial.work.key) or {}
        self.evaluations: dict[int, dict[str, Any]] = {int(e["step"]): e for e in known.get("evaluations", ())}
        self.why: str | None = None
        self.aside = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self.evaluations[step] for step in sorted(self.evaluations)]

    def hear(self, event: Event) -> None:
        """Listens to the training."""
        if event.kind == "train_eval":
            step, epoch, metrics = (event.fields[k] for k in ("step", "epoch", "metrics"))
            self._require(metrics)
            self.evaluations[int(step)] = {"step": step, "epoch": epoch, "metrics": dict(metrics)}
            put_trial(self.store, self.trial.work.key, self.rows)
            self.tell({"epoch": epoch, "objective": value_of(metrics, self.plan.metric), "state": "running"})
            self.judge(int(epoch))

    def _require(self, metrics: Mapping[str, Any]) -> None:
        if self.plan.metric not in metrics:
            raise ConfigError(
                f"the objective {self.plan.metric!r} is not among the metrics on `select`", "objective.metric",
                f"metrics here: {', '.join(sorted(metrics)) or 'none'}",
            )  # fmt: skip

    def judge(self, epoch: int) -> None:
        """At a rung: wait for the trials of lower numbers, then go on or ask to stop."""
        rule = self.plan.rule
        if rule is None or epoch not in rule.rungs(self.trial.entrant.epochs):
            return
        since, before = time.monotonic(), ""
        while True:
            found = self.board.standings(self.trial.number)
            judgement = found[-1].at(epoch) or found[-1].stopped
            if judgement is not None:
                self.why = judgement.text() if judgement.stopped else None
                return
            news = self._news_of(epoch, found)
            if news != before:
                since, before = time.monotonic(), news
            elif time.monotonic() - since > PATIENCE:
                self.why, self.aside = "the trials it waits for are not under way", True
                return
            time.sleep(LOOK)

    def _news_of(self, epoch: int, found: Sequence[Standing]) -> str:
        """Something that changes as long as the first trial waited for is alive."""
        for entrant, standing in zip(self.plan.entrants, found[:-1], strict=False):
            course = self.board.course(entrant)
            if course.ended or standing.stopped is not None or epoch in course.values:
                continue
            path = _beat_file(self.plan.crashed, entrant.number)
            sign = path.read_text() if path.is_file() else ""
            return f"{entrant.number} {len(course.values)} {sign}"
        return ""

    def launch(self, job: Job, emit: Callable[[Event], None]) -> TrainResult:
        """Train in this process; stops where it was judged so."""
        return job.train(job.work.device, emit, lambda: self.why)


def run_trial(plan: Plan, trial: Trial, tell: Callable[[dict[str, Any]], None]) -> str:
    """Train one trial to its end, its stop at a rung or its failure, from where it was; how it ended (``FINISHED``,
    ``STOPPED``, ``FAILED``, ``ASIDE``). ``tell`` hears ``epoch``, ``objective`` and ``state`` after every epoch.

    Raises:
        ConfigError: the objective is not among the metrics.
        HarnessError: what is no trial's own fault, such as an image that cannot be read.
    """
    from harness.api.checkpoint import Interrupted

    store = Store(plan.store)
    run, work = _Run(plan, trial, store, tell), trial.work
    try:
        with _beating(plan, trial.number):
            before = _before(run)
            if before is not None:
                return before
            train_recipe(work, store, trial.read, run.hear, plan.threads, plan.every, launcher=run.launch)
    except Interrupted:
        if run.why is None:
            raise
        keep_partial(plan, work, store, run.rows)
        return ASIDE if run.aside else STOPPED
    except TrainingError as error:
        keep_partial(plan, work, store, run.rows)
        put_trial(store, work.key, run.rows, FAILED, str(error))
        return FAILED
    entry = store.entry("recipes", work.key) or {}
    made = {int(e["step"]): e for e in entry.get("evaluations", ())} | run.evaluations
    put_trial(store, work.key, [made[step] for step in sorted(made)], FINISHED)
    return FINISHED


def _before(run: _Run) -> str | None:
    """What a trial's values of an earlier start say: ``STOPPED``, and its history up to there is kept; ``ASIDE``: it
    waits for others; None: there is something to train (also where it is stopped and its history is not whole)."""
    for epoch in sorted(int(e["epoch"]) for e in run.rows):
        run.judge(epoch)
        if run.why is not None:
            break
    if run.aside:
        return ASIDE
    judged = run.board.standings(run.trial.number)[-1].stopped
    run.why = None
    kept = judged is not None and keep_partial(run.plan, run.trial.work, run.store, run.rows) >= judged.epoch
    return STOPPED if kept else None

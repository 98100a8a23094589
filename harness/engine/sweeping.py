"""A sweep whose trials have keys: what is left to train, how it is trained, and how every trial ended, by the store."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.api.events import Listener
from harness.engine.halving import Standing
from harness.engine.keys import digest_of
from harness.engine.sweep import Draw, Sweep
from harness.engine.trials import (
    FAILED,
    FINISHED,
    PARTIAL,
    STOPPED,
    TRIALS,
    Board,
    Entrant,
    Plan,
    Trial,
    crash_file,
    remember,
    settled,
    value_of,
)
from harness.results.record import environment, now
from harness.results.sweep import STATES, SpaceRecord, SweepRecord, TrialResult

if TYPE_CHECKING:
    from harness.engine.recipes import RecipeWork
    from harness.engine.training_data import ReadRow
    from harness.results.store import Store

SCRATCH = "tune"
"""Folder of the store for what belongs to one start of a sweep; removed at its end."""
ROUNDS_WITHOUT_NEWS = 2
"""Rounds after which trials that only wait are given up; the same command takes them up again."""


@dataclass
class Sweeping:
    """A sweep whose trials have keys: what is stored is known, and nothing is trained yet."""

    sweep: Sweep
    store: Store
    trials: Sequence[Trial]
    plan: Plan
    device: str
    key: str
    reasons: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, sweep: Sweep, store: Store, works: Sequence[tuple[Draw, RecipeWork, ReadRow]], *, device: str,
        threads: int, every: int,
    ) -> Sweeping:  # fmt: skip
        """A sweep of some trials, each with its training stage and what reads its images."""
        first: dict[str, int] = {}
        trials = []
        for draw, work, read in works:
            lower = first.setdefault(work.key, draw.number)
            repeats = None if lower == draw.number else lower
            trials.append(Trial(Entrant(draw.number, work.key, draw.recipe.epochs, repeats), draw.values, work, read))
        rule = None if sweep.scheduler is None else sweep.scheduler.model_dump(mode="json")
        objective = sweep.objective.model_dump(mode="json")
        keys = [trial.work.key for trial in trials]
        key = digest_of({"kind": "sweep", "trials": keys, "objective": objective, "scheduler": rule})
        scratch = store.root.resolve() / SCRATCH / f"{key[:16]}-{os.getpid()}"
        plan = Plan(
            tuple(t.entrant for t in trials), sweep.objective.metric, sweep.rule, store.root.resolve(),
            threads, every, scratch / "trials",
        )  # fmt: skip
        return cls(sweep, store, trials, plan, device, key)

    def _standings(self) -> list[Standing]:
        gone = frozenset(self.reasons)
        return Board(self.store, self.plan.entrants, self.plan.metric, self.plan.rule, gone=gone).standings()

    def left(self) -> list[Trial]:
        """Trials with something to train, by what the store has."""
        standings = self._standings()
        return [
            t for t, s in zip(self.trials, standings, strict=True)
            if t.entrant.repeats is None and not settled(t, self.store, s)
        ]  # fmt: skip

    def planned(self) -> list[dict[str, Any]]:
        """The trials of a dry run."""
        left = {t.number for t in self.left()}
        states = {t.number: "to train" if t.number in left else "stored" for t in self.trials}
        states |= {t.number: f"as trial {t.entrant.repeats}" for t in self.trials if t.entrant.repeats is not None}
        return [{"trial": t.number, **t.values, "epochs": t.entrant.epochs, "state": states[t.number]}
                for t in self.trials]  # fmt: skip

    def run(self, listen: Listener, concurrent: int | None, address: str | None) -> None:
        """Train what is left, in rounds until nothing is. Events as ``tuning.run_trials``."""
        from harness.engine.tuning import run_trials

        for trial in self.trials:
            remember(self.store, trial.work)
        left, idle = self.left(), 0
        gpus = self.sweep.gpus if self.device.startswith("cuda") else 0.0
        scratch = self.plan.crashed.parent
        try:
            while left and idle < ROUNDS_WITHOUT_NEWS:
                state = scratch / "state"
                run_trials(self.plan, left, listen, concurrent=concurrent, gpus=gpus, address=address, scratch=state)
                before = len(left)
                left = [t for t in self.left() if not crash_file(self.plan.crashed, t.number).is_file()]
                idle = idle + 1 if len(left) == before else 0
            self.reasons = _crashes(self.plan, self.trials)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def results(self) -> list[TrialResult]:
        """How every trial ended, from the store."""
        standings = self._standings()
        out: list[TrialResult] = []
        for trial, standing in zip(self.trials, standings, strict=True):
            lower = trial.entrant.repeats
            if lower is not None:
                out.append(_repeated(out[lower], trial))
            else:
                out.append(self._result(trial, standing))
        return out

    def _result(self, trial: Trial, standing: Standing) -> TrialResult:
        metric, key = self.plan.metric, trial.work.key
        known = self.store.entry(TRIALS, key) or {}
        whole = self.store.entry("recipes", key)
        entry = whole or self.store.entry(PARTIAL, key) or {}
        evaluations = known.get("evaluations", [])
        sha, reason, objective = "", "", math.nan
        if standing.stopped is not None:
            state, last = STOPPED, standing.stopped.epoch
            objective, reason = standing.stopped.value, standing.stopped.text()
        elif known.get("ended") == FAILED:
            state, reason = FAILED, str(known["message"])
            last = max((int(e["epoch"]) for e in evaluations), default=0)
        elif whole is not None:
            state, sha = FINISHED, str(whole["sha256"])
            last, objective = max(int(r["epoch"]) for r in whole["history"]), value_of(whole["metrics"], metric)
        else:
            state, reason = "crashed", self.reasons.get(trial.number, "it did not end; run the same command again")
            last = max((int(e["epoch"]) for e in evaluations), default=0)
        kept = [e for e in evaluations if int(e["epoch"]) <= last]
        best_epoch, best = _best(kept, metric, self.sweep.sign)
        cut = {**entry, "evaluations": kept, **_cut(entry, last)}
        return TrialResult(
            trial.number, trial.values, state, last, objective, best_epoch, best, key, trial.work.recipe.batch_size,
            cut, None, reason.splitlines()[0] if reason else "", sha,
        )  # fmt: skip

    def record(
        self, results: Sequence[TrialResult], *, trained: int, started: str, stamps: Sequence[str]
    ) -> SweepRecord:
        """``sweep.json``."""
        sweep, first = self.sweep, self.trials[0].work
        finished = [t for t in results if t.state == "finished" and not math.isnan(t.objective)]
        best = max(finished, key=lambda t: (sweep.sign * t.objective, -t.number), default=None)
        spaces = {
            s.key: SpaceRecord(kind=s.kind, values=list(s.values), logarithmic=s.logarithmic) for s in sweep.spaces()
        }
        base = first.recipe.model_dump(mode="json", exclude={"recipe"})
        for key in spaces:
            _drop(base, key.split("."))
        rungs = sorted({r for t in self.trials for r in (sweep.rule.rungs(t.entrant.epochs) if sweep.rule else ())})
        return SweepRecord(
            name=sweep.sweep, title=sweep.title, profile=sweep.profile, key=self.key, document=sweep.document(),
            spaces=spaces, metric=sweep.objective.metric, mode=sweep.objective.mode, rungs=rungs, base=base,
            protocol=first.protocol.model_dump(mode="json"), trials=len(results),
            counts={state: sum(t.state == state for t in results) for state in STATES}, trained=trained,
            best=None if best is None else best.number, numerics=dict(first.description["numerics"]), started=started,
            finished=now(), command=["harness", *sys.argv[1:]], stamps=list(stamps),
            environment=environment(self.device, self.plan.threads),
        )  # fmt: skip


def _best(evaluations: Sequence[Mapping[str, Any]], metric: str, sign: float) -> tuple[int, float]:
    """The epoch with the best objective, the first of equals, and its value; 0 and NaN without one."""
    found = [(int(e["epoch"]), value_of(e["metrics"], metric)) for e in evaluations]
    found = [pair for pair in found if not math.isnan(pair[1])]
    return max(found, key=lambda pair: (sign * pair[1], -pair[0]), default=(0, math.nan))


def _cut(entry: Mapping[str, Any], last: int) -> dict[str, Any]:
    """History and readings of a training up to an epoch."""
    history = [row for row in entry.get("history", ()) if int(row["epoch"]) <= last]
    steps = int(history[-1]["step"]) if history else 0
    readings = entry.get("readings") or {}
    keep = [i for i, step in enumerate(readings.get("step", ())) if int(step) <= steps]
    return {"history": history, "readings": {name: [values[i] for i in keep] for name, values in readings.items()}}


def _repeated(of: TrialResult, trial: Trial) -> TrialResult:
    """A trial whose recipe is that of a lower number: its values, and none of its rows."""
    return TrialResult(
        trial.number, trial.values, "repeats", of.epochs, of.objective, of.best_epoch, of.best, of.key, of.batch_size,
        {}, of.number, f"as trial {of.number}", of.sha256,
    )  # fmt: skip


def _crashes(plan: Plan, trials: Sequence[Trial]) -> dict[int, str]:
    paths = {t.number: crash_file(plan.crashed, t.number) for t in trials}
    return {number: str(json.loads(p.read_text())["what"]) for number, p in paths.items() if p.is_file()}


def _drop(document: dict[str, Any], words: Sequence[str]) -> None:
    for word in words[:-1]:
        document = document.get(word) or {}
    document.pop(words[-1], None)

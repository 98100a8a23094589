"""Writes a sweep folder to MLflow: one experiment a sweep, a parent run a key, a child run a trial with a point a step.

The folder is the truth and MLflow a copy, as with runs and trainings: it can be made later, and again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import DataError
from harness.results.sweep import RECORD, SELECT, SPEED, TRIALS, SweepFolder, history_file, read_sweep
from harness.results.training import by_task
from harness.track import COMPLETE_TAG, TrackResult
from harness.track.bundle import bounded, flat, safe
from harness.track.store import (
    check_uri,
    chunks,
    experiment_named,
    patience,
    store_lock,
    translated,
    ui_command,
)  # fmt: skip
from harness.track.training import KEY_TAG, POINTS_TAG, SHA_TAG, points_of, thinned

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

TRIAL_TAG = "blades.trial"
STATUS = {"finished": "FINISHED", "repeats": "FINISHED", "stopped": "KILLED"}
"""MLflow's word for how a trial ended; FAILED for the others."""
Point = tuple[str, int, float]


def log_sweep(folder: Path, tracking_uri: str) -> TrackResult:
    """Log a sweep folder; logging it again changes nothing, and completes what was cut off or has gone on since.

    Experiment = ``sweep-<name>``; the parent run is the sweep's key: table, figures, best trial, and ``objective`` with
    the trials' numbers as steps. A child run a trial: parameters are the drawn values, metrics by step are ``loss``,
    ``loss/<task>``, ``lambda/<task>``, ``lr`` and ``select/<metric>``, and at its end ``objective`` and ``best``.

    Raises:
        DataError: no sweep folder, or one that cannot be read.
        TrackingError: the store or server cannot be reached or written; quickly, see ``PATIENCE``.
    """
    sweep = _Sweep.of(folder)
    check_uri(tracking_uri)
    with patience(), translated(tracking_uri):
        from mlflow import MlflowClient

        with store_lock(tracking_uri):
            client = MlflowClient(tracking_uri=tracking_uri)
            experiment = experiment_named(client, bounded(f"sweep-{sweep.record.name}", 400), tracking_uri)
            parent = _find_or_create(client, experiment, sweep)
            children = _children(client, experiment, parent)
            done = parent.data.tags.get(COMPLETE_TAG) == sweep.fingerprint and len(children) >= sweep.record.trials
            for row in sweep.rows():  # here, where no other process does the same
                number = int(row["trial"])
                if number not in children:
                    children[number] = _create(client, experiment, parent, number, sweep)
        if not done:
            _log(client, parent, children, sweep)
    names = {f"trial {number}": run.info.run_id for number, run in sorted(children.items())}
    return TrackResult(experiment.experiment_id, parent.info.run_id, names, ui_command(tracking_uri))


@dataclass(frozen=True)
class _Sweep:
    """A sweep folder under MLflow's names."""

    read: SweepFolder
    artifacts: Sequence[Path]
    fingerprint: str

    @classmethod
    def of(cls, folder: Path) -> _Sweep:
        read = read_sweep(folder)
        files = [folder / name for name in (RECORD, TRIALS, SELECT, SPEED)]
        files += sorted(p for p in (folder / "figures").glob("*.png") if p.is_file() and not p.is_symlink())
        files += [folder / history_file(number) for number in read.histories]
        marks = [f"{p.relative_to(folder).as_posix()} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in files]
        return cls(read, files, hashlib.sha256("\n".join(marks).encode()).hexdigest())

    @property
    def record(self) -> Any:
        return self.read.record

    def times(self) -> tuple[int | None, int | None]:
        """Start and end in milliseconds since 1970; None where not recorded."""
        out = []
        for text in (self.record.started, self.record.finished):
            try:
                out.append(int(datetime.fromisoformat(text).timestamp() * 1000) if text else None)
            except ValueError as error:
                raise DataError(f"no time: {error}", where=self.read.folder / RECORD) from None
        return out[0], out[1]

    def rows(self) -> list[dict[str, Any]]:
        """The trials."""
        return [{str(k): v for k, v in row.items()} for row in self.read.trials.to_dict("records")]

    def values(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Drawn values of a trial as parameters."""
        return flat({safe(key): row[key] for key in self.read.keys})

    def points(self, number: int) -> Iterator[Point]:
        """Name, step and value of every point of a trial."""
        history = self.read.histories.get(number)
        if history is not None:
            columns = {"loss": "loss", "lr": "lr"}
            columns |= {f"{g}/{safe(t)}": c for g in ("loss", "lambda") for t, c in by_task(history, g).items()}
            yield from points_of(thinned(history), columns)
        mine = self.read.select[self.read.select["trial"] == number]
        numbers = mine.select_dtypes("number").columns
        names = {f"select/{safe(str(c))}": str(c) for c in numbers if c not in ("trial", "step", "epoch")}
        yield from points_of(thinned(mine), names)

    def parent_params(self) -> dict[str, str]:
        """The sweep's keys and the recipe that all trials share."""
        document = {k: v for k, v in self.record.document.items() if k in ("recipe", "samples", "seed", "objective",
                                                                            "scheduler")}  # fmt: skip
        spaces = {key: f"{s.kind} {s.values}" for key, s in self.record.spaces.items()}
        known = {"key": self.record.key, "trials": self.record.trials}
        return flat({"sweep": document, "space": spaces, "base": self.record.base, **known})

    def parent_points(self) -> Iterator[Point]:
        """The objective by trial, the best one, and counts."""
        for row in self.rows():
            if row["state"] in ("finished", "stopped") and math.isfinite(row["objective"]):
                yield "objective", int(row["trial"]), float(row["objective"])
        yield from ((f"trials/{state}", 0, float(count)) for state, count in self.record.counts.items())

    def parent_tags(self) -> dict[str, str]:
        """What may change when more is known: best trial, counts, how it was started, and on what."""
        record, environment = self.record, self.record.environment
        commit = environment.get("git_commit") or "unknown"
        dirty = json.dumps(environment["git_dirty"]) if environment.get("git_dirty") is not None else "unknown"
        best = next((row for row in self.rows() if row["trial"] == record.best), None)
        told = {} if best is None else {"best_trial": str(record.best), "best_objective": repr(best["objective"]),
                                        "best_values": json.dumps({k: best[k] for k in self.read.keys})}  # fmt: skip
        tags = {
            "profile": record.profile, "stamps": "; ".join(record.stamps) or "none", "git_commit": commit,
            "git_dirty": dirty, "mlflow.source.git.commit": commit, "command": " ".join(record.command),
            "protocol": json.dumps(record.protocol, sort_keys=True), **told,
        } | flat({"environment": {k: v for k, v in environment.items() if not k.startswith("git_")}})  # fmt: skip
        return {k: bounded(v, 5000) for k, v in tags.items()}


def _find_or_create(client: MlflowClient, experiment: Experiment, sweep: _Sweep) -> Run:
    wanted = f"tags.`{KEY_TAG}` = '{sweep.record.key}' AND tags.`blades.kind` = 'sweep'"
    for found in client.search_runs([experiment.experiment_id], filter_string=wanted, max_results=1):
        return found
    tags = {KEY_TAG: sweep.record.key, "blades.kind": "sweep"}
    return client.create_run(
        experiment.experiment_id, start_time=sweep.times()[0], tags=tags, run_name=sweep.record.key[:16]
    )


def _children(client: MlflowClient, experiment: Experiment, parent: Run) -> dict[int, Run]:
    wanted = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' AND tags.`blades.kind` = 'trial'"
    out: dict[int, Run] = {}
    token = None
    while True:
        page = client.search_runs([experiment.experiment_id], filter_string=wanted, max_results=1000, page_token=token)
        out |= {int(run.data.tags[TRIAL_TAG]): run for run in page}
        token = page.token
        if not token:
            return out


def _create(client: MlflowClient, experiment: Experiment, parent: Run, number: int, sweep: _Sweep) -> Run:
    tags = {"mlflow.parentRunId": parent.info.run_id, "blades.kind": "trial", TRIAL_TAG: str(number)}
    return client.create_run(
        experiment.experiment_id, start_time=sweep.times()[0], tags=tags, run_name=f"trial {number:03d}"
    )


def _log(client: MlflowClient, parent: Run, children: Mapping[int, Run], sweep: _Sweep) -> None:
    """Every trial, then the parent; what marks the whole as logged comes last."""
    end = sweep.times()[1]
    for row in sweep.rows():
        number = int(row["trial"])
        _log_trial(client, children[number], row, sweep)
        client.set_terminated(children[number].info.run_id, STATUS.get(row["state"], "FAILED"), end)
    _send(client, parent, list(sweep.parent_points()), sweep.parent_params(), sweep.parent_tags())
    for path in sweep.artifacts:
        inside = path.relative_to(sweep.read.folder).parent.as_posix()
        client.log_artifact(parent.info.run_id, str(path), None if inside == "." else inside)
    client.set_tag(parent.info.run_id, COMPLETE_TAG, sweep.fingerprint)
    client.set_terminated(parent.info.run_id, status="FINISHED", end_time=end)


def _log_trial(client: MlflowClient, run: Run, row: Mapping[str, Any], sweep: _Sweep) -> None:
    number, points = int(row["trial"]), list(sweep.points(int(row["trial"])))
    last = max((step for _, step, _ in points), default=0)
    ends = {name: float(row[name]) for name in ("objective", "best") if math.isfinite(row[name])}
    points += [(name, last, value) for name, value in ends.items()]
    text = {name: row[name] for name in ("state", "reason") if isinstance(row[name], str)}
    tags = {**text, KEY_TAG: row["key"], "epochs": str(row["epochs"])}
    if isinstance(row["sha256"], str):
        tags[SHA_TAG] = row["sha256"]
    if row["trial"] == sweep.record.best:
        tags["best"] = "true"
    elif run.data.tags.get("best"):
        client.delete_tag(run.info.run_id, "best")
    _send(client, run, points, sweep.values(row), {k: bounded(v, 5000) for k, v in tags.items()})
    path = sweep.read.folder / history_file(number)
    if path.is_file():
        client.log_artifact(run.info.run_id, str(path))


def _send(
    client: MlflowClient, run: Run, points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]
) -> None:
    """What is new, in batches of the sizes that every MLflow server takes. A point's time is the run's start and its
    step in milliseconds: the same whenever it is logged, so that no point stands twice."""
    from mlflow.entities import Metric, Param, RunTag

    run_id, before, start = run.info.run_id, run.data, run.info.start_time or 0
    digest = hashlib.sha256(json.dumps(list(points)).encode()).hexdigest()
    if before.tags.get(POINTS_TAG) != digest:
        metrics = [Metric(name, value, start + step, step) for name, step, value in points]
        for some in chunks(metrics, 1000):
            client.log_batch(run_id, metrics=some, synchronous=True)
        client.set_tag(run_id, POINTS_TAG, digest)
    new = [Param(k, v) for k, v in params.items() if k not in before.params]
    for some in chunks(new, 100):
        client.log_batch(run_id, params=some, synchronous=True)
    for some in chunks([RunTag(k, v) for k, v in tags.items() if before.tags.get(k) != v], 100):
        client.log_batch(run_id, tags=some, synchronous=True)

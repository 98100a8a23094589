"""Writes a training folder to MLflow: one experiment a recipe, a run a key, a point a step.

The folder is the truth and MLflow a copy, as with runs: it can be made later and again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api.errors import DataError
from harness.results.training import HISTORY, RECORD, REPORT, SELECT, SPEED, TrainingFolder, by_task, read_training
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

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

MAX_POINTS = 5_000
"""Points of a metric that are logged at most, evenly over the steps with the first and the last; the CSV has all."""
KEY_TAG, SHA_TAG, POINTS_TAG, REPORT_TAG = "blades.key", "blades.sha256", "blades.points", "blades.report"
TABLES = (HISTORY, SPEED, SELECT)


def log_training(folder: Path, tracking_uri: str) -> TrackResult:
    """Log a training folder; logging it again changes nothing, and completes a logging that was cut off.

    Experiment = ``train-<recipe>``, run = the recipe's key (and the weights' sha256: bits that differ, from another
    machine say, are another run). Metrics by step: ``loss``, ``loss/<task>``, ``lambda/<task>``, ``lr``,
    ``images_per_second``, ``memory_mib``, and ``select/<metric>`` where there was an evaluation. Their times are spread
    evenly between start and end: the history has no clock. Of a report, after the last step, ``report/<task>/<metric>``
    with ``_low`` and ``_high``.

    Raises:
        DataError: no training folder, or one that cannot be read.
        TrackingError: the store or server cannot be reached or written; quickly, see ``PATIENCE``.
    """
    training = _Training.of(folder)
    check_uri(tracking_uri)
    with patience(), translated(tracking_uri):
        from mlflow import MlflowClient

        with store_lock(tracking_uri):
            client = MlflowClient(tracking_uri=tracking_uri)
            experiment = experiment_named(client, bounded(f"train-{training.name}", 400), tracking_uri)
            run = _find_or_create(client, experiment, training)
        if run.data.tags.get(COMPLETE_TAG) != training.fingerprint:
            _log(client, run, training)
    return TrackResult(experiment.experiment_id, run.info.run_id, {}, ui_command(tracking_uri))


@dataclass(frozen=True)
class _Training:
    """A training folder under MLflow's names."""

    read: TrainingFolder
    artifacts: Sequence[Path]
    fingerprint: str
    points: str
    reported: str

    @classmethod
    def of(cls, folder: Path) -> _Training:
        read = read_training(folder)
        files = [folder / name for name in (RECORD, *TABLES)]
        files += [folder / REPORT] if len(read.report) else []
        files += sorted(p for p in (folder / "figures").glob("*.png") if p.is_file() and not p.is_symlink())
        digests = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
        marks = [f"{p.relative_to(folder).as_posix()} {digest}" for p, digest in digests.items()]
        points = hashlib.sha256("".join(digests[folder / name] for name in TABLES).encode()).hexdigest()
        whole = hashlib.sha256("\n".join(marks).encode()).hexdigest()
        return cls(read, files, whole, points, digests.get(folder / REPORT, "none"))

    @property
    def name(self) -> str:
        return self.read.record.name

    def times(self) -> tuple[int | None, int | None]:
        """Start and end in milliseconds since 1970; None where not recorded."""
        record, out = self.read.record, []
        for text in (record.started, record.finished):
            try:
                out.append(int(datetime.fromisoformat(text).timestamp() * 1000) if text else None)
            except ValueError as error:
                raise DataError(f"no time: {error}", where=self.read.folder / RECORD) from None
        return out[0], out[1]

    def params(self) -> dict[str, str]:
        """The recipe's keys with the protocol's switches, and what the training is known by."""
        record = self.read.record
        recipe = {k: v for k, v in record.recipe.items() if k not in ("recipe", "protocol")}
        known = {"key": record.key, "sha256": record.sha256, "steps": record.steps}
        return flat({**recipe, "protocol": record.protocol, **known})

    def tags(self) -> dict[str, str]:
        record = self.read.record
        environment = record.environment
        commit = environment.get("git_commit") or "unknown"
        dirty = json.dumps(environment["git_dirty"]) if environment.get("git_dirty") is not None else "unknown"
        shared = {
            KEY_TAG: record.key, SHA_TAG: record.sha256, "protocol": json.dumps(record.protocol, sort_keys=True),
            "stamps": "; ".join(record.stamps) or "none", "resumed": str(record.resumed),
            "command": " ".join(record.command), "git_commit": commit, "git_dirty": dirty,
            "mlflow.source.git.commit": commit, "thinned": self._thinned(),
        } | flat({"environment": {k: v for k, v in environment.items() if not k.startswith("git_")}})  # fmt: skip
        return {k: bounded(v, 5000) for k, v in shared.items()}

    def _thinned(self) -> str:
        steps = len(self.read.history)
        return "no" if steps <= MAX_POINTS else f"{MAX_POINTS:,} of {steps:,} steps; {HISTORY} and {SPEED} have all"

    def metrics(self) -> Iterator[tuple[str, int, float]]:
        """Name, step and value of every point."""
        history, speed, select = self.read.history, self.read.speed, self.read.select
        columns = {"loss": "loss", "lr": "lr"}
        columns |= {f"{g}/{safe(t)}": c for g in ("loss", "lambda") for t, c in by_task(history, g).items()}
        yield from points_of(thinned(history), columns)
        yield from points_of(thinned(speed), {name: name for name in ("images_per_second", "memory_mib")})
        numbers = select.select_dtypes("number").columns
        yield from points_of(
            thinned(select), {f"select/{safe(str(c))}": str(c) for c in numbers if c not in ("step", "epoch")}
        )

    def report(self) -> Iterator[tuple[str, int, float]]:
        """Name, step and value of every number of the report."""
        for row in self.read.report.to_dict("records"):
            name = f"report/{safe(row['task'])}/{safe(row['metric'])}"
            for ending, column in (("", "value"), ("_low", "low"), ("_high", "high")):
                if math.isfinite(row[column]):
                    yield f"{name}{ending}", self.read.record.steps, float(row[column])

    def at(self, step: int) -> int:
        """A time for a step, a function of the folder alone: logging again gives the same points."""
        start, end = self.times()
        if start is None or end is None:
            return start or end or 0
        return start + (end - start) * min(step, self.read.record.steps) // max(1, self.read.record.steps)


def thinned(table: pd.DataFrame) -> pd.DataFrame:
    """At most ``MAX_POINTS`` rows of a table, evenly, the first and the last among them."""
    import numpy as np

    if len(table) <= MAX_POINTS:
        return table
    return table.iloc[np.linspace(0, len(table) - 1, MAX_POINTS).round().astype(int)]


def points_of(table: pd.DataFrame, columns: Mapping[str, str]) -> Iterator[tuple[str, int, float]]:
    """Metric's name, step and value of every finite number in some columns; ``columns`` by the metric's name."""
    steps = table["step"].tolist()
    for name, column in columns.items():
        values = table[column].tolist()
        yield from ((name, int(s), float(v)) for s, v in zip(steps, values, strict=True) if math.isfinite(v))


def _find_or_create(client: MlflowClient, experiment: Experiment, training: _Training) -> Run:
    record = training.read.record
    wanted = f"tags.`{KEY_TAG}` = '{record.key}' AND tags.`{SHA_TAG}` = '{record.sha256}'"
    for found in client.search_runs([experiment.experiment_id], filter_string=wanted, max_results=1):
        return found
    tags = {KEY_TAG: record.key, SHA_TAG: record.sha256, "blades.kind": "training"}
    start = training.times()[0]
    return client.create_run(experiment.experiment_id, start_time=start, tags=tags, run_name=record.key[:16])


def _log(client: MlflowClient, run: Run, training: _Training) -> None:
    """Everything, in batches of the sizes that every MLflow server takes; the points only once."""
    from mlflow.entities import Metric, Param, RunTag

    run_id, before = run.info.run_id, run.data
    for tag, digest, metrics in ((POINTS_TAG, training.points, training.metrics),
                                 (REPORT_TAG, training.reported, training.report)):  # fmt: skip
        if before.tags.get(tag) != digest:
            points = [Metric(name, value, training.at(step), step) for name, step, value in metrics()]
            for some in chunks(points, 1000):
                client.log_batch(run_id, metrics=some, synchronous=True)
            client.set_tag(run_id, tag, digest)
    params = [Param(k, v) for k, v in training.params().items() if k not in before.params]
    for some in chunks(params, 100):
        client.log_batch(run_id, params=some, synchronous=True)
    tags = [RunTag(k, v) for k, v in training.tags().items() if before.tags.get(k) != v]
    for some in chunks(tags, 100):
        client.log_batch(run_id, tags=some, synchronous=True)
    for path in training.artifacts:
        client.log_artifact(run_id, str(path), "figures" if path.suffix == ".png" else None)
    client.set_tag(run_id, COMPLETE_TAG, training.fingerprint)
    client.set_terminated(run_id, status="FINISHED", end_time=training.times()[1])

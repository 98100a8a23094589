"""Writes a finished run folder to MLflow, and nothing else: one experiment a suite, a parent run a run, a child
run a detector. The only package that imports mlflow, and only inside functions.

The run folder is the truth and MLflow a copy of it: logging needs no model and no image, can be done later
(``harness report --log``) and can be repeated. Every call names its run explicitly through ``MlflowClient``; no
active run, no global tracking URI.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.track.bundle import ARTIFACT_FILES, ARTIFACT_FOLDERS, Bundle, bounded
from harness.track.store import (
    TrackingError,
    check_uri,
    chunks,
    default_tracking_uri,
    experiment_named,
    patience,
    store_lock,
    translated,
    ui_command,
)  # fmt: skip

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

__all__ = ["TrackResult", "TrackingError", "default_tracking_uri", "log_run", "ui_command"]

RUN_TAG, COMPLETE_TAG = "blades.run_id", "blades.logged"


@dataclass(frozen=True)
class TrackResult:
    """Where a run went: MLflow's ids, the child run of each detector, and the command that opens the UI."""

    experiment_id: str
    run_id: str
    children: dict[str, str] = field(default_factory=dict)
    ui_command: str = ""


def log_run(run_dir: Path, tracking_uri: str) -> TrackResult:
    """Log a finished run folder; logging the same run id again updates its runs and adds none.

    Experiment = suite name, parent run = run id, child runs = detectors (the ``format-only`` audit is one, tagged
    ``audit``). Means of a run stand on the parent as ``accuracy/<detector>``, the metrics of a detector on its
    child as ``accuracy/<generator>`` with ``accuracy_low`` and ``accuracy_high``. Values that are not numbers are
    named in the tag ``not_a_number``.

    Raises:
        DataError: the folder is no finished run (a file is missing or unreadable).
        TrackingError: the store or server cannot be reached or written; quickly, see ``PATIENCE``.
    """
    run = Bundle.read(run_dir)
    check_uri(tracking_uri)
    with patience(), translated(tracking_uri):
        from mlflow import MlflowClient

        with store_lock(tracking_uri):
            client = MlflowClient(tracking_uri=tracking_uri)
            experiment = experiment_named(client, run.suite, tracking_uri)
            parent, complete = _find_or_create(client, experiment, run, parent=None, name=run.run_id)
        children = _children(client, experiment, run, parent)
        if complete != run.fingerprint or len(children) < len(run.rows):
            children = _log_everything(client, experiment, run, parent)
    return TrackResult(experiment.experiment_id, parent, children, ui_command(tracking_uri))


def _log_everything(client: MlflowClient, experiment: Experiment, run: Bundle, parent: str) -> dict[str, str]:
    children: dict[str, str] = {}
    for row in run.rows:
        child, _ = _find_or_create(client, experiment, run, parent=parent, name=row)
        children[row] = child
        entry = run.record["detectors"].get(row, {"status": "audit"})
        _update(client, child, run, run.metrics_of(row), run.params_of(row), run.tags(row))
        status = "FAILED" if entry.get("status") in ("missing", "failed") else "FINISHED"
        client.set_terminated(child, status=status, end_time=run.times()[1])
    _update(client, parent, run, run.means(), run.params_of(None), run.tags(None))
    for folder in ARTIFACT_FOLDERS:
        if (run.folder / folder).is_dir():
            client.log_artifacts(parent, str(run.folder / folder), artifact_path=folder)
    for name in ARTIFACT_FILES:
        path = run.folder / name
        if path.is_dir():
            client.log_artifacts(parent, str(path), artifact_path=name)
        elif path.is_file():
            client.log_artifact(parent, str(path))
    client.set_tag(parent, COMPLETE_TAG, run.fingerprint)
    client.set_terminated(parent, status="FINISHED", end_time=run.times()[1])
    return children


def _update(
    client: MlflowClient, run_id: str, run: Bundle, metrics: Mapping[str, float], params: Mapping[str, str],
    tags: Mapping[str, str],
) -> None:  # fmt: skip
    """Log what is new or changed, in batches of the sizes that every MLflow server takes."""
    from mlflow.entities import Metric, Param, RunTag

    before = client.get_run(run_id).data
    for key, value in params.items():
        if before.params.get(key, value) != value:
            raise TrackingError(
                f"run {run.run_id!r} is already logged with {key} = {before.params[key]!r}, now {value!r}",
                where=run.folder, fix="a run id stands for one configuration: do not reuse it, or delete the old run",
            )  # fmt: skip
    finite = {k: v for k, v in metrics.items() if math.isfinite(v)}
    absent = sorted(set(metrics) - set(finite))
    tags = {**tags, "not_a_number": bounded(", ".join(absent), 5000)} if absent else dict(tags)
    now = int(time.time() * 1000)
    new_metrics = [Metric(k, v, now, 0) for k, v in finite.items() if before.metrics.get(k) != v]
    new_params = [Param(k, v) for k, v in params.items() if k not in before.params]
    new_tags = [RunTag(k, v) for k, v in tags.items() if before.tags.get(k) != v]
    for some_metrics in chunks(new_metrics, 500):
        client.log_batch(run_id, metrics=some_metrics, synchronous=True)
    for some_params in chunks(new_params, 100):
        client.log_batch(run_id, params=some_params, synchronous=True)
    for some_tags in chunks(new_tags, 100):
        client.log_batch(run_id, tags=some_tags, synchronous=True)
    _log_datasets(client, run_id, run)


def _log_datasets(client: MlflowClient, run_id: str, run: Bundle) -> None:
    """The manifest and each test set as dataset inputs; MLflow keeps equal ones once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Dataset(name, digest[:36], "local", json.dumps({"uri": source})),
            [InputTag("mlflow.data.context", context)],
        )
        for name, digest, source, context in run.datasets
    ]
    for some in chunks(inputs, 500):
        client.log_inputs(run_id, datasets=some)


def _find_or_create(
    client: MlflowClient, experiment: Experiment, run: Bundle, parent: str | None, name: str
) -> tuple[str, str | None]:
    """The run of that name (MLflow's id) and the fingerprint it was completely logged with, if it was."""
    found = _search(client, experiment, run, parent)
    for hit in found:
        if parent is None or hit.data.tags.get("blades.detector") == name:
            return hit.info.run_id, hit.data.tags.get(COMPLETE_TAG)
    tags = {RUN_TAG: run.run_id, "blades.kind": "run" if parent is None else "detector"}
    if parent is not None:
        tags |= {"mlflow.parentRunId": parent, "blades.detector": name}
    created = client.create_run(experiment.experiment_id, start_time=run.times()[0], tags=tags, run_name=name)
    return created.info.run_id, None


def _search(client: MlflowClient, experiment: Experiment, run: Bundle, parent: str | None) -> list[Any]:
    kind = "run" if parent is None else "detector"
    wanted = f"tags.`{RUN_TAG}` = '{run.run_id}' AND tags.`blades.kind` = '{kind}'"
    if parent is not None:
        wanted += f" AND tags.`mlflow.parentRunId` = '{parent}'"
    return list(client.search_runs([experiment.experiment_id], filter_string=wanted, max_results=1000))


def _children(client: MlflowClient, experiment: Experiment, run: Bundle, parent: str) -> dict[str, str]:
    hits = _search(client, experiment, run, parent)
    return {hit.data.tags["blades.detector"]: hit.info.run_id for hit in hits}

"""Where runs are logged: store addresses, the lock around a fresh store, and quick, plain failures."""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import HarnessError
from harness.track.bundle import bounded, safe

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

LOCK_SECONDS = 180.0
"""How long to wait for another process that is creating the same store (a fresh one takes seconds)."""
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
}
"""Set while logging unless the user has set them: a server that is down must not hold up a finished run."""


class TrackingError(HarnessError):
    """A tracking store that cannot be reached or written. The run folder is untouched by it."""


def default_tracking_uri(run_dir: Path) -> str:
    """The sqlite store for a run folder: one for all runs written with the same ``--out``.

    For ``<out>/<suite>-<profile>/<run id>`` and ``<out>/train-<recipe>/<key>`` it is ``mlflow.db`` beside ``out`` where
    ``out`` is called ``runs``, and inside ``out`` otherwise; for a run folder that was moved elsewhere, beside it. For
    ``training/<recipe>`` of a run folder it is the run's.
    """
    holder = run_dir.resolve().parent
    if holder.name == "training" and (holder.parent / "record.json").is_file():
        return default_tracking_uri(holder.parent)
    if holder.name.endswith(("-demo", "-full")) or holder.name.startswith("train-"):
        holder = holder.parent
        holder = holder.parent if holder.name == "runs" else holder
    return f"sqlite:///{holder / 'mlflow.db'}"


def ui_command(tracking_uri: str) -> str:
    """The command that opens the MLflow pages of a store, or the address of a server."""
    if sqlite_path(tracking_uri) is None:
        return f"open {tracking_uri}"
    return f"{shlex.quote(sys.executable)} -m mlflow ui --backend-store-uri {shlex.quote(tracking_uri)}"


def sqlite_path(tracking_uri: str) -> Path | None:
    return Path(tracking_uri.removeprefix("sqlite:///")) if tracking_uri.startswith("sqlite:///") else None


@contextmanager
def store_lock(tracking_uri: str) -> Iterator[None]:
    """Held while a local store is created and the run found in it: several processes that create one sqlite store
    at once break it. Inside, a local store is there. A server keeps its own order."""
    database = sqlite_path(tracking_uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as handle:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TrackingError(
                        f"another process has held the store's lock for {LOCK_SECONDS:.0f} s", where=handle.name,
                        fix="wait for it, or log later with `harness report --log`",
                    ) from None  # fmt: skip
                time.sleep(0.1)
        if not database.exists():
            _create(database)
        yield


def _create(database: Path) -> None:
    """Make a store that is there whole or not at all: MLflow migrates a new one in steps, and one whose process was
    killed between two of them is refused ever after."""
    from mlflow import MlflowClient

    fresh = database.with_name(f"{database.name}.new")
    fresh.unlink(missing_ok=True)
    MlflowClient(tracking_uri=f"sqlite:///{fresh}").search_experiments(max_results=1)
    fresh.replace(database)


@contextmanager
def patience() -> Iterator[None]:
    """MLflow quick to give up, quiet, and not reporting its use to anyone, for the length of the call."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    added = {k: v for k, v in PATIENCE.items() if k not in os.environ}
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow")]
    levels = [logger.level for logger in loggers]
    os.environ.update(added)
    try:
        import mlflow  # noqa: F401  its import sets logging levels, which are then lowered

        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for key in added:
            os.environ.pop(key, None)


@contextmanager
def translated(tracking_uri: str) -> Iterator[None]:
    """Whatever MLflow, its database or the network raises, as a TrackingError that says what to do."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrackingError(
            f"cannot log to MLflow: {bounded(first, 400)}", where=tracking_uri,
            fix="start or repair the tracking server, then `harness report --log RUN_DIR`; the run folder is complete",
        ) from error  # fmt: skip


def check_uri(tracking_uri: str) -> None:
    """Refuse what is no address of a store or server.

    Raises:
        TrackingError: says what one looks like.
    """
    if "://" not in tracking_uri:
        raise TrackingError(f"not a tracking URI: {tracking_uri!r}", fix="sqlite:////absolute/mlflow.db or http://...")


def experiment_named(client: MlflowClient, name: str, tracking_uri: str) -> Experiment:
    """The experiment of that name, made if it is not there; artifacts of a sqlite store lie beside it.

    Raises:
        TrackingError: it was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_path(tracking_uri)
        location = None if database is None else (database.resolve().parent / "mlartifacts" / safe(name)).as_uri()
        found = client.get_experiment(client.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"experiment {name!r} was deleted in MLflow", where=tracking_uri,
            fix=f"mlflow experiments restore --experiment-id {found.experiment_id}, or use another store",
        )  # fmt: skip
    return found


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items in parts of a size: a server takes so many at once."""
    return (items[i : i + size] for i in range(0, len(items), size))

"""A sweep folder: what was swept, how every trial went and ended, and when and where; the truth of which MLflow is a
copy.

```
sweep.json                 the sweep with every key, its spaces, the best trial, command, environment
trials.csv                 a row a trial: drawn values, how it ended, epochs, objective, recipe key, sha256 of weights
select.csv                 metrics on `select`, a row a trial and evaluation
speed.csv                  clock readings and memory; never equal
trials/<number>.csv        history of a trial, a row an optimiser step, as `history.csv` of a training
figures/                   drawn from the CSVs by `reports.sweep`
```

The CSVs but `speed.csv` are equal, to the byte, between equal sweeps, interrupted or not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.api.errors import DataError
from harness.results.files import to_json, write_atomic
from harness.results.training import HEX, bounded_bytes, history_table, read_table

if TYPE_CHECKING:
    import pandas as pd

RECORD, TRIALS, SELECT, SPEED, HISTORIES = "sweep.json", "trials.csv", "select.csv", "speed.csv", "trials"
BEFORE = ("trial", "state")
AFTER = ("epochs", "objective", "best_epoch", "best", "repeats", "reason", "key", "sha256")
"""Columns of ``trials.csv`` before and after the swept keys."""
SELECT_COLUMNS = ("trial", "step", "epoch")
SPEED_COLUMNS = ("trial", "seconds", "images_per_second", "memory_mib")
STATES = ("finished", "stopped", "failed", "crashed", "repeats")
"""How a trial can end: trained to its end; stopped at a rung; failed by its own numbers; gone with its worker or by a
fault of the program (tried again by the same command); an equal trial has a lower number."""
MAX_JSON = 64 << 20


class SpaceRecord(BaseModel):
    """The space of a key; ``logarithmic`` says what its axis is."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    values: list[Any]
    logarithmic: bool = False


class SweepRecord(BaseModel):
    """``sweep.json``. ``key`` is of the trials' keys, the objective and the rule that stops; ``document`` the resolved
    file; ``base`` the recipe of every trial without what is drawn; ``best`` the number of the best finished trial;
    ``trained`` how many trials this command trained; ``counts`` how many trials ended in each way."""

    model_config = ConfigDict(extra="forbid")

    record_version: int = 1
    name: str = Field(min_length=1, max_length=300)
    title: str = ""
    profile: str = ""
    key: str = Field(pattern=HEX)
    document: dict[str, Any]
    spaces: dict[str, SpaceRecord]
    metric: str
    mode: str
    rungs: list[int] = Field(default_factory=list)
    base: dict[str, Any] = Field(default_factory=dict)
    protocol: dict[str, Any] = Field(default_factory=dict)
    trials: int = Field(ge=0)
    counts: dict[str, int] = Field(default_factory=dict)
    trained: int = 0
    best: int | None = None
    numerics: dict[str, Any] = Field(default_factory=dict)
    started: str = ""
    finished: str = ""
    command: list[str] = Field(default_factory=list)
    stamps: list[str] = Field(default_factory=list)
    environment: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class TrialResult:
    """A trial as the folder has it; ``entry`` is what the store says of its training (``history``, ``evaluations``,
    ``readings``), cut at the epoch where it ended."""

    number: int
    values: Mapping[str, Any]
    state: str
    epochs: int
    objective: float
    best_epoch: int
    best: float
    key: str
    batch_size: int
    entry: Mapping[str, Any]
    repeats: int | None = None
    reason: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class SweepFolder:
    """A sweep folder that was read; ``histories`` has the trials that have one."""

    folder: Path
    record: SweepRecord
    trials: pd.DataFrame
    select: pd.DataFrame
    speed: pd.DataFrame
    histories: Mapping[int, pd.DataFrame]

    @property
    def keys(self) -> list[str]:
        """Swept keys in the file's order."""
        return [str(column) for column in self.trials if column in self.record.spaces]


def history_file(number: int) -> str:
    """Name of a trial's history below the folder."""
    return f"{HISTORIES}/{number:04d}.csv"


def write_sweep(folder: Path, record: SweepRecord, trials: Sequence[TrialResult]) -> SweepFolder:
    """Write a sweep folder without its figures; the record is written last.

    Raises:
        StoreError: the folder cannot be written.
    """
    import pandas as pd

    rows = [
        {"trial": t.number, "state": t.state, **t.values, "epochs": t.epochs, "objective": t.objective,
         "best_epoch": t.best_epoch or None, "best": t.best, "repeats": t.repeats, "reason": t.reason, "key": t.key,
         "sha256": t.sha256} for t in trials
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=[*BEFORE, *record.spaces, *AFTER])
    table = table.astype({"best_epoch": "Int64", "repeats": "Int64"})
    select = [{"trial": t.number, "step": e["step"], "epoch": e["epoch"], **e["metrics"]}
              for t in trials for e in t.entry.get("evaluations", ())]  # fmt: skip
    names = list(dict.fromkeys([*SELECT_COLUMNS, *(k for row in select for k in row)]))
    speed = pd.DataFrame([_speed(t) for t in trials if t.entry.get("readings")], columns=list(SPEED_COLUMNS))
    tables = {TRIALS: table, SELECT: pd.DataFrame(select, columns=names), SPEED: speed}
    tables |= {history_file(t.number): history_table(t.entry["history"]) for t in trials if t.entry.get("history")}
    for old in (folder / HISTORIES).glob("*.csv"):
        if f"{HISTORIES}/{old.name}" not in tables:
            old.unlink()
    for name, made in tables.items():
        write_atomic(folder / name, made.to_csv(index=False, lineterminator="\n").encode())
    write_atomic(folder / RECORD, to_json(record.model_dump(mode="json")))
    return read_sweep(folder)


def _speed(trial: TrialResult) -> dict[str, Any]:
    """Seconds of a trial's optimiser steps, the median of images a second, and the most memory."""
    import numpy as np

    readings = trial.entry["readings"]
    rates = np.array(readings["images_per_second"], np.float64)
    memory = max(readings["memory_mib"], default=0)
    seconds = float((trial.batch_size / np.maximum(rates, 1e-9)).sum())
    rate = float(np.median(rates)) if len(rates) else 0.0
    return {"trial": trial.number, "seconds": round(seconds, 3), "images_per_second": round(rate, 3),
            "memory_mib": memory}  # fmt: skip


def is_sweep_folder(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / RECORD).is_file()


def read_sweep(folder: Path) -> SweepFolder:
    """A sweep folder, wherever it came from.

    Raises:
        DataError: it is none, or a file of it cannot be read: names it.
    """
    if not is_sweep_folder(folder):
        raise DataError(f"not a sweep folder: {RECORD} is missing", folder, "name runs/sweep-NAME-PROFILE/KEY")
    try:
        record = SweepRecord.model_validate(json.loads(bounded_bytes(folder / RECORD, MAX_JSON)))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(f"no record of a sweep: {key}: {first['msg']}", folder / RECORD) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"the record cannot be read: {error}", folder / RECORD) from None
    trials = read_table(folder / TRIALS, [*BEFORE, *record.spaces, *AFTER], numbers=("trial", "epochs"))
    numbers = [int(n) for n in trials["trial"]]
    histories = {n: read_table(folder / history_file(n), ("step", "epoch")) for n in numbers
                 if (folder / history_file(n)).is_file()}  # fmt: skip
    select, speed = read_table(folder / SELECT, SELECT_COLUMNS), read_table(folder / SPEED, SPEED_COLUMNS)
    return SweepFolder(folder, record, trials, select, speed, histories)

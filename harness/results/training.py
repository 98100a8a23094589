"""A training folder: what a trained recipe was, how it went step by step, and when and where; the truth of which
MLflow is a copy.

```
training.json    recipe with every key, key, protocol, sha256 of the weights, metrics on `select`, sessions, environment
history.csv      a row an optimiser step; equal between equal trainings
speed.csv        clock readings and memory of each step; never equal
select.csv       metrics on `select`, a row an evaluation
report.csv       metrics on `report`, a row a number; only where they were asked for
figures/         drawn from the CSVs by `reports.training`
```
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.api.errors import DataError
from harness.results.files import to_json, write_atomic

if TYPE_CHECKING:
    import pandas as pd

RECORD, HISTORY, SPEED, SELECT = "training.json", "history.csv", "speed.csv", "select.csv"
TABLES = {HISTORY: ("step", "epoch", "lr", "loss"), SPEED: ("step", "images_per_second", "memory_mib"),
          SELECT: ("step", "epoch")}  # fmt: skip
"""The tables that every training folder has and the columns that each begins with."""
REPORT = "report.csv"
REPORT_COLUMNS = ("task", "metric", "value", "low", "high", "chance", "images", "verdict")
ABOVE, AT, BELOW = "above chance", "at chance", "below chance"
MAX_JSON, MAX_CSV = 16 << 20, 512 << 20
"""Bytes of a record and of a table that are read at most: a folder may come from elsewhere."""
HEX = r"^[0-9a-f]{64}$"


class Session(BaseModel):
    """One process that trained: its first step, when it began, its command."""

    model_config = ConfigDict(extra="forbid")

    first_step: int
    started: str
    command: list[str]


class TrainingRecord(BaseModel):
    """``training.json``.

    ``key`` is the recipe's on its images; ``inputs`` the digests of images and annotations in it; ``metrics`` those
    on `select` at the end, or of the weights that were kept; ``sessions`` the processes that trained, in order, and
    ``resumed`` how many of them went on from a checkpoint; ``stamps`` stand on every figure; ``reported_on`` are the
    digests of the images and annotations that ``report.csv`` is of.
    """

    model_config = ConfigDict(extra="forbid")

    record_version: int = 1
    name: str = Field(min_length=1, max_length=300)
    key: str = Field(pattern=HEX)
    sha256: str = Field(pattern=HEX)
    recipe: dict[str, Any]
    protocol: dict[str, Any]
    inputs: list[str] = Field(default_factory=list)
    edits: dict[str, Any] = Field(default_factory=dict)
    numerics: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    steps: int = Field(ge=0)
    started: str = ""
    finished: str = ""
    command: list[str] = Field(default_factory=list)
    resumed: int = 0
    sessions: list[Session] = Field(default_factory=list)
    stamps: list[str] = Field(default_factory=list)
    environment: dict[str, Any] = Field(default_factory=dict)
    reported_on: list[str] = Field(default_factory=list)


@dataclass(frozen=True)
class TrainingFolder:
    """A training folder that was read: the record, and the tables with their columns (see `history_table`, and
    `report_table`: no rows where there is no report)."""

    folder: Path
    record: TrainingRecord
    history: pd.DataFrame
    speed: pd.DataFrame
    select: pd.DataFrame
    report: pd.DataFrame


def file_name(text: str) -> str:
    """A recipe's name as the name of a folder; a changed one carries a digest, so that none collide."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", text).strip(".")[:60]
    return safe if safe == text and safe else f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _flat(value: Any, name: str, out: dict[str, Any]) -> None:
    """JSON as columns: a mapping's keys, a list's positions or what its items call ``scale``, joined by "/"."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _flat(item, f"{name}/{key}", out)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for i, item in enumerate(value):
            scaled = isinstance(item, Mapping) and "scale" in item
            rest = {k: v for k, v in item.items() if k != "scale"} if scaled else item
            _flat(rest, f"{name}/{item['scale']:g}" if scaled else f"{name}/{i}", out)
    else:
        out[name] = value


def history_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A history as a table, a row a step: step, epoch, lr, loss, ``loss/<task>``, then what the step adds.

    ``lambda/<task>`` are weights after the update; of an audit ``audit/exact/<task>``, ``audit/v_norm`` and, for each
    scale of the difference's step, ``audit/differences/<scale>/...``. Values that a step does not give are empty.
    """
    import pandas as pd

    table = []
    for row in rows:
        out: dict[str, Any] = {k: row[k] for k in TABLES[HISTORY]}
        _flat(row["losses"], "loss", out)
        for key in sorted(row.keys() - {*TABLES[HISTORY], "losses"}, key=lambda k: (k != "lambda", k)):
            _flat(row[key], key, out)
        table.append(out)
    columns = list(dict.fromkeys(c for row in table for c in row)) or list(TABLES[HISTORY])
    return pd.DataFrame(table, columns=columns)


def verdict(low: float, high: float, chance: float | None) -> str:
    """Where a 95 % interval lies: above, at or below chance; nothing where there is no chance level."""
    if chance is None or math.isnan(chance) or math.isnan(low) or math.isnan(high):
        return ""
    return ABOVE if low > chance else BELOW if high < chance else AT


def report_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A report as a table, a row a number, with the verdict; ``chance`` is empty where guessing has no level."""
    import pandas as pd

    table = [{**row, "verdict": verdict(row["low"], row["high"], row["chance"])} for row in rows]
    return pd.DataFrame(table, columns=list(REPORT_COLUMNS))


def write_training(
    folder: Path,
    key: str,
    entry: Mapping[str, Any],
    stamps: Sequence[str] = (),
    report: Mapping[str, Any] | None = None,
) -> TrainingFolder:
    """Write a training folder, without its figures, from what the store says of a trained recipe; equal entries give
    equal files. The record is written last.

    Args:
        report: ``inputs`` and ``rows`` of a report on `report`. Without it a report that is there of the same
            weights stays, and one of other weights goes.

    Raises:
        StoreError: the folder cannot be written.
    """
    import pandas as pd

    kept = _kept_report(folder, entry["sha256"]) if report is None else (report["inputs"], report_table(report["rows"]))
    sessions, said = list(entry.get("sessions", ())), entry["description"]
    record = TrainingRecord(
        name=entry["recipe"]["recipe"], key=key, sha256=entry["sha256"], recipe=entry["recipe"],
        protocol=said["stage"]["protocol"], inputs=said["inputs"], edits=said["edits"], numerics=said["numerics"],
        metrics=entry["metrics"], steps=len(entry["history"]), finished=entry.get("finished", ""),
        started=sessions[0]["started"] if sessions else "", command=sessions[-1]["command"] if sessions else [],
        resumed=sum(s["first_step"] > 1 for s in sessions), sessions=sessions, stamps=list(stamps),
        environment=entry.get("environment", {}), reported_on=list(kept[0]) if len(kept[1]) else [],
    )  # fmt: skip
    select = [{"step": e["step"], "epoch": e["epoch"], **e["metrics"]} for e in entry.get("evaluations", ())]
    tables = {
        HISTORY: history_table(entry["history"]),
        SPEED: pd.DataFrame(entry.get("readings", {}), columns=list(TABLES[SPEED])),
        SELECT: pd.DataFrame(select, columns=list(dict.fromkeys([*TABLES[SELECT], *(k for e in select for k in e)]))),
    }
    for name, table in tables.items():
        write_atomic(folder / name, _csv(table))
    if len(kept[1]):
        write_atomic(folder / REPORT, _csv(kept[1]))
    else:
        (folder / REPORT).unlink(missing_ok=True)
    write_atomic(folder / RECORD, to_json(record.model_dump(mode="json")))
    return TrainingFolder(folder, record, tables[HISTORY], tables[SPEED], tables[SELECT], kept[1])


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode()


def _kept_report(folder: Path, sha256: str) -> tuple[list[str], pd.DataFrame]:
    """The report that a folder has of these weights; an empty one where there is none that can be read."""
    if is_training(folder):
        with contextlib.suppress(DataError):
            there = read_training(folder)
            if there.record.sha256 == sha256:
                return there.record.reported_on, there.report
    return [], report_table([])


def is_training(folder: Path) -> bool:
    """Whether a folder is a training's."""
    return (folder / RECORD).is_file()


def read_training(folder: Path) -> TrainingFolder:
    """A training folder, wherever it came from.

    Raises:
        DataError: it is none, or a file of it cannot be read: names it.
    """
    if not is_training(folder):
        raise DataError(f"not a training folder: {RECORD} is missing", folder, "name runs/train-RECIPE/KEY")
    try:
        document = json.loads(bounded_bytes(folder / RECORD, MAX_JSON))
        record = TrainingRecord.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(f"no record of a training: {key}: {first['msg']}", folder / RECORD) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"the record cannot be read: {error}", folder / RECORD) from None
    tables = {name: read_table(folder / name, needed) for name, needed in TABLES.items()}
    report = _report(folder / REPORT)
    return TrainingFolder(folder, record, tables[HISTORY], tables[SPEED], tables[SELECT], report)


def _report(path: Path) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        return report_table([])
    table = read_table(path, REPORT_COLUMNS, numbers=("value", "low", "high", "images"))
    words = table[["task", "metric"]]
    if words.isna().any(axis=None) or table.duplicated(["task", "metric"]).any():
        raise DataError("a number without a name of its own", path)
    if table["chance"].notna().any() and not pd.api.types.is_numeric_dtype(table["chance"]):
        raise DataError("not a number in column chance", path)
    return table.assign(task=words["task"].astype(str), metric=words["metric"].astype(str),
                        chance=table["chance"].astype(float), verdict=table["verdict"].fillna(""))  # fmt: skip


def bounded_bytes(path: Path, limit: int) -> bytes:
    """A file's bytes.

    Raises:
        DataError: it cannot be read, or is larger than ``limit``.
    """
    try:
        if path.stat().st_size > limit:
            raise DataError(f"larger than {limit >> 20:,} MiB", path)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path) from None


def read_table(path: Path, needed: Sequence[str], numbers: Sequence[str] | None = None) -> pd.DataFrame:
    """A table with the columns that are needed, of numbers if no others are named; the first one is never missing.
    Other columns (words that a step adds) stay as they are.

    Raises:
        DataError: it cannot be read, lacks a column, or has something else than numbers in one.
    """
    import numpy as np
    import pandas as pd

    try:
        table = pd.read_csv(io.BytesIO(bounded_bytes(path, MAX_CSV)), float_precision="round_trip", low_memory=False)
    except ValueError as error:  # a parser's error, or text that is not UTF-8
        raise DataError(f"cannot be read: {error}", path) from None
    lacking = [name for name in needed if name not in table]
    if lacking:
        raise DataError(f"a column is missing: {lacking[0]}", path)
    numbers = needed if numbers is None else numbers
    words = [n for n in numbers if len(table) and not pd.api.types.is_numeric_dtype(table[n])]
    if words or not np.isfinite(table[numbers[0]].to_numpy(np.float64)).all():
        raise DataError(f"not a number in column {(words or numbers)[0]}", path)
    return table


def by_task(table: pd.DataFrame, group: str) -> dict[str, str]:
    """Task -> column of a group of columns of numbers (``loss``, ``lambda``): those called ``<group>/<task>``."""
    import pandas as pd

    start = f"{group}/"
    return {str(c)[len(start) :]: str(c) for c in table
            if str(c).startswith(start) and pd.api.types.is_numeric_dtype(table[c])}  # fmt: skip

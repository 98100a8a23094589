"""Reads a finished run folder for logging: metrics, parameters, tags and data digests under the names MLflow takes."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.api.errors import DataError
from harness.data.tables import is_table, table_parts

ARTIFACT_FOLDERS = ("tables", "figures", "training")
ARTIFACT_FILES = ("scores.parquet", "cells.parquet", "metrics.csv", "comparisons.csv", "record.json", "report.html",
                  "suite.resolved.yaml")  # fmt: skip

RECORD_KEYS = ("suite", "profile", "protocol", "run_id", "detectors", "manifest_sha256")
OUTCOME_KEYS = ("status", "message", "traceback", "random_weights", "seen", "published_row", "threshold")
"""Keys of a detector's entry in record.json that say how it ended: tags (the threshold a metric), no parameters."""


@dataclass(frozen=True)
class Bundle:
    """What a run folder says, read once."""

    folder: Path
    record: Mapping[str, Any]
    metric_rows: Sequence[Mapping[str, str]]
    datasets: Sequence[tuple[str, str, str, str]]
    fingerprint: str

    @classmethod
    def read(cls, folder: Path) -> Bundle:
        for name in ("record.json", "metrics.csv", "cells.parquet"):
            if not is_table(folder / name):
                raise DataError(f"not a finished run: {name} is missing", where=folder, fix="run the suite again")
        try:
            record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
            with (folder / "metrics.csv").open(newline="", encoding="utf-8") as handle:
                rows = list(csv.DictReader(handle))
            needed = [k for k in RECORD_KEYS if k not in record]
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"unreadable run folder: {error}", where=folder) from error
        if needed:
            raise DataError(f"record.json lacks {', '.join(needed)}", where=folder / "record.json")
        if not re.fullmatch(r"[\w.:+-]{1,200}", str(record["run_id"])):
            raise DataError(f"run id {record['run_id']!r} has characters it cannot have", where=folder / "record.json")
        datasets = _datasets(folder, f"{record['suite']}-{record['profile']}", str(record["manifest_sha256"]))
        files = [p for p in sorted(folder.rglob("*")) if p.is_file() and _logged(p.relative_to(folder))]
        marks = [f"{p.relative_to(folder).as_posix()} {_file_digest(p)}" for p in files]
        digest = hashlib.sha256("\n".join(marks).encode()).hexdigest()
        return cls(folder, record, rows, datasets, digest)

    @property
    def suite(self) -> str:
        return str(self.record["suite"])

    @property
    def run_id(self) -> str:
        return str(self.record["run_id"])

    @property
    def rows(self) -> list[str]:
        """Detector rows in the record's order, then what only metrics.csv has (the format audit)."""
        return list(dict.fromkeys([*self.record["detectors"], *(r["detector"] for r in self.metric_rows)]))

    def metrics_of(self, detector: str) -> dict[str, float]:
        """Every metric of one detector, its interval and its counts, by MLflow name."""
        out: dict[str, float] = {}
        threshold = self.record["detectors"].get(detector, {}).get("threshold")
        if threshold is not None:
            out["threshold"] = float(threshold)
        for row in self.metric_rows:
            if row["detector"] != detector:
                continue
            where = safe(row["test_set"])
            for suffix, column in (("", "value"), ("_low", "low"), ("_high", "high")):
                out[f"{safe(row['metric'])}{suffix}/{where}"] = _number(row.get(column))
            for count in ("n", "n_photographic", "n_generated", "abstained"):
                if row.get(count):
                    out[f"{count}/{where}"] = _number(row[count])
        return out

    def times(self) -> tuple[int | None, int | None]:
        """When the run started and finished, in milliseconds since 1970 as MLflow has it; None where not recorded."""
        start, end = (self.record.get(k) for k in ("started", "finished"))
        try:
            ms = [int(datetime.fromisoformat(t).timestamp() * 1000) if t else None for t in (start, end)]
        except (TypeError, ValueError) as error:
            raise DataError(f"started or finished is no time: {error}", where=self.folder / "record.json") from None
        return ms[0], ms[1]

    def params_of(self, detector: str | None) -> dict[str, str]:
        """Parameters of a detector's child: its options, its weights, the protocol; None: the parent's."""
        if detector is None:
            return flat(
                {k: self.record[k] for k in ("profile", "protocol", "reference", "bootstrap") if k in self.record}
            )
        entry = self.record["detectors"].get(detector, {})
        known = {k: v for k, v in entry.items() if k not in OUTCOME_KEYS}
        return flat({"detector": known, "protocol": self.record["protocol"]})

    def means(self) -> dict[str, float]:
        """The mean over generators of each metric of each detector, and the timings, for the parent run."""
        rows = [r for r in self.metric_rows if r["test_set"] == "mean"]
        means = {f"{safe(r['metric'])}/{safe(r['detector'])}": _number(r["value"]) for r in rows}
        groups = {"seconds": "timings", "computed": "computed", "images": "images"}
        counts = {
            f"{title}/{safe(str(k))}": float(v)
            for title, key in groups.items()
            for k, v in self.record.get(key, {}).items()
        }
        return means | counts

    def tags(self, detector: str | None) -> dict[str, str]:
        """Tags of the parent (None) or of one detector's child."""
        environment = self.record.get("environment", {})
        commit = environment.get("git_commit") or "unknown"
        dirty = {True: "true", False: "false"}.get(environment.get("git_dirty"), "unknown")
        shared = {
            "profile": str(self.record["profile"]), "manifest": str(self.record["manifest_sha256"]),
            "stamps": "; ".join(map(str, self.record.get("stamps", []))) or "none",
            "protocol": json.dumps(self.record["protocol"], sort_keys=True),
            "protocol_base": str(self.record.get("protocol_base", "")),
            "git_commit": commit, "git_dirty": dirty, "mlflow.source.git.commit": commit,
            "blades.folder": self.folder.name,
        } | flat({"environment": {k: v for k, v in environment.items() if not k.startswith("git_")}})  # fmt: skip
        if detector is None:
            shared["failures"] = str(len(self.record.get("failures", [])))
            shared["mlflow.note.content"] = self._note()
        else:
            entry = self.record["detectors"].get(detector)
            shared["audit"] = str(entry is None).lower()
            for key in OUTCOME_KEYS[:-1]:
                if entry is not None and entry.get(key) not in (None, ""):
                    shared[key] = entry[key] if isinstance(entry[key], str) else json.dumps(entry[key])
        return {k: bounded(v, 5000) for k, v in shared.items()}

    def _note(self) -> str:
        stamps = "\n".join(f"- **{s}**" for s in self.record.get("stamps", []))
        return (
            f"Suite `{self.suite}`, profile `{self.record['profile']}`, run `{self.run_id}`.\n\n{stamps}\n\n"
            f"Tables, figures, page and every score are artifacts of this run; each detector is a child run.\n"
            f"Remake them from the run folder with `harness report RUN_DIR`."
        )


def _datasets(folder: Path, name: str, manifest: str) -> list[tuple[str, str, str, str]]:
    """(name, sha256, source, context) of the manifest and of each test set, the latter of what it holds."""
    path = folder / "cells.parquet"
    by_set: dict[str, list[tuple[str, ...]]] = {}
    try:
        for part in table_parts(path, ["test_set", "sha256", "label", "generator"]):
            for row in part.astype("str").itertuples(index=False, name=None):
                by_set.setdefault(row[0], []).append(row)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"unreadable table: {error}", where=path) from error
    found = [(f"{name} manifest", manifest, "manifest.parquet", "manifest")]
    found += [(f"{name} {s}", _content_digest(rows), "cells.parquet", "report") for s, rows in sorted(by_set.items())]
    return found


def _content_digest(rows: Sequence[tuple[str, ...]]) -> str:
    lines = sorted(map("\t".join, rows))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _logged(relative: Path) -> bool:
    return relative.parts[0] in (*ARTIFACT_FOLDERS, *ARTIFACT_FILES)


def _file_digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _number(text: str | None) -> float:
    return float(text) if text not in (None, "") else math.nan


def safe(name: str) -> str:
    """A name with the characters that MLflow takes; a changed name carries a digest, so that none collide."""
    cleaned = re.sub(r"[^\w. -]", "_", name, flags=re.ASCII)[:100].strip(". ")
    return cleaned if cleaned == name else f"{cleaned}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def bounded(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 30]}... ({len(text)} characters)"


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested JSON as dotted names with text values, bounded to what MLflow takes; nulls are left out."""
    out: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{safe(str(key))}"
        if isinstance(item, Mapping):
            out |= flat(item, f"{name}.")
        elif item is None:
            continue
        else:
            out[name[:250]] = bounded(item if isinstance(item, str) else json.dumps(item), 5000)
    return out

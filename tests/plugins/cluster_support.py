"""What tests of the engine `ray` share: the run that all compare with, worker processes, faults to order."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from plugin_support import Cli, Done, scores_file

ROWS = ("calibrated", "pseudo-head", "grad-map", "native-size", "abstainer", "slow-native", "perilous")
RAY = ("--engine", "ray")
EXECUTION = {"workers": 2, "threads": 1}
"""Of the suites here; what a suite says is no stamp on its tables, other than ``--set``."""


@dataclass(frozen=True)
class Base:
    """Undisturbed runs by the engine `inline`: the command line, the data, and the run folder of all rows. ``suite``
    has one worker under Ray, which is faster to start, and ``wide`` as many as there is room for."""

    cli: Cli
    suite: Path
    wide: Path
    data: Path
    run: Path
    _parts: dict[tuple[str, ...], Path] = field(default_factory=dict)

    @property
    def scores(self) -> Path:
        """Of all rows."""
        return self.run / "scores.parquet"

    @property
    def store(self) -> Path:
        """Its store."""
        return self.cli.folder / ".blades-store"

    def table(self, *rows: str) -> pd.DataFrame:
        """Scores of some rows."""
        table = pd.read_parquet(self.scores)
        return table[table["detector"].isin(rows)].reset_index(drop=True)

    def folder(self, *rows: str) -> Path:
        """The run folder of some rows alone; their scores are stored."""
        if rows not in self._parts:
            done = self.cli.run(self.suite, self.data, "--detectors", ",".join(rows))
            assert done.document["computed_images"] == 0
            self._parts[rows] = scores_file(done, self.cli).parent
        return self._parts[rows]

    def same(self, done: Done, cli: Cli, *rows: str) -> None:
        """Assert that a run ended well, with these rows and the same scores, metrics and tables, byte by byte."""
        assert done.code == 0, done.text
        same_results(scores_file(done, cli).parent, self.folder(*rows))


def same_results(one: Path, two: Path) -> None:
    """Assert that two run folders have the same scores, test sets, metrics and tables, byte by byte."""
    for folder in (one, two):
        assert (folder / "tables/accuracy.md").is_file()
    names = [{p.name for p in (folder / "tables").iterdir()} for folder in (one, two)]
    assert names[0] == names[1]
    files = ["scores.parquet", "cells.parquet", "metrics.csv", "comparisons.csv", *(f"tables/{n}" for n in names[0])]
    for name in files:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


# runs ----------------------------------------------------------------------------------------------------------------


def start(cli: Cli, suite: Path, data: Path, *words: object) -> subprocess.Popen[str]:
    """A run under Ray that is not waited for."""
    fixed = ("--data-root", data, "--device", "cpu", "--tracking-uri", "off", "--json")
    return cli.start("run", suite, *fixed, *RAY, *words)


def ended(process: subprocess.Popen[str]) -> Done:
    """How it ended."""
    out, err = process.communicate(timeout=600)
    return Done(process.returncode, out, err)


def working(process: subprocess.Popen[str], cli: Cli) -> list[int]:
    """Its workers, once some features are stored."""

    def found() -> list[int]:
        assert process.poll() is None, "".join(process.communicate())
        stored = features_stored(cli.folder / ".blades-store")
        return [pid for pid in workers(process.pid) if "extract" in command(pid)] if stored else []

    return wait_until(found)


def tracked(cli: Cli) -> list[dict[str, Any]]:
    """Parent runs of the MLflow store of a folder: status, name, metrics, and the same of their children."""
    code = (
        "import json, mlflow\n"
        "client = mlflow.MlflowClient('sqlite:///mlflow.db')\n"
        "ids = [e.experiment_id for e in client.search_experiments()]\n"
        "runs = client.search_runs(ids)\n"
        "out = [{'status': r.info.status, 'parent': r.data.tags.get('mlflow.parentRunId'), 'id': r.info.run_id,\n"
        "        'name': r.info.run_name, 'metrics': r.data.metrics} for r in runs]\n"
        "print(json.dumps(out))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=cli.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout.splitlines()[-1])
    parents = [run for run in runs if run["parent"] is None]
    for parent in parents:
        parent["children"] = [run for run in runs if run["parent"] == parent["id"]]
    return parents


# processes -----------------------------------------------------------------------------------------------------------


def _parents() -> dict[int, int]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            found[int(path.parent.name)] = int(fields[1])
    return found


def descendants(pid: int) -> list[int]:
    """Every living process below one."""
    parents = _parents()
    found, todo = [], [pid]
    while todo:
        above = todo.pop()
        below = [child for child, parent in parents.items() if parent == above]
        found += below
        todo += below
    return found


def command(pid: int) -> str:
    """Its command line; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def born(pid: int) -> str:
    """When a process began, which tells it from a later one of the same number; "" once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def features_stored(store: Path) -> bool:
    """Whether some features are stored (facts of images are stored before)."""
    described = (path for path in store.glob("items/*/key.json") if '"kind": "features"' in path.read_text())
    return any(True for path in described for _ in path.parent.glob("*.index"))


def workers(pid: int) -> list[int]:
    """Our worker processes below a process, those that work first."""
    found = [p for p in descendants(pid) if command(p).startswith("ray::Worker")]
    return sorted(found, key=lambda p: "extract" not in command(p))


def none_left(processes: dict[int, str]) -> None:
    """Processes of a Ray of our own end with the one that started it."""
    wait_until(lambda: not any(born(pid) == began for pid, began in processes.items()))


def below(process: subprocess.Popen[str]) -> dict[int, str]:
    """All processes below one, and when they began; without Ray's own agents, which notice an end after a minute."""
    return {pid: born(pid) for pid in descendants(process.pid) if "agent" not in command(pid).lower()}


def wait_until(seen: Callable[[], Any], seconds: float = 400.0) -> Any:
    """What ``seen()`` gives once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = seen()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def pixels_digest(path: Path) -> str:
    """What ``BENCH_PLUGINS_PERIL`` calls an image."""
    from harness.api.images import decode, read_image_file

    return hashlib.sha256(np.ascontiguousarray(decode(read_image_file(path), name=str(path))).tobytes()).hexdigest()

"""What tests of the engine `ray` share: the run that all compare with, worker processes, faults to order."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from plugin_support import Cli, Done, scores_file

ROWS = ("calibrated", "pseudo-head", "grad-map", "native-size", "abstainer", "slow-native", "perilous")
RAY = ("--engine", "ray")


@dataclass(frozen=True)
class Base:
    """An undisturbed run of all rows by the engine `inline`: its command line, suite and scores."""

    cli: Cli
    suite: Path
    scores: Path

    @property
    def store(self) -> Path:
        """Its store."""
        return self.cli.folder / ".blades-store"

    def table(self, *rows: str) -> pd.DataFrame:
        """Scores of some rows."""
        table = pd.read_parquet(self.scores)
        return table[table["detector"].isin(rows)].reset_index(drop=True)

    def same(self, done: Done, cli: Cli, *rows: str) -> None:
        """Assert that a run ended well, with these rows and the same bits."""
        assert done.code == 0, done.text
        pd.testing.assert_frame_equal(pd.read_parquet(scores_file(done, cli)), self.table(*rows), check_exact=True)


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

"""The command line under Ray, and clusters of several nodes on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from cluster_support import EXECUTION, ROWS, Base
from plugin_support import ROOT, Cli, install, make_data, scores_file, write_suite


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder where ``bench_plugins`` is installed."""
    return install("bench_plugins", tmp_path_factory.mktemp("installed") / "bench")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data root; not to be written to."""
    return make_data(tmp_path_factory.mktemp("root") / "data")


@pytest.fixture
def cli(installed: Path, tmp_path: Path) -> Cli:
    """The command line in a folder of the test's own."""
    return Cli(tmp_path / "work", (installed,))


@pytest.fixture(scope="session")
def base(installed: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """One run that many tests look at."""
    folder = tmp_path_factory.mktemp("base")
    suite, cli = write_suite(folder, ROWS, execution={**EXECUTION, "max_actors": 1}), Cli(folder / "work", (installed,))
    done = cli.run(suite, data)
    (folder / "wide").mkdir()
    wide = write_suite(folder / "wide", ROWS)
    return Base(cli, suite, wide, data, scores_file(done, cli).parent)


@pytest.fixture
def cluster(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster without nodes; what is added has one CPU unless it is said otherwise, and sees the plugins."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed), str(ROOT)]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    made = Cluster(shutdown_at_exit=False)
    try:
        yield made
    finally:
        made.shutdown()

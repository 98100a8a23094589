"""The driver killed or interrupted in every part of a run under Ray, with real processes: the same command goes on."""

from __future__ import annotations

import signal
import sqlite3
import time
from pathlib import Path

import pytest
from cluster_support import RAY, Base, below, ended, none_left, start, tracked, wait_until, working
from plugin_support import Cli

pytestmark = pytest.mark.slow

SLOW = ("--detectors", "slow-native")
PERILOUS = ("--detectors", "perilous")


def test_a_driver_killed_while_it_extracts(base: Base, data: Path, cli: Cli) -> None:
    process = start(cli.with_(BENCH_PLUGINS_PAUSE="0.3"), base.suite, data, *SLOW)
    working(process, cli)
    family = below(process)
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    none_left(family)
    done = cli.run(base.suite, data, *RAY, *SLOW)
    base.same(done, cli, "slow-native")
    (stage,) = done.document["plan"]
    assert stage["stored"] > 0
    assert done.document["computed_images"] == stage["to_do"]


@pytest.mark.parametrize("place", ["fit", "score"])
def test_a_driver_killed_while_it_fits_or_scores(base: Base, data: Path, cli: Cli, tmp_path: Path, place: str) -> None:
    process = start(cli.with_(BENCH_PLUGINS_DAWDLE=f"{place}:{tmp_path}:60"), base.suite, data, *PERILOUS)
    wait_until(lambda: (tmp_path / place).exists() or process.poll() is not None)
    assert process.poll() is None, ended(process).text
    family = below(process)
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    none_left(family)
    heads = list((cli.folder / ".blades-store/heads").glob("[!.]*"))
    assert len(heads) == (1 if place == "score" else 0)
    done = cli.run(base.suite, data, *RAY, *PERILOUS)
    base.same(done, cli, "perilous")
    assert done.document["computed_images"] == 0


def under_way(database: Path) -> bool:
    """Whether a run of an MLflow store is logged just now, and one of its detectors at least is there."""
    if not database.exists():
        return False
    wanted = (
        "select count(*) from tags join runs on runs.run_uuid = tags.value "
        "where tags.key = 'mlflow.parentRunId' and runs.status = 'RUNNING'"
    )
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return int(connection.execute(wanted).fetchone()[0]) > 0
    finally:
        connection.close()


def test_a_driver_killed_while_it_logs(base: Base, data: Path, cli: Cli) -> None:
    words = ("run", base.suite, "--data-root", data, "--device", "cpu", "--detectors", "calibrated", *RAY)
    process = cli.start(*words)
    while not under_way(cli.folder / "mlflow.db"):
        assert process.poll() is None, ended(process).text
        time.sleep(0.005)
    family = below(process)
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    none_left(family)
    (broken,) = tracked(cli)
    assert broken["status"] == "RUNNING"
    (folder,) = (path.parent for path in cli.folder.glob("runs/*/*/record.json"))
    logged = cli("report", folder, "--log")
    assert logged.code == 0, logged.text
    (mended,) = tracked(cli)
    assert mended["id"] == broken["id"]
    done = cli(*words, "--json")
    assert done.document["computed_images"] == 0
    base.same(done, cli, "calibrated")
    runs = tracked(cli)
    assert len(runs) == 2
    for run in runs:
        assert run["status"] == "FINISHED"
        assert sorted(child["name"] for child in run["children"]) == ["calibrated", "format-only"]
        assert all(child["status"] == "FINISHED" and child["metrics"] for child in run["children"])


def test_an_interrupt_ends_the_workers_and_exits_130(base: Base, data: Path, cli: Cli) -> None:
    process = start(cli.with_(BENCH_PLUGINS_PAUSE="0.3"), base.suite, data, *SLOW)
    working(process, cli)
    family = below(process)
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert done.code == 130, done.text
    assert "the same command goes on from there" in done.err
    assert "Traceback" not in done.text
    none_left(family)
    dry = cli.run(base.suite, data, "--dry-run", *SLOW)
    assert dry.document["plan"][0]["stored"] > 0

"""Runs under Ray and others at once on one store and one MLflow store, and without a tracking server."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_support import RAY, Base, ended, tracked
from plugin_support import Cli

pytestmark = pytest.mark.slow


def test_four_runs_at_once_on_one_store_and_one_mlflow_store(base: Base, data: Path, cli: Cli) -> None:
    words = ("run", base.suite, "--data-root", data, "--device", "cpu", "--json", "--detectors", "calibrated,grad-map")
    processes = [cli.start(*words, *engine) for engine in (RAY, (), RAY, ())]
    for process in processes:
        base.same(ended(process), cli, "calibrated", "grad-map")
    assert cli("store", "verify").out.strip() == "sound"
    parents = tracked(cli)
    assert [run["status"] for run in parents] == ["FINISHED"] * 4
    for run in parents:
        assert len(run["children"]) == 3  # two rows and the audit
        assert all(child["metrics"] for child in run["children"])


def test_a_tracking_server_that_is_down_costs_nothing_but_the_log(base: Base, data: Path, cli: Cli) -> None:
    words = ("run", base.suite, "--data-root", data, "--device", "cpu", "--json", "--detectors", "calibrated")
    done = cli(*words, *RAY, "--tracking-uri", "http://127.0.0.1:9")
    base.same(done, cli, "calibrated")
    assert "not logged to MLflow" in done.err
    logged = cli("report", done.document["run_dir"], "--log", "--tracking-uri", "sqlite:///mlflow.db")
    assert logged.code == 0, logged.text
    assert [run["status"] for run in tracked(cli)] == ["FINISHED"]

"""Logging a sweep folder to MLflow: a parent, a child a trial; read back through MlflowClient and a server's REST."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from sweep_support import KEY, TASKS, trial_key, write
from training_support import history

from harness.api.errors import DataError
from harness.track import TrackingError, default_tracking_uri
from harness.track.sweep import log_sweep
from reports.sweep import make_sweep_figures


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One sqlite store for the module: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def made(folder: Path, name: str, **changes: Any) -> Path:
    write(folder, name=name, **changes)
    make_sweep_figures(folder)
    return folder


def points(client: MlflowClient, run: str, name: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client.get_metric_history(run, name))


def test_a_sweep_is_a_parent_and_every_trial_a_child_with_its_values(tmp_path: Path, store: str) -> None:
    result = log_sweep(made(tmp_path, "one"), store)
    client = MlflowClient(tracking_uri=store)
    assert client.get_experiment(result.experiment_id).name == "sweep-one"
    parent = client.get_run(result.run_id)
    assert parent.data.tags["blades.key"] == KEY
    assert parent.data.tags["best_trial"] == "1"
    assert json.loads(parent.data.tags["best_values"])["settings.lambda_lr"] == 1e-3
    assert parent.data.params["sweep.samples"] == "5"
    assert parent.data.params["base.detector"] == "blades-oc"
    assert points(client, result.run_id, "objective") == [(0, 0.54), (1, 0.64), (2, 0.52)]
    assert parent.data.metrics["trials/stopped"] == 1
    assert list(result.children) == [f"trial {n}" for n in range(5)]
    children = [client.get_run(run) for run in result.children.values()]
    assert {c.data.tags["mlflow.parentRunId"] for c in children} == {result.run_id}
    assert [c.info.run_name for c in children] == [f"trial {n:03d}" for n in range(5)]
    assert [c.info.status for c in children] == ["FINISHED", "FINISHED", "KILLED", "FAILED", "FINISHED"]
    assert [c.data.tags["state"] for c in children] == ["finished", "finished", "stopped", "failed", "repeats"]
    assert [c.data.params["settings.lambda_lr"] for c in children] == ["0.0001", "0.001", "1e-05", "0.009", "0.0001"]
    assert [c.data.params["protocol.hypergradient"] for c in children][:2] == ["exact", "finite_difference"]
    assert children[0].data.tags["blades.key"] == trial_key(0)
    assert [c.data.tags.get("best") for c in children] == [None, "true", None, None, None]
    assert children[2].data.tags["reason"] == "stopped after epoch 2: 0.52 against 0.6"
    assert children[3].data.tags["reason"] == "loss is not finite"


def test_each_child_has_its_trajectory_step_by_step(tmp_path: Path, store: str) -> None:
    result = log_sweep(made(tmp_path, "steps"), store)
    client = MlflowClient(tracking_uri=store)
    whole, short = result.children["trial 0"], result.children["trial 2"]
    rows = history(20, TASKS)
    assert points(client, whole, "lambda/face_coarse") == [(r["step"], r["lambda"]["face_coarse"]) for r in rows]
    assert points(client, short, "loss") == [(r["step"], r["loss"]) for r in history(10, TASKS)]
    assert points(client, short, "select/accuracy") == [(5, 0.51), (10, 0.52)]
    assert points(client, short, "objective") == [(10, 0.52)]
    assert client.get_run(result.children["trial 3"]).data.metrics == {}
    assert client.get_run(result.children["trial 4"]).data.metrics["objective"] == 0.54


def test_artifacts_are_the_record_the_tables_and_the_figures(tmp_path: Path, store: str) -> None:
    folder = made(tmp_path / "a", "files")
    (tmp_path / "secret").write_text("secret")
    (folder / "figures" / "more.png").symlink_to(tmp_path / "secret")
    result = log_sweep(folder, store)
    client = MlflowClient(tracking_uri=store)
    assert {f.path for f in client.list_artifacts(result.run_id)} == {
        "sweep.json", "trials.csv", "select.csv", "speed.csv", "figures", "trials",
    }  # fmt: skip
    assert {f.path for f in client.list_artifacts(result.run_id, "figures")} == {
        f"figures/{name}.png" for name in ("parallel", "objective", "epochs", "lambda")
    }
    assert [f.path for f in client.list_artifacts(result.children["trial 2"])] == ["0002.csv"]


def test_logging_twice_doubles_nothing_and_what_was_cut_off_is_completed(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path, "twice")
    first = log_sweep(folder, store)
    client = MlflowClient(tracking_uri=store)
    for run in (first.run_id, first.children["trial 0"]):
        for tag in ("blades.logged", "blades.points"):
            if tag in client.get_run(run).data.tags:
                client.delete_tag(run, tag)
    assert log_sweep(folder, store) == first
    assert len(client.get_metric_history(first.children["trial 0"], "loss")) == 20
    assert len(client.get_metric_history(first.run_id, "objective")) == 3
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *a, **k: pytest.fail("logged again"))
    assert log_sweep(folder, store) == first


def test_four_processes_that_log_one_sweep_at_once_double_nothing(tmp_path: Path) -> None:
    folder, store = made(tmp_path / "sweep", "shared"), f"sqlite:///{tmp_path / 'mlflow.db'}"
    code = "import sys; from pathlib import Path; from harness.track.sweep import log_sweep\n"
    code += "print(log_sweep(Path(sys.argv[1]), sys.argv[2]).run_id)"
    command = [sys.executable, "-c", code, str(folder), store]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    ends = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * 4, ends
    (parent,) = {out.split()[-1] for out, _ in ends}
    client = MlflowClient(tracking_uri=store)
    runs = client.search_runs([client.get_run(parent).info.experiment_id])
    assert sorted(run.info.run_name for run in runs if run.info.run_id != parent) == [
        f"trial {n:03d}" for n in range(5)
    ]
    assert len(runs) == 6
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED", "FAILED"}


def test_a_sweep_that_ran_again_updates_its_runs(tmp_path: Path, store: str) -> None:
    folder = made(tmp_path, "again", best=0)
    first = log_sweep(folder, store)
    made(tmp_path, "again", best=1, finished="2026-11-21T10:02:00+00:00")
    assert log_sweep(folder, store) == first
    client = MlflowClient(tracking_uri=store)
    tags = [client.get_run(run).data.tags.get("best") for run in first.children.values()]
    assert tags[:2] == [None, "true"]
    assert client.get_run(first.run_id).data.tags["best_trial"] == "1"
    assert len(client.search_runs([first.experiment_id])) == 6


def test_what_is_no_sweep_or_no_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a sweep folder"):
        log_sweep(tmp_path, "sqlite:///x.db")
    with pytest.raises(TrackingError, match="not a tracking URI"):
        log_sweep(made(tmp_path, "x"), "mlflow.db")


def test_sweeps_share_the_store_of_the_runs_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "sweep-rates-demo" / KEY[:16]
    assert default_tracking_uri(folder) == f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.mark.slow
def test_a_started_server_shows_parent_trials_and_metrics_through_its_rest_interface(
    tmp_path: Path, mlflow_server: str
) -> None:
    folder = made(tmp_path / "runs", "served")
    result = log_sweep(folder, mlflow_server)
    assert result == log_sweep(shutil.copytree(folder, tmp_path / "moved"), mlflow_server)

    def ask(path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{mlflow_server}/api/2.0/mlflow/{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    wanted = f"tags.`mlflow.parentRunId` = '{result.run_id}'"
    found = ask("runs/search", {"experiment_ids": [result.experiment_id], "filter": wanted})["runs"]
    assert len(found) == 5
    metrics = ask(f"metrics/get-history?run_id={result.children['trial 1']}&metric_key=lambda/face_coarse")["metrics"]
    assert [(m["step"], m["value"]) for m in metrics] == [
        (r["step"], r["lambda"]["face_coarse"]) for r in history(20, TASKS)
    ]
    parent = ask(f"runs/get?run_id={result.run_id}")["run"]["data"]
    assert {t["key"]: t["value"] for t in parent["tags"]}["best_trial"] == "1"

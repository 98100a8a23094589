"""Logging a finished run to MLflow: what is there afterwards, read back through MlflowClient."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from harness.api.errors import DataError
from harness.track import TrackingError, default_tracking_uri, log_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One sqlite store for the module: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def _child(client: MlflowClient, result, name: str):  # type: ignore[no-untyped-def]
    return client.get_run(result.children[name])


def test_a_run_becomes_an_experiment_a_parent_and_a_child_for_each_detector(run_folder: Path, store: str) -> None:
    result = log_run(run_folder, store)
    client = MlflowClient(tracking_uri=store)
    assert client.get_experiment(result.experiment_id).name == "cross_generator"
    parent = client.get_run(result.run_id)
    assert parent.info.run_name == "20261120-101010-abcd"
    assert parent.info.status == "FINISHED"
    assert set(result.children) == {"blades-oc", "blades-bc", "format-only"}
    for name in result.children:
        assert _child(client, result, name).data.tags["mlflow.parentRunId"] == result.run_id
    assert _child(client, result, "blades-bc").info.status == "FAILED"
    assert _child(client, result, "blades-bc").data.tags["message"] == "BC.pth is missing"
    assert _child(client, result, "format-only").data.tags["audit"] == "true"
    assert "mlflow ui --backend-store-uri" in result.ui_command


def test_metrics_parameters_and_tags_are_read_back_as_they_were_stored(run_folder: Path, store: str) -> None:
    result = log_run(run_folder, store)
    client = MlflowClient(tracking_uri=store)
    child = _child(client, result, "blades-oc").data
    assert child.metrics["accuracy/stylegan2"] == 0.75
    assert child.metrics["accuracy_low/stylegan2"] == 0.65
    assert child.metrics["accuracy/mean"] == 0.625
    assert child.metrics["n_generated/stylegan2"] == 4
    assert child.params["detector.options.components"] == "4"
    assert child.params["detector.weights.weights"] == "f" * 64
    assert child.params["protocol.threshold"] == "held_out"
    parent = client.get_run(result.run_id).data
    assert parent.metrics["accuracy/blades-oc"] == 0.625
    assert parent.metrics["seconds/extract"] == 1.5
    assert parent.tags["stamps"].startswith("DEMO")
    assert "DEMO" in parent.tags["mlflow.note.content"]
    assert parent.tags["git_dirty"] == "true"
    assert child.metrics["threshold"] == 1.25
    assert client.get_run(result.run_id).info.start_time == 1795169410000
    assert client.get_run(result.run_id).info.end_time == 1795169420000
    assert parent.tags["mlflow.source.git.commit"] == "c" * 40


def test_a_value_that_is_no_number_is_named_in_a_tag_and_not_logged(run_folder: Path, store: str) -> None:
    result = log_run(run_folder, store)
    child = _child(MlflowClient(tracking_uri=store), result, "blades-oc").data
    assert child.tags["not_a_number"].startswith("auc/my faces_")
    assert not any(name.startswith("auc/my faces") for name in child.metrics)
    assert any(name.startswith("accuracy/my faces_-") for name in child.metrics)


def test_datasets_carry_digests_of_what_they_hold(run_folder: Path, store: str) -> None:
    result = log_run(run_folder, store)
    client = MlflowClient(tracking_uri=store)
    parent = client.get_run(result.run_id)
    inputs = {i.dataset.name: i.dataset.digest for i in parent.inputs.dataset_inputs}
    assert set(inputs) == {f"cross_generator-demo {n}" for n in ("manifest", "stylegan2", "my faces!")}
    assert len(set(inputs.values())) == 3
    assert parent.data.tags["manifest"] == "a" * 64
    assert inputs["cross_generator-demo manifest"] == "a" * 36


def test_artifacts_are_tables_figures_scores_page_and_record(run_folder: Path, store: str) -> None:
    result = log_run(run_folder, store)
    client = MlflowClient(tracking_uri=store)
    names = {f.path for f in client.list_artifacts(result.run_id)}
    assert {"tables", "figures", "scores.parquet", "metrics.csv", "record.json", "report.html"} <= names
    assert [f.path for f in client.list_artifacts(result.run_id, "tables")] == ["tables/accuracy.md"]


def test_logging_the_same_run_twice_changes_nothing(make_run: Callable[..., Path], tmp_path: Path, store: str) -> None:
    folder = make_run(tmp_path / "twice", run_id="twice-1")
    first, second = log_run(folder, store), log_run(folder, store)
    assert first == second
    client = MlflowClient(tracking_uri=store)
    runs = client.search_runs([first.experiment_id], "tags.`blades.run_id` = 'twice-1'")
    assert len(runs) == 4
    assert len(client.get_metric_history(first.children["blades-oc"], "accuracy/stylegan2")) == 1


def test_a_report_made_again_updates_the_same_run(make_run: Callable[..., Path], tmp_path: Path, store: str) -> None:
    folder = make_run(tmp_path / "again", run_id="again-1")
    first = log_run(folder, store)
    metrics = folder / "metrics.csv"
    metrics.write_text(metrics.read_text().replace("0.75", "0.875"))
    second = log_run(folder, store)
    assert second == first
    assert (
        MlflowClient(tracking_uri=store).get_run(first.children["blades-oc"]).data.metrics["accuracy/stylegan2"]
        == 0.875
    )


def test_logging_that_was_cut_off_is_completed(make_run: Callable[..., Path], tmp_path: Path, store: str) -> None:
    folder = make_run(tmp_path / "cut", run_id="cut-1")
    first = log_run(folder, store)
    client = MlflowClient(tracking_uri=store)
    client.delete_tag(first.run_id, "blades.logged")
    client.delete_run(first.children["blades-bc"])
    second = log_run(folder, store)
    assert second.run_id == first.run_id
    assert second.children["blades-bc"] != first.children["blades-bc"]
    assert second.children["blades-oc"] == first.children["blades-oc"]


def test_a_run_id_used_for_another_configuration_is_refused(
    make_run: Callable[..., Path], tmp_path: Path, store: str
) -> None:
    log_run(make_run(tmp_path / "a", run_id="same-1"), store)
    with pytest.raises(TrackingError, match="already logged with"):
        log_run(make_run(tmp_path / "b", run_id="same-1", protocol={"threshold": "in_sample"}), store)


def test_a_folder_that_is_no_run_says_what_is_missing(tmp_path: Path, store: str) -> None:
    with pytest.raises(DataError, match=r"record\.json is missing"):
        log_run(tmp_path, store)


def test_a_server_that_is_down_is_said_and_leaves_the_environment_alone(run_folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before = dict(os.environ)
    with pytest.raises(TrackingError, match="cannot log to MLflow") as caught:
        log_run(run_folder, f"http://127.0.0.1:{port}")
    assert caught.value.fix is not None
    assert "report --log" in caught.value.fix
    after = {k: v for k, v in os.environ.items() if k != "MLFLOW_DISABLE_TELEMETRY"}
    assert after == {k: v for k, v in before.items() if k != "MLFLOW_DISABLE_TELEMETRY"}


def test_a_server_that_never_answers_is_given_up(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        with pytest.raises(TrackingError, match=r"timed out|Max retries"):
            log_run(run_folder, f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_a_store_that_cannot_be_written_is_said(run_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "mlflow.db"
    broken.write_bytes(b"this is no database" * 100)
    with pytest.raises(TrackingError):
        log_run(run_folder, f"sqlite:///{broken}")
    with pytest.raises(TrackingError, match="not a tracking URI"):
        log_run(run_folder, "mlflow.db")


def test_all_runs_of_one_out_folder_share_a_store_that_is_not_among_them(tmp_path: Path) -> None:
    usual = [default_tracking_uri(tmp_path / "runs" / s / "id") for s in ("cross_generator-demo", "sensitivity-full")]
    assert set(usual) == {f"sqlite:///{tmp_path / 'mlflow.db'}"}
    own = default_tracking_uri(tmp_path / "results" / "cross_generator-full" / "id")
    assert own == f"sqlite:///{tmp_path / 'results' / 'mlflow.db'}"
    moved = default_tracking_uri(tmp_path / "downloads" / "id")
    assert moved == f"sqlite:///{tmp_path / 'downloads' / 'mlflow.db'}"


@pytest.mark.slow
def test_four_processes_on_a_fresh_store_all_log(make_run: Callable[..., Path], tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    folders = [make_run(tmp_path / f"run{i}", run_id=f"parallel-{i}") for i in range(4)]
    code = (
        "import sys; from pathlib import Path; from harness.track import log_run; "
        "log_run(Path(sys.argv[1]), sys.argv[2])"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(f), store], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for f in folders
    ]
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, errors
    client = MlflowClient(tracking_uri=store)
    found = client.search_runs([client.get_experiment_by_name("cross_generator").experiment_id])
    assert len(found) == 16
    assert {r.data.tags["blades.run_id"] for r in found} == {f"parallel-{i}" for i in range(4)}


@pytest.mark.slow
def test_a_started_server_shows_the_run_through_its_rest_interface(run_folder: Path, mlflow_server: str) -> None:
    result = log_run(run_folder, mlflow_server)
    assert result == log_run(run_folder, mlflow_server)
    child = result.children["blades-oc"]
    with urllib.request.urlopen(f"{mlflow_server}/api/2.0/mlflow/runs/get?run_id={child}") as reply:
        run = json.load(reply)["run"]
    metrics = {m["key"]: m["value"] for m in run["data"]["metrics"]}
    assert metrics["accuracy/stylegan2"] == 0.75
    with urllib.request.urlopen(f"{mlflow_server}/api/2.0/mlflow/artifacts/list?run_id={result.run_id}") as reply:
        assert {"tables", "report.html"} <= {f["path"] for f in json.load(reply)["files"]}

"""Logging a training folder to MLflow: what is there afterwards, read back through MlflowClient."""

from __future__ import annotations

import itertools
import socket
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from training_support import KEY, SHA, entry, history

from harness.api.errors import DataError
from harness.results.training import write_training
from harness.track import TrackingError, default_tracking_uri, log_run, training
from harness.track.training import log_training
from reports.training import make_training_figures


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One sqlite store for the module: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def write(folder: Path, name: str = "lam", key: str = KEY, **changes: object) -> Path:
    """A training folder with figures, of a recipe of that name: of an experiment of its own."""
    made = entry(**changes)
    made["recipe"]["recipe"] = name
    write_training(folder, key, made, ["DEMO"])
    make_training_figures(folder)
    return folder


def points(client: MlflowClient, run: str, name: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client.get_metric_history(run, name))


def test_a_training_is_an_experiment_of_its_recipe_and_a_run_of_its_key(tmp_path: Path, store: str) -> None:
    result = log_training(write(tmp_path, "one"), store)
    client = MlflowClient(tracking_uri=store)
    assert client.get_experiment(result.experiment_id).name == "train-one"
    run = client.get_run(result.run_id)
    assert run.info.run_name == KEY[:16]
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (1795168800000, 1795168920000)
    tags = run.data.tags
    assert (tags["blades.key"], tags["blades.sha256"], tags["git_commit"]) == (KEY, SHA, "d" * 40)
    assert (tags["resumed"], tags["stamps"], tags["thinned"]) == ("1", "DEMO", "no")
    assert '"outer_batch": "heldout"' in tags["protocol"]
    params = run.data.params
    assert (params["settings.lambda_lr"], params["lr"], params["options.encoder"]) == ("0.0003", "0.001", "tiny")
    assert (params["sha256"], params["key"], params["protocol.ranking_scale"]) == (SHA, KEY, "2.0")
    assert "mlflow ui --backend-store-uri" in result.ui_command


def test_every_step_is_a_point_of_each_metric(tmp_path: Path, store: str) -> None:
    result = log_training(write(tmp_path, "points"), store)
    client, rows = MlflowClient(tracking_uri=store), history(12)
    assert points(client, result.run_id, "loss") == [(r["step"], r["loss"]) for r in rows]
    assert points(client, result.run_id, "lr") == [(r["step"], r["lr"]) for r in rows]
    for group, key in (("loss", "losses"), ("lambda", "lambda")):
        found = points(client, result.run_id, f"{group}/focal length")
        assert found == [(r["step"], r[key]["focal length"]) for r in rows]
    assert points(client, result.run_id, "images_per_second") == [(s + 1, 50.0 + s) for s in range(12)]
    assert points(client, result.run_id, "memory_mib") == [(s, 600.0) for s in range(1, 13)]
    assert points(client, result.run_id, "select/accuracy") == [(5, 0.6), (12, 0.75)]
    names = set(client.get_run(result.run_id).data.metrics)
    assert {n.split("-")[0] for n in names if n.startswith("lambda/make")} == {"lambda/make_model"}
    assert not any("hypergradient" in name for name in names)


def test_artifacts_are_the_record_the_tables_and_the_figures(tmp_path: Path, store: str) -> None:
    result = log_training(write(tmp_path, "artifacts"), store)
    client = MlflowClient(tracking_uri=store)
    names = {f.path for f in client.list_artifacts(result.run_id)}
    assert names == {"training.json", "history.csv", "speed.csv", "select.csv", "figures"}
    figures = {f.path for f in client.list_artifacts(result.run_id, "figures")}
    assert figures == {"figures/losses.png", "figures/lambda.png"}


def test_a_link_to_another_file_is_not_sent(tmp_path: Path, store: str) -> None:
    folder = write(tmp_path / "linked", "linked")
    (tmp_path / "secret").write_text("secret")
    (folder / "figures" / "more.png").symlink_to(tmp_path / "secret")
    result = log_training(folder, store)
    names = {f.path for f in MlflowClient(tracking_uri=store).list_artifacts(result.run_id, "figures")}
    assert "figures/more.png" not in names


def test_a_run_that_trained_takes_its_trainings_along(run_folder: Path, store: str) -> None:
    write(run_folder / "training" / "lam")
    result = log_run(run_folder, store)
    client = MlflowClient(tracking_uri=store)
    assert "training/lam/history.csv" in {f.path for f in client.list_artifacts(result.run_id, "training/lam")}


def test_logging_twice_changes_nothing_and_takes_no_batch(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, "twice")
    first = log_training(folder, store)
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *a, **k: pytest.fail("logged again"))
    assert log_training(folder, store) == first
    client = MlflowClient(tracking_uri=store)
    assert len(client.search_runs([first.experiment_id])) == 1
    assert len(client.get_metric_history(first.run_id, "loss")) == 12


def test_logging_that_was_cut_off_is_completed_without_doubling_points(tmp_path: Path, store: str) -> None:
    folder = write(tmp_path, "cut")
    first = log_training(folder, store)
    client = MlflowClient(tracking_uri=store)
    for tag in ("blades.logged", "blades.points"):
        client.delete_tag(first.run_id, tag)
    assert log_training(folder, store).run_id == first.run_id
    assert len(client.get_metric_history(first.run_id, "loss")) == 12
    assert "blades.logged" in client.get_run(first.run_id).data.tags


def test_a_figure_made_anew_is_logged_without_the_points(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, "figure")
    first = log_training(folder, store)
    before = MlflowClient(tracking_uri=store).get_run(first.run_id).data.tags
    (folder / "figures" / "extra.png").write_bytes(b"png")
    monkeypatch.setattr(training._Training, "metrics", lambda self: pytest.fail("points again"))
    log_training(folder, store)
    after = MlflowClient(tracking_uri=store).get_run(first.run_id).data.tags
    assert after["blades.points"] == before["blades.points"]
    assert after["blades.logged"] != before["blades.logged"]


def test_other_weights_of_the_same_key_are_another_run(tmp_path: Path, store: str) -> None:
    first = log_training(write(tmp_path / "a", "bits"), store)
    second = log_training(write(tmp_path / "b", "bits", sha256="e4" * 32), store)
    third = log_training(write(tmp_path / "c", "bits", key="f5" * 32), store)
    assert len({first.run_id, second.run_id, third.run_id}) == 3
    assert first.experiment_id == second.experiment_id == third.experiment_id


def test_long_trainings_are_thinned_evenly_said_and_sent_in_small_batches(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, log_batch = [], MlflowClient.log_batch

    def counted(self: MlflowClient, run_id: str, metrics=(), **more: object) -> None:  # type: ignore[no-untyped-def]
        sizes.append(len(metrics))
        log_batch(self, run_id, metrics=metrics, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    monkeypatch.setattr(training, "MAX_POINTS", 400)
    folder = tmp_path / "long"
    made = entry(steps=1_000)
    made["recipe"]["recipe"] = "long"
    write_training(folder, KEY, made)
    result = log_training(folder, store)
    client = MlflowClient(tracking_uri=store)
    steps = [step for step, _ in points(client, result.run_id, "lambda/face_coarse")]
    assert len(steps) == 400
    assert (steps[0], steps[-1]) == (1, 1_000)
    assert {b - a for a, b in itertools.pairwise(steps)} == {2, 3}
    assert len(client.get_metric_history(result.run_id, "images_per_second")) == 400
    assert client.get_run(result.run_id).data.tags["thinned"].startswith("400 of 1,000 steps")
    assert len((folder / "history.csv").read_text().splitlines()) == 1_001
    assert 1_000 in sizes
    assert max(sizes) == 1_000


def test_readings_that_are_missing_or_not_finite_are_no_points(tmp_path: Path, store: str) -> None:
    rows = history(3)
    rows[1]["loss"] = float("nan")
    folder = write(tmp_path, "absent", history=rows, readings={}, evaluations=[], sessions=[], finished="")
    result = log_training(folder, store)
    client = MlflowClient(tracking_uri=store)
    assert [step for step, _ in points(client, result.run_id, "loss")] == [1, 3]
    assert "images_per_second" not in client.get_run(result.run_id).data.metrics


def test_a_server_that_is_down_is_said_quickly_and_says_how_to_log_later(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(TrackingError, match="cannot log to MLflow") as caught:
        log_training(write(tmp_path), f"http://127.0.0.1:{port}")
    assert "report --log" in str(caught.value.fix)


def test_what_is_no_training_or_no_address_is_refused(tmp_path: Path, store: str) -> None:
    with pytest.raises(DataError, match="not a training folder"):
        log_training(tmp_path, store)
    with pytest.raises(TrackingError, match="not a tracking URI"):
        log_training(write(tmp_path), "mlflow.db")


def test_trainings_share_the_store_of_the_runs_beside_them(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert default_tracking_uri(runs / "train-lam" / KEY[:16]) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    other = default_tracking_uri(tmp_path / "results" / "train-lam" / KEY[:16])
    assert other == f"sqlite:///{tmp_path / 'results' / 'mlflow.db'}"
    inside = runs / "cross_generator-demo" / "id" / "training" / "lam"
    inside.mkdir(parents=True)
    (inside.parents[1] / "record.json").write_text("{}")
    assert default_tracking_uri(inside) == f"sqlite:///{tmp_path / 'mlflow.db'}"

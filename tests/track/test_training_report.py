"""Numbers of a report in MLflow: logged with the training or later, and once."""

from __future__ import annotations

import sys
from pathlib import Path

from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from training_support import KEY, entry, report

from harness.results.training import write_training
from harness.track.training import log_training


def test_a_report_made_later_is_added_to_the_run_and_points_are_not_doubled(tmp_path: Path) -> None:
    uri, folder = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "lam"
    write_training(folder, KEY, entry())
    first = log_training(folder, uri)
    client = MlflowClient(tracking_uri=uri)
    assert not any(name.startswith("report/") for name in client.get_run(first.run_id).data.metrics)
    write_training(folder, KEY, entry(), report=report())
    for _ in range(2):
        assert log_training(folder, uri).run_id == first.run_id
    found = client.get_run(first.run_id).data.metrics
    assert found["report/face_coarse/accuracy"] == 0.7
    assert (found["report/face_coarse/accuracy_low"], found["report/face_coarse/accuracy_high"]) == (0.6, 0.8)
    assert any(name.startswith("report/make_model") for name in found)
    (point,) = client.get_metric_history(first.run_id, "report/face_coarse/accuracy")
    assert point.step == 12
    assert len(client.get_metric_history(first.run_id, "loss")) == 12
    assert "report.csv" in {f.path for f in client.list_artifacts(first.run_id)}

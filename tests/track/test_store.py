"""A local MLflow store is there whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from mlflow import MlflowClient

from harness.track.store import patience, store_lock

MAKES = (
    "import sys\nfrom harness.track.store import patience, store_lock\nwith patience(), store_lock(sys.argv[1]): pass\n"
)


def test_a_process_killed_while_it_makes_the_store_leaves_none(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    uri = f"sqlite:///{database}"
    process = subprocess.Popen([sys.executable, "-c", MAKES, uri], cwd=Path(__file__).resolve().parents[2])
    half = tmp_path / "mlflow.db.new"
    while not (half.exists() and half.stat().st_size > 0):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not database.exists()
    with patience(), store_lock(uri):
        made = MlflowClient(tracking_uri=uri)
        assert made.get_experiment(made.create_experiment("after")).name == "after"
    assert not half.exists()

"""Fixtures shared by all tests: golden values and real images, if they are there; a started MLflow server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _shared(name: str) -> Path:
    folder = ROOT.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"needs the shared folder {name!r} beside the project, which is not here")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder with outputs of the released code; skips the test where it is absent."""
    return _shared("golden")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real images for tests; skips the test where it is absent."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_seeds() -> Path:
    """Folder with the paper's material; skips the test where it is absent."""
    return _shared("seeds")


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """A really started `mlflow server` with its own store and artifacts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--artifacts-destination", str(tmp_path / "kept"),
    ]  # fmt: skip
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=1):
                    break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the server's own group: its workers too
        process.wait(timeout=30)
        log.close()

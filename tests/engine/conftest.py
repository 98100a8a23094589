"""Plugins installed and visible in this process, and data for them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from plugin_support import ENGINE_ROWS, Ran, engine_run, install, make_data, write_suite


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder where ``bench_plugins`` is installed."""
    return install("bench_plugins", tmp_path_factory.mktemp("installed") / "bench")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data root; not to be written to."""
    return make_data(tmp_path_factory.mktemp("root") / "data")


@pytest.fixture(scope="module")
def plugins(installed: Path) -> Iterator[Path]:
    """``bench_plugins`` visible in this process, for one module of tests."""
    from harness.api import registry

    sys.path.insert(0, str(installed))
    importlib.invalidate_caches()
    yield installed
    sys.path.remove(str(installed))
    importlib.invalidate_caches()
    registry._load.cache_clear()
    for name in [n for n in sys.modules if n.split(".")[0] == "bench_plugins"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def first(plugins: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """An undisturbed run of all rows, and its folder."""
    folder = tmp_path_factory.mktemp("first")
    return folder, engine_run(write_suite(folder, ENGINE_ROWS), data, folder)


@pytest.fixture
def run(tmp_path: Path, data: Path):
    """Runs in a folder of the test's own."""

    def ran(rows: Any = ENGINE_ROWS, root: Path = data, folder: Path = tmp_path, **how: Any) -> Ran:
        changes = {k: how.pop(k) for k in ("fit", "data") if k in how}
        folder.mkdir(exist_ok=True)
        return engine_run(write_suite(folder, rows, **changes), root, folder, **how)

    return ran

"""Plugins installed and visible in this process, and data for them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from plugin_support import install, make_data


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

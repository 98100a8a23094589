"""Fixtures shared by all tests: where the golden values and the real images lie, if they are there."""

from __future__ import annotations

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

"""The project file, the pins and the wheel: what a user gets when installing."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {_name(name): version for name, version in pins.items()}


def test_every_direct_dependency_is_pinned_and_nothing_else() -> None:
    wanted = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"]]
    for extra in ("test", "dev"):
        wanted += PROJECT["project"]["optional-dependencies"][extra]
    assert {_name(w) for w in wanted} == set(_pins())
    assert _pins()["torch"] == "2.13.0"


def test_the_version_is_stated_alike_everywhere() -> None:
    import harness

    version = PROJECT["project"]["version"]
    assert harness.__version__ == version
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", sorted(PROJECT["project"]["entry-points"]["harness.detectors"].items()))
def test_every_registered_detector_can_be_imported_under_its_name(target: tuple[str, str]) -> None:
    module, _, attribute = target[1].partition(":")
    assert getattr(importlib.import_module(module), attribute).name == target[0]


def test_make_says_what_is_wrong_when_python_is_missing_or_too_old(tmp_path: Path) -> None:
    for python in ("no-such-python", "false"):
        command = ["make", "demo", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "Python 3.11" in done.stderr


def test_make_test_uses_an_environment_of_its_own(tmp_path: Path) -> None:
    command = ["make", "--dry-run", "test", f"PYTHON={sys.executable}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    steps = [done.stdout.find(word) for word in ("-m venv", "pip install", "-c constraints.txt", "-m pytest")]
    assert -1 not in steps
    assert steps == sorted(steps)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built as `.ci/run` builds it."""
    out = tmp_path_factory.mktemp("dist")
    pins = str(ROOT / "constraints.txt")
    environment = {**os.environ, "PIP_CONSTRAINT": pins, "PIP_BUILD_CONSTRAINT": pins}
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


@pytest.mark.slow
def test_the_wheel_holds_code_suites_published_numbers_and_demo_weights(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    expected = {p.relative_to(ROOT).as_posix() for top in ("harness", "detectors", "reports")
                for p in (ROOT / top).rglob("*") if p.is_file() and "__pycache__" not in p.parts}  # fmt: skip
    assert expected <= names
    suites = {p.relative_to(ROOT / "suites").as_posix() for p in (ROOT / "suites").rglob("*.yaml")}
    assert suites
    assert {f"harness/_suites/{s}" for s in suites} <= names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if n.startswith("tests/")]


@pytest.mark.slow
def test_the_wheel_registers_the_command_and_the_detectors(wheel: zipfile.ZipFile) -> None:
    points = next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    text = wheel.read(points).decode()
    assert "harness = harness.cli:main" in text
    for name, target in PROJECT["project"]["entry-points"]["harness.detectors"].items():
        assert f"{name} = {target}" in text

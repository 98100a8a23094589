"""The floor plan holds: imports point down only, light commands stay light, and the text names no workplace."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

_ALL = {"api", "data", "results", "engine", "reports", "track", "roof"}
ALLOWED = {
    "api": {"api"},
    "data": {"api", "data"},
    "detectors": {"api", "data", "detectors"},
    "results": {"api", "data", "results"},
    "engine": {"api", "data", "results", "engine"},
    "reports": {"api", "data", "results", "reports"},
    "track": {"api", "data", "results", "reports", "track"},
    "roof": _ALL,
}
"""Which layer may import which; harness/api knows nothing above it, and nothing of harness knows the plugins."""

HEAVY = ("torch", "sklearn", "mlflow", "ray", "transformers", "pandas", "matplotlib", "scipy", "skimage")
LIBRARY_HOMES = {"mlflow": {"track"}, "ray": {"engine"}, "typer": {"roof"}}
"""Libraries that only one layer may import."""


def _layer(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] in ("detectors", "reports"):
        return parts[0]
    if parts[0] != "harness" or parts == ["harness"]:
        return None
    return parts[1] if parts[1] in ALLOWED else "roof"


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _sources() -> list[Path]:
    return [p for top in ("harness", "detectors", "reports") for p in sorted((ROOT / top).rglob("*.py"))]


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, at its top, inside a function or for type checking alone."""
    package = _module(path) if path.name == "__init__.py" else _module(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def test_imports_point_down_only() -> None:
    wrong = []
    for path in _sources():
        mine = _layer(_module(path)) or "roof"
        for line, name in _imports(path):
            theirs = _layer(name)
            if theirs is not None and theirs not in ALLOWED[mine]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {mine} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_libraries_stay_in_their_layer() -> None:
    wrong = []
    for path in _sources():
        mine = _layer(_module(path)) or "roof"
        for line, name in _imports(path):
            home = LIBRARY_HOMES.get(name.split(".")[0])
            if home is not None and mine not in home:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {mine} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_engine_names_no_detector() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = set(project["entry-points"]["harness.detectors"]) - {"clip"}  # also a method of arrays, named in strings
    assert names
    for path in sorted((ROOT / "harness").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{path}:{node.lineno} names {node.value}"


def _loaded_by(code: str) -> set[str]:
    probe = f"{code}\nimport sys; print('loaded:', ' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_importing_harness_loads_nothing_heavy() -> None:
    assert _loaded_by("import harness, harness.cli, harness.track, harness.api.contract, harness.api.registry") == set()


def test_planning_a_training_loads_nothing_that_it_would_run_on(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests/plugins"))
    from plugin_support import make_data, suite_document
    from tiny_training import recipe

    suite = tmp_path / "suite.yaml"
    row = {"weights": f"recipe:{recipe(tmp_path)}", "encoder": "tiny", "image_size": 32, "components": 2}
    suite.write_text(yaml.safe_dump(suite_document({"blades-oc": row})))
    root = make_data(tmp_path / "data", train=48, test=4, made=4)
    code = (
        "from pathlib import Path\n"
        "from harness.verbs.run import RunRequest, run_suite\n"
        f"there = Path({str(tmp_path)!r})\n"
        f"request = RunRequest({str(suite)!r}, data_root=Path({str(root)!r}), dry_run=True, device='cpu',"
        " store=there / 'store', out=there / 'runs')\n"
        "assert [stage['stage'] for stage in run_suite(request, quiet=True).plan][0] == 'train lam'"
    )
    assert not _loaded_by(code) & {"torch", "transformers", "sklearn", "ray", "mlflow"}


@pytest.mark.parametrize("words", [["--help"], ["suites", "list"], ["detectors", "list"], ["run", "--help"]])
def test_light_commands_load_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['harness', *{words!r}]\n"
        "try:\n    runpy.run_module('harness', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
    )
    assert _loaded_by(code) == set()


def test_no_file_names_the_place_it_was_written_in_or_a_package_host() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    words = [
        "/" + "work/",
        "." + "library",
        "py" + "pi.org",
        "python" + "hosted",
        "down" + "load.pytorch",
        "ana" + "conda.org",
    ]
    found = []
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if not name or not path.is_file() or path.suffix in {".safetensors", ".png", ".npz", ".parquet", ".jpg"}:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{name}: {word}" for word in words if word in text]
    assert not found, "\n".join(found)

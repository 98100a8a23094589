"""The command line in this process: ``harness.cli.main`` with its own arguments, folder, output and warnings."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import resource
import shutil
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from plugin_support import HERE as PLUGINS
from plugin_support import make_data, write_package, write_suite


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, what it printed, and the Python warnings it gave."""

    code: int
    out: str
    err: str
    warned: tuple[str, ...] = field(default=())

    @property
    def document(self) -> Any:
        """Its JSON."""
        return json.loads(self.out)

    def refused(self) -> str:
        """The message of a command that ended as bad input should: exit code 2, one message, nothing beside it.

        Notes, stage lines and warnings about data may stand above the message, Python's warnings may not.
        """
        assert self.code == 2, self.out + self.err
        assert "Traceback" not in self.out + self.err
        messages = list(re.finditer(r"^error: ", self.err, re.MULTILINE | re.IGNORECASE))
        assert len(messages) == 1, self.err
        assert self.out == "", self.out
        assert self.warned == ()
        return self.err[messages[0].start() :]


@dataclass(frozen=True)
class Shell:
    """A folder to call the command line in; an exception that a user would see as a traceback fails the test."""

    folder: Path

    def __call__(self, *words: object, file_bytes: int | None = None) -> Ended:
        """``harness WORDS``; ``file_bytes`` limits how large a file may grow, as a full disk does."""
        from harness.cli import main

        out, err = io.StringIO(), io.StringIO()
        before, argv, limit = Path.cwd(), sys.argv, resource.getrlimit(resource.RLIMIT_FSIZE)
        self.folder.mkdir(parents=True, exist_ok=True)
        code = 0
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(out):
            warnings.simplefilter("default")
            with contextlib.redirect_stderr(err):
                try:
                    os.chdir(self.folder)
                    sys.argv = ["harness", *map(str, words)]
                    if file_bytes is not None:
                        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, limit[1]))
                    main()
                except SystemExit as left:
                    code = left.code if isinstance(left.code, int) else int(left.code is not None)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
                    sys.argv = argv
                    os.chdir(before)
        shown = tuple(str(w.message) for w in caught if not issubclass(w.category, DeprecationWarning | FutureWarning))
        return Ended(code, out.getvalue(), err.getvalue(), shown)

    def run(self, suite: object, data: Path, *words: object, file_bytes: int | None = None) -> Ended:
        """``run`` with JSON on one thread of the CPU, without MLflow; the store is ``.blades-store`` in the folder."""
        fixed = ("--data-root", data, "--device", "cpu", "--threads", "1", "--workers", "0", "--tracking-uri", "off")
        return self("run", suite, *fixed, "--json", *words, file_bytes=file_bytes)

    def run_folder(self, done: Ended) -> Path:
        """The run folder of a run that ended well, or with rows that failed."""
        assert done.code in (0, 3), done.err
        return self.folder / str(done.document["run_dir"])


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """``bench_plugins`` as an installed package, for one module of tests."""
    from harness.api import registry

    source = PLUGINS / "bench_plugins"
    points = tomllib.loads((source / "pyproject.toml").read_text())["project"]["entry-points"]["harness.detectors"]
    folder = write_package(tmp_path_factory.mktemp("hostile-installed"), "bench-plugins", points, {})
    shutil.copytree(source / "src/bench_plugins", folder / "bench_plugins")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    registry._load.cache_clear()
    yield
    sys.path.remove(str(folder))
    importlib.invalidate_caches()
    registry._load.cache_clear()
    for name in [n for n in sys.modules if n.split(".")[0] == "bench_plugins"]:
        del sys.modules[name]


@pytest.fixture
def shell(plugins: None, tmp_path: Path) -> Shell:
    """The command line in a folder of the test's own."""
    return Shell(tmp_path / "work")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data root; not to be written to."""
    return make_data(tmp_path_factory.mktemp("hostile-root") / "data")


@pytest.fixture
def own_data(data: Path, tmp_path: Path) -> Path:
    """A copy of the data root that a test may spoil."""
    return Path(shutil.copytree(data, tmp_path / "data"))


@pytest.fixture
def suite(tmp_path: Path) -> Callable[..., Path]:
    """Writes a suite of some rows over :func:`data`."""

    def written(*rows: str, **changes: Any) -> Path:
        return write_suite(tmp_path, rows or ("calibrated",), **changes)

    return written


@pytest.fixture(scope="module")
def whole(plugins: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shell, Ended]:
    """An undisturbed run of ``calibrated``: its shell, and how it ended."""
    shell = Shell(tmp_path_factory.mktemp("whole") / "work")
    return shell, shell.run(write_suite(tmp_path_factory.mktemp("whole-suite"), ("calibrated",)), data)

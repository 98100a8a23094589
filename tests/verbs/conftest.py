"""The command line as a process, with plugin packages installed beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from plugin_support import Cli, Done, install, make_data, scores_file, write_suite

ROWS = ("calibrated", "pseudo-head", "grad-map", "native-size", "abstainer", "slow-native")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder where ``bench_plugins`` is installed."""
    return install("bench_plugins", tmp_path_factory.mktemp("installed") / "bench")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data root; not to be written to."""
    return make_data(tmp_path_factory.mktemp("root") / "data")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with photographs enough for `outer` and `select`; not to be written to."""
    return make_data(tmp_path_factory.mktemp("train") / "data", train=48, test=4, made=4)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line in this process (torch is loaded once), in a folder of the test's own: `here(*words)`."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*words: object) -> Done:
        from harness.cli import main

        monkeypatch.setattr(sys, "argv", ["harness", *map(str, words)])
        capfd.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as left:
            code = left.code or 0
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return call


@pytest.fixture
def cli(installed: Path, tmp_path: Path) -> Cli:
    """The command line in a folder of the test's own."""
    return Cli(tmp_path / "work", (installed,))


@dataclass(frozen=True)
class Base:
    """An undisturbed run of all rows: its command line (with the store), suite, end, and scores."""

    cli: Cli
    suite: Path
    done: Done
    scores: Path

    def table(self, *rows: str) -> pd.DataFrame:
        """Scores of some rows."""
        table = pd.read_parquet(self.scores)
        return table[table["detector"].isin(rows)].reset_index(drop=True)


@pytest.fixture(scope="session")
def base(installed: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """One run that many tests look at; they copy its store where they write to it."""
    folder = tmp_path_factory.mktemp("base")
    suite, cli = write_suite(folder, ROWS), Cli(folder / "work", (installed,))
    done = cli.run(suite, data)
    return Base(cli, suite, done, scores_file(done, cli))


@pytest.fixture
def refused() -> Callable[[Done], str]:
    """Checks that a process ended with one message for the user and exit code 2; the message."""

    def message(done: Done) -> str:
        assert done.code == 2, done.text
        assert "Traceback" not in done.text
        assert "error: " in done.err
        return done.err

    return message

"""Kill -9 of real trainings, again and again, through `train` and through `run`: weights and history to the bit."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from plugin_support import Cli, Done, suite_document
from tiny_training import LAM, recipe

from harness.results.training import TrainingFolder, read_training

pytestmark = pytest.mark.slow

LONG: dict[str, Any] = {**LAM, "epochs": 30, "evaluate_every": 5}
"""Bi-level, BatchNorm that learns, λ with its own Adam, an audit every tenth step, metrics every fifth epoch."""
QUIET = ("--device", "cpu", "--threads", "1", "--tracking-uri", "off", "--json")


def checkpoints(store: Path) -> set[str]:
    return {path.parent.name for path in store.glob("training/*/step-*/state.json")}


def killed(start: Callable[[], subprocess.Popen[str]], store: Path, wait: float) -> Done | None:
    """Start, and kill a moment after the first new checkpoint; None: killed. How it ended, where it was faster."""
    known, process, deadline = checkpoints(store), start(), time.monotonic() + 400
    while process.poll() is None and not checkpoints(store) - known:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    return None if process.returncode == -signal.SIGKILL else Done(process.returncode, out, err)


def again_and_again(start: Callable[[], subprocess.Popen[str]], store: Path, seed: int, most: int) -> tuple[Done, int]:
    """Kill up to ``most`` times, then let it end; how it ended, and the number of kills."""
    draw, kills = random.Random(seed), 0
    while kills < most:
        done = killed(start, store, draw.uniform(0, 0.4))
        if done is not None:
            return done, kills
        kills += 1
    process = start()
    out, err = process.communicate(timeout=400)
    return Done(process.returncode, out, err), kills


def equal(one: TrainingFolder, other: TrainingFolder) -> None:
    assert one.record.sha256 == other.record.sha256
    for name in ("history.csv", "select.csv"):
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> TrainingFolder:
    """The training that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = Cli(folder, ())("train", recipe(folder, LONG), "--data-root", photographs, *QUIET)
    assert done.code == 0, done.text
    read = read_training(folder / done.document["folder"])
    assert {"lambda/face_fine", "loss/face_coarse", "hypergradient/face_fine", "outer_loss"} <= set(read.history)
    assert read.history["lambda/face_fine"].nunique() > len(read.history) // 2
    return read


@pytest.mark.parametrize("every", [1, 4])
def test_a_bilevel_training_killed_again_and_again_has_the_same_weights_and_history(
    undisturbed: TrainingFolder, tmp_path: Path, photographs: Path, every: int
) -> None:
    cli, path = Cli(tmp_path / "work", ()), recipe(tmp_path, LONG)
    store = cli.folder / ".blades-store"

    def start() -> subprocess.Popen[str]:
        return cli.start("train", path, "--data-root", photographs, "--every", every, *QUIET)

    done, kills = again_and_again(start, store, every, most=4)
    assert done.code == 0, done.text
    assert kills >= 3
    read = read_training(cli.folder / done.document["folder"])
    assert read.record.resumed >= 2  # a kill between a checkpoint and its log is not counted
    equal(read, undisturbed)
    assert not list(store.glob("training/*"))


def test_a_run_that_trains_goes_on_from_its_checkpoint(
    undisturbed: TrainingFolder, tmp_path: Path, photographs: Path
) -> None:
    row = {"weights": f"recipe:{recipe(tmp_path, LONG)}", **LAM["options"], "components": 2}
    document = suite_document({"blades-oc": row}, data={"photographs": ["celeba-face"], "generators": ["ldm", "ddim"]})
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump(document))
    cli = Cli(tmp_path / "work", ())

    def start() -> subprocess.Popen[str]:
        return cli.start("run", suite, "--data-root", photographs, "--every", 3, *QUIET)

    done, kills = again_and_again(start, cli.folder / ".blades-store", 7, most=2)
    assert done.code == 0, done.text
    assert kills == 2
    read = read_training(cli.folder / done.document["run_dir"] / "training" / "lam")
    assert read.record.resumed >= 1
    equal(read, undisturbed)

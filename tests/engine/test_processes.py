"""Several processes train one recipe: started here, by torchrun or by Ray Train; killed, interrupted, gone on with."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cluster_support import command, descendants, wait_until
from plugin_support import Cli, Done, make_data
from safetensors.torch import load_file

from harness.api.errors import ConfigError, DataError
from harness.api.training import Recipe, TrainingError
from harness.engine.exchange import Deserted, Exchange
from harness.engine.processes import chosen_launcher

LAM: dict[str, Any] = {
    "recipe": "lam", "detector": "blades-oc", "options": {"encoder": "tiny", "image_size": 32}, "step": "bilevel",
    "settings": {"tasks": ["face_coarse", "face_fine"], "work_size": 32, "manipulations": [0, 1, 3], "lambda_lr": 0.01,
                 "freeze_batchnorm": True},
    "max_images": 12, "epochs": 1, "batch_size": 4, "lr": 1e-3, "seed": 1,
}  # fmt: skip
FIXED = ("--device", "cpu", "--threads", "2", "--tracking-uri", "off", "--json")
"""Three steps; two threads are one for each of two processes."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root; not to be written to."""
    return make_data(tmp_path_factory.mktemp("processes") / "data", train=48, test=4, made=4)


def recipe(folder: Path, **changes: Any) -> Path:
    path = folder / "lam.yaml"
    path.write_text(yaml.safe_dump({**LAM, **changes}))
    return path


def weights(folder: Path, done: Done) -> dict[str, torch.Tensor]:
    assert done.code == 0, done.text
    return load_file(folder / done.document["checkpoint"])


def history(folder: Path, done: Done) -> str:
    return (folder / done.document["folder"] / "history.csv").read_text()


# the same steps, the same bits ---------------------------------------------------------------------------------------


def same_steps(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        other = two[name].clone()
        if name.endswith("in_proj_bias"):  # a bias of keys has no gradient but rounding, which Adam brings to full size
            third = len(value) // 3
            other[third : 2 * third] = value[third : 2 * third]
        torch.testing.assert_close(other, value, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> tuple[Path, Done]:
    """Three steps by two processes that `train` starts itself: the folder and how it ended."""
    folder = tmp_path_factory.mktemp("two")
    path = recipe(folder, processes=2)
    return folder, Cli(folder, ())("train", path, "--data-root", photographs, "--every", "1", *FIXED)


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(two, tmp_path: Path, photographs: Path) -> None:
    folder, done = two
    single = Cli(tmp_path, ())("train", recipe(tmp_path), "--data-root", photographs, *FIXED)
    same_steps(weights(tmp_path, single), weights(folder, done))
    assert single.document["key"] != done.document["key"]
    rows, others = (text.splitlines() for text in (history(tmp_path, single), history(folder, done)))
    assert rows[0] == others[0]
    assert len(rows) == len(others) == 4
    for row, other in zip(rows[1:], others[1:], strict=True):
        assert [float(v) for v in other.split(",")] == pytest.approx([float(v) for v in row.split(",")], abs=1e-5)
    assert "lambda/face_fine" in rows[0]
    assert done.document["metrics"] == pytest.approx(single.document["metrics"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torchrun", "ray"])
def test_who_starts_the_processes_moves_no_bit(two, tmp_path: Path, photographs: Path, how: str) -> None:
    folder, done = two
    cli, words = Cli(tmp_path, ()), ("train", recipe(tmp_path, processes=2), "--data-root", photographs, *FIXED)
    ended = cli(*words, "--engine", "ray") if how == "ray" else torchrun(cli, 2, words)
    assert ended.code == 0, ended.text
    assert ended.document["sha256"] == done.document["sha256"]
    assert history(tmp_path, ended) == history(folder, done)
    assert ended.err.count("train lam: done") == 1
    assert not list((tmp_path / ".blades-store/training").iterdir())


def torchrun(cli: Cli, processes: int, words: tuple[object, ...]) -> Done:
    """The user's own torchrun around the command line."""
    process = torchrun_started(cli, processes, words)
    out, err = process.communicate(timeout=200)
    return Done(process.returncode, out, err)


def torchrun_started(cli: Cli, processes: int, words: tuple[object, ...]) -> subprocess.Popen[str]:
    """The same, not waited for."""
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [*started, "-m", "harness", *map(str, words)], cwd=cli.folder, env=cli._environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
def test_what_is_stored_is_found_by_every_process_of_a_torchrun(two, photographs: Path) -> None:
    folder, done = two
    words = ("train", folder / "lam.yaml", "--data-root", photographs, *FIXED)
    again = torchrun(Cli(folder, ()), 2, words)
    assert again.code == 0, again.text
    assert again.document["trained"] is False
    assert again.document["sha256"] == done.document["sha256"]


# ended before the end ------------------------------------------------------------------------------------------------


def started(process: subprocess.Popen[str], begun: Path) -> list[int]:
    """Ids of the processes that train, the first one first, as soon as a checkpoint is there."""
    wait_for_checkpoint(process, begun)
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == process.pid and any(b"take_part" in word for word in words):
            found[json.loads(words[3])["rank"]] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


def wait_for_checkpoint(process: subprocess.Popen[str], begun: Path) -> None:
    deadline = time.monotonic() + 400
    while not list(begun.glob("*/step-*/state.json")):
        assert process.poll() is None, "".join(process.communicate())
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(ids: list[int]) -> bool:
    """Whether none of these processes is left, within a few seconds."""
    deadline = time.monotonic() + 15
    while any(Path(f"/proc/{i}").exists() for i in ids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


LONG = {"epochs": 10, "processes": 2}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> tuple[str, str]:
    """30 steps by two processes: sha256 of the weights, and the history."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = Cli(folder, ())("train", recipe(folder, **LONG), "--data-root", photographs, *FIXED)
    assert done.code == 0, done.text
    assert "lambda/face_fine" in history(folder, done)
    return str(done.document["sha256"]), history(folder, done)


def same_bits(undisturbed: tuple[str, str], folder: Path, done: Done) -> None:
    """It went on from a checkpoint, to the same weights, λ and losses of every step."""
    assert done.code == 0, done.text
    assert "going on after step" in done.err
    assert (done.document["sha256"], history(folder, done)) == undisturbed
    assert not list((folder / ".blades-store/training").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["worker", "driver", "interrupt"])
def test_ended_at_any_step_the_same_command_gives_the_same_bits(
    undisturbed: tuple[str, str], tmp_path: Path, photographs: Path, what: str
) -> None:
    cli, begun = Cli(tmp_path, ()), tmp_path / ".blades-store/training"
    words = ("train", recipe(tmp_path, **LONG), "--data-root", photographs, "--every", "2", *FIXED)
    process = cli.start(*words)
    ids = started(process, begun)
    assert len(ids) == 2
    if what == "worker":
        os.kill(ids[1], signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL if what == "driver" else signal.SIGTERM)
    out, err = process.communicate(timeout=400)
    assert gone(ids)
    assert process.returncode == {"worker": 2, "driver": -signal.SIGKILL, "interrupt": 130}[what], out + err
    if what == "worker":
        assert "process 1 of 2" in err
        assert "killed by SIGKILL" in err
        assert "goes on from the last checkpoint" in err
        assert "Traceback" not in err
    if what == "interrupt":
        assert "the same command goes on from there" in err
    assert list(begun.glob("*/step-*"))
    same_bits(undisturbed, tmp_path, cli(*words))


@pytest.mark.slow
def test_a_torchrun_that_is_asked_to_end_leaves_a_checkpoint_and_goes_on(
    undisturbed: tuple[str, str], tmp_path: Path, photographs: Path
) -> None:
    cli, begun = Cli(tmp_path, ()), tmp_path / ".blades-store/training"
    words = ("train", recipe(tmp_path, **LONG), "--data-root", photographs, "--every", "2", *FIXED)
    process = torchrun_started(cli, 2, words)
    wait_for_checkpoint(process, begun)
    ids = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=400)
    assert gone(ids)
    assert process.returncode != 0, out + err
    assert "the same command goes on from there" in err
    assert out == ""
    same_bits(undisturbed, tmp_path, torchrun(cli, 2, words))


@pytest.mark.slow
def test_a_worker_of_ray_train_that_is_killed_is_named_and_the_same_command_goes_on(
    undisturbed: tuple[str, str], tmp_path: Path, photographs: Path
) -> None:
    cli, begun = Cli(tmp_path, ()), tmp_path / ".blades-store/training"
    words = ("train", recipe(tmp_path, **LONG), "--data-root", photographs, "--every", "2", *FIXED, "--engine", "ray")
    process = cli.start(*words)
    wait_for_checkpoint(process, begun)
    training = wait_until(lambda: [p for p in descendants(process.pid) if command(p).startswith("ray::RayTrainWorker")])
    assert len(training) == 2
    os.kill(training[1], signal.SIGKILL)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 2, out + err
    assert "a process of this training is gone" in err
    assert "goes on from the last checkpoint" in err
    assert gone(training)
    same_bits(undisturbed, tmp_path, cli(*words))


# refused -------------------------------------------------------------------------------------------------------------


def of(**changes: Any) -> Recipe:
    return Recipe(**{**LAM, **changes})


def test_a_batch_that_cannot_be_shared_is_refused_with_the_recipe() -> None:
    with pytest.raises(ValueError, match="a batch of 5 cannot be shared by 2 processes"):
        of(batch_size=5, processes=2)


@pytest.mark.slow
def test_a_network_whose_batchnorm_is_not_frozen_is_refused(tmp_path: Path, photographs: Path) -> None:
    settings = {**LAM["settings"], "freeze_batchnorm": False}
    path = recipe(tmp_path, processes=2, settings=settings)
    done = Cli(tmp_path, ())("train", path, "--data-root", photographs, *FIXED)
    assert done.code == 2, done.text
    assert "2 processes cannot make the steps of one: BatchNorm" in done.err
    assert "freeze_batchnorm" in done.err
    assert "Traceback" not in done.err


def under_torchrun(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    values = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_a_torchrun_of_another_size_is_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    under_torchrun(monkeypatch, 4)
    with pytest.raises(ConfigError, match=r"torchrun started 4 processes, the recipe has 2[\s\S]*--set processes=4"):
        chosen_launcher(of(processes=2))
    with pytest.raises(ConfigError, match="use one of them"):
        chosen_launcher(of(processes=4), "ray")
    assert type(chosen_launcher(of(processes=4))).__name__ == "Torchrun"


def test_engines_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ConfigError, match="use inline or ray"):
        chosen_launcher(of(), "slurm")
    with pytest.raises(ConfigError, match="add --engine ray"):
        chosen_launcher(of(), "inline", "localhost:6379")


# what processes tell -------------------------------------------------------------------------------------------------


def exchange(tmp_path: Path) -> Exchange:
    made = Exchange(tmp_path / "exchange")
    made.clear()
    return made


def test_the_message_of_the_process_that_failed_of_itself_is_told(tmp_path: Path) -> None:
    told = exchange(tmp_path)
    told.ended(0, Deserted("another process has ended"))
    told.ended(1, DataError("cannot be decoded", where="a.png", fix="replace it"))
    with pytest.raises(DataError, match=r"^cannot be decoded\n  where: a\.png\n  fix: replace it$"):
        told.outcome(2, {})


def test_a_process_that_is_gone_is_named_before_those_it_left_alone(tmp_path: Path) -> None:
    told = exchange(tmp_path)
    told.ended(0, Deserted("another process has ended"))
    with pytest.raises(TrainingError, match=r"killed by SIGKILL\n  where: process 1 of 2"):
        told.outcome(2, {1: "killed by SIGKILL"})


def test_a_fault_of_the_program_comes_with_its_traceback(tmp_path: Path) -> None:
    told = exchange(tmp_path)
    try:
        raise ZeroDivisionError("none")
    except ZeroDivisionError as error:
        told.ended(0, error)
    told.ended(1, Deserted("another process has ended"))
    with pytest.raises(RuntimeError, match=r"ZeroDivisionError: none[\s\S]*raise ZeroDivisionError"):
        told.outcome(2, {})


def test_a_faces_table_of_the_released_layout_can_be_sent(tmp_path: Path) -> None:
    from harness.data.training.fdf import _landmarks

    (tmp_path / "a.npy").touch()
    read = pickle.loads(pickle.dumps(_landmarks(tmp_path, ["a", "b"], [])))
    assert read(1) is None
    assert read.there == {"a"}

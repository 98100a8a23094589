"""Checkpoints and resume: killed anywhere, a training ends with the bits of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.api.checkpoint import (
    Checkpoints,
    History,
    generators_state,
    read_checkpoint,
    set_generators,
    write_checkpoint,
)
from harness.api.errors import ConfigError, StoreError
from harness.api.events import Event
from harness.api.trainer import train
from harness.api.training import Recipe
from tests.api.resume_steps import RandomStep, recipe

PROGRAM = Path(__file__).with_name("resume_steps.py")


def run(folder: Path, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **more,
    )  # fmt: skip


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture(scope="module")
def undisturbed() -> Any:
    return train(RandomStep(), recipe(), threads=1)


@pytest.mark.parametrize("every", [1, 3, 7])
def test_killed_again_and_again_it_ends_with_the_same_bits(tmp_path: Path, undisturbed: Any, every: int) -> None:
    """Kill -9 at any moment: in a step, while a checkpoint is written, between two."""
    draw, kills = random.Random(every), 0
    for _ in range(40):
        process = run(tmp_path, str(every))
        assert process.stdout is not None
        process.stdout.readline()  # the first step is done
        time.sleep(draw.uniform(0, 0.25))
        if process.poll() is None and kills < 5:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        _, said = process.communicate()
        assert process.returncode == 0, said
        break
    assert kills >= 2
    assert same(load_file(tmp_path / "result.safetensors"), undisturbed.tensors)
    assert json.loads((tmp_path / "history.json").read_text()) == json.loads(json.dumps(undisturbed.history))


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_a_step_with_its_checkpoint(
    tmp_path: Path, undisturbed: Any, kind: signal.Signals
) -> None:
    process = run(tmp_path, "100000")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(kind)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert f"{kind.name}: stopped after step" in said
    assert len(list(tmp_path.glob("step-*"))) == 1
    again = run(tmp_path, "100000")
    assert again.wait() == 0
    assert same(load_file(tmp_path / "result.safetensors"), undisturbed.tensors)


def test_only_the_last_are_kept_and_a_damaged_one_is_passed_over(tmp_path: Path, undisturbed: Any) -> None:
    where = Checkpoints(tmp_path, every=5, keep=2)
    train(RandomStep(), recipe(), threads=1, checkpoints=where)
    last, before = sorted(tmp_path.glob("step-*"), reverse=True)
    assert (last.name, before.name) == ("step-00000025", "step-00000020")
    with (last / "tensors.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"X")
    notes: list[str] = []
    result = train(
        RandomStep(), recipe(), threads=1, checkpoints=where,
        emit=lambda event: notes.append(event.fields.get("text", "")),
    )  # fmt: skip
    assert "recipe resume: going on after step 20 of 28" in notes
    assert same(result.tensors, undisturbed.tensors)
    assert result.history == undisturbed.history


@pytest.mark.parametrize(("writing", "steps"), [(0, [3, 6, 9, 12, 15, 18, 21, 24, 27]), (4, [3, 11, 19, 27])])
def test_a_checkpoint_is_written_when_its_time_has_come_and_moves_no_bit(
    tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, writing: int, steps: list[int]
) -> None:
    """Steps of 25 s and a checkpoint each minute; one that takes 4 s is followed by 200 s without."""
    now, found = 1000.0, []
    monkeypatch.setattr("harness.api.checkpoint.time.monotonic", lambda: now)

    def listen(event: Event) -> None:
        nonlocal now
        now += {"train_step": 25, "checkpoint": writing}.get(event.kind, 0)
        if event.kind == "checkpoint":
            found.append(event.fields["step"])

    result = train(RandomStep(), recipe(), threads=1, checkpoints=Checkpoints(tmp_path), emit=listen)
    assert found == steps
    assert same(result.tensors, undisturbed.tensors)
    assert result.history == undisturbed.history


def test_what_a_kill_left_half_written_is_gone_when_it_goes_on(tmp_path: Path) -> None:
    where = Checkpoints(tmp_path, every=10)
    with pytest.raises(RuntimeError, match="enough"):
        train(RandomStep(limit=13), recipe(), threads=1, checkpoints=where)
    (tmp_path / ".tmp-dir").mkdir()
    (tmp_path / ".tmp-dir" / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / ".tmp-file").write_bytes(b"half")
    (tmp_path / "processes").mkdir()
    (tmp_path / "processes" / ".tmp-theirs").touch()
    with pytest.raises(RuntimeError, match="enough"):
        train(RandomStep(limit=14), recipe(), threads=1, checkpoints=where)
    assert {p.name for p in tmp_path.iterdir()} == {"history.jsonl", "processes", "step-00000010"}
    assert [p.name for p in (tmp_path / "processes").iterdir()] == [".tmp-theirs"]


def test_a_finished_training_is_not_trained_further(tmp_path: Path, undisturbed: Any) -> None:
    where = Checkpoints(tmp_path, every=1)
    first = train(RandomStep(), recipe(), threads=1, checkpoints=where)
    seen: list[str] = []
    again = train(RandomStep(), recipe(), threads=1, checkpoints=where, emit=lambda event: seen.append(event.kind))
    assert "train_step" not in seen
    assert same(first.tensors, again.tensors)
    assert again.metrics == first.metrics == undisturbed.metrics


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(RandomStep(), recipe(), threads=1, checkpoints=Checkpoints(tmp_path, every=1))
    with pytest.raises(ConfigError, match="checkpoint of another model"):
        train(RandomStep(width=5), recipe(), threads=1, checkpoints=Checkpoints(tmp_path, every=1))


def test_a_write_that_fails_is_said_and_keeps_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, history = Checkpoints(tmp_path, keep=1), History(tmp_path)
    write_checkpoint(where, 1, {"a": torch.ones(3)}, {}, history)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.api.checkpoint.os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        write_checkpoint(where, 2, {"a": torch.zeros(3)}, {}, history)
    saved = read_checkpoint(where, history)
    assert saved is not None
    assert saved.step == 1
    assert torch.equal(saved.tensors["a"], torch.ones(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.jsonl", "step-00000001"]


def drawn() -> list[object]:
    noise = np.random.standard_normal()  # noqa: NPY002  (the global generator is what is tested)
    return [random.gauss(0, 1), noise, *torch.randn(2).tolist()]


def test_generators_go_on_where_they_were() -> None:
    drawn()
    before = generators_state()
    first = [drawn(), drawn()]
    set_generators(before)
    assert [drawn(), drawn()] == first


def test_early_stopping_gives_the_best_weights_and_resumes(tmp_path: Path) -> None:
    stopping = recipe(epochs=30, early_stop={"metric": "score", "patience": 3})
    plain = train(RandomStep(peak=4), stopping, threads=1)
    assert plain.metrics["score"] == 4
    assert plain.history[-1]["epoch"] == 7
    fourth = train(RandomStep(peak=4), recipe(epochs=4, schedule="constant"), threads=1)
    constant = stopping.model_copy(update={"schedule": "constant"})
    assert same(train(RandomStep(peak=4), constant, threads=1).tensors, fourth.tensors)
    for limit in (5 * 7, 6 * 7 + 2):
        with pytest.raises(RuntimeError, match="enough"):
            train(RandomStep(peak=4, limit=limit), stopping, threads=1, checkpoints=Checkpoints(tmp_path, every=2))
    resumed = train(RandomStep(peak=4), stopping, threads=1, checkpoints=Checkpoints(tmp_path, every=2))
    assert same(resumed.tensors, plain.tensors)
    assert resumed.metrics == plain.metrics


def test_plateau_lowers_the_rate_and_ends_below_the_least() -> None:
    rule = {"metric": "score", "patience": 2, "factor": 0.1, "min_lr": 5e-4}
    falling = Recipe(**{**recipe(epochs=30).model_dump(), "schedule": "plateau", "plateau": rule})
    history = train(RandomStep(peak=3), falling, threads=1).history
    rates = {row["epoch"]: round(row["lr"], 10) for row in history}
    assert rates == {**dict.fromkeys(range(1, 6), 0.01), 6: 0.001, 7: 0.001}


def test_a_watched_metric_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="'auc', which is not among"):
        train(RandomStep(), recipe(early_stop={"metric": "auc"}), threads=1)

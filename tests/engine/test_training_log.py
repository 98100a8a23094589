"""The log of a training: kept with each checkpoint, gone on from, and sound where the file is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.api.events import Event
from harness.engine.training_log import FILE, TrainingLog


def step(log: TrainingLog, number: int, speed: float = 10.0) -> None:
    log(Event("train_step", {"step": number, "images_per_second": speed, "memory_mib": 7, "loss": 1.0}))


def checkpoint(log: TrainingLog, number: int) -> None:
    log(Event("checkpoint", {"recipe": "r", "step": number, "path": ""}))


def document(log: TrainingLog) -> dict[str, Any]:
    return dict(log.document("cpu", 1))


def interrupted(folder: Path) -> list[Event]:
    """Four steps, a checkpoint after three, the fourth lost."""
    heard: list[Event] = []
    log = TrainingLog(folder, heard.append)
    for number in (1, 2, 3):
        step(log, number)
    log(Event("train_eval", {"recipe": "r", "step": 3, "epoch": 1, "metrics": {"a": 0.5}}))
    checkpoint(log, 3)
    step(log, 4)
    return heard


def test_every_event_is_passed_on(tmp_path: Path) -> None:
    kinds = [event.kind for event in interrupted(tmp_path)]
    assert kinds == ["train_step"] * 3 + ["train_eval", "checkpoint", "train_step"]


def test_what_was_heard_outlives_the_process_with_the_checkpoint(tmp_path: Path) -> None:
    interrupted(tmp_path)
    log = TrainingLog(tmp_path, lambda event: None)
    for number in (4, 5):
        step(log, number, 20.0)
    found = document(log)
    assert found["readings"]["step"] == [1, 2, 3, 4, 5]
    assert found["readings"]["images_per_second"] == [10.0, 10.0, 10.0, 20.0, 20.0]
    assert found["readings"]["memory_mib"] == [7] * 5
    assert [s["first_step"] for s in found["sessions"]] == [1, 4]
    assert found["evaluations"] == [{"step": 3, "epoch": 1, "metrics": {"a": 0.5}}]
    assert found["environment"]["device"] == "cpu"


def test_of_a_step_made_twice_the_later_reading_counts(tmp_path: Path) -> None:
    interrupted(tmp_path)
    log = TrainingLog(tmp_path, lambda event: None)
    step(log, 2, 99.0)
    assert document(log)["readings"]["images_per_second"] == [10.0, 99.0, 10.0]


def test_a_torn_last_line_is_cut_off_and_written_over(tmp_path: Path) -> None:
    interrupted(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole + b'["step", [4, 1')
    log = TrainingLog(tmp_path, lambda event: None)
    assert (tmp_path / FILE).read_bytes() == whole
    step(log, 4)
    checkpoint(log, 4)
    assert document(TrainingLog(tmp_path, lambda event: None))["readings"]["step"] == [1, 2, 3, 4]


def test_a_damaged_log_is_said_and_left_out(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'["step", [1]]\n\x00\xff\n')
    heard: list[Event] = []
    log = TrainingLog(tmp_path, heard.append)
    assert [event.kind for event in heard] == ["warning"]
    step(log, 6)
    assert document(log)["readings"]["step"] == [6]

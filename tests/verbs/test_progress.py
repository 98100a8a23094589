"""What progress says of a training: where it stands, how fast, how long yet, and the losses and weights."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest

from harness.api.events import Event
from harness.verbs import progress
from harness.verbs.progress import Progress


class Clock:
    """Time that passes when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def step(number: int, **more: Any) -> Event:
    fields = {
        "recipe": "lam", "step": number, "steps": 60, "epoch": (number - 1) // 10 + 1, "epochs": 6, "lr": 1e-3,
        "loss": 1.23456, "losses": {"face_coarse": 0.5}, "images_per_second": 40.0, "memory_mib": 500, **more,
    }  # fmt: skip
    return Event("train_step", fields)


def trained(listener: Progress, clock: Clock, first: int, last: int, seconds: float, **more: Any) -> None:
    """Steps at a pace, each with the progress event that the trainer sends after it."""
    for number in range(first, last + 1):
        clock.now += seconds
        listener(step(number, **more))
        listener(Event("progress", {"stage": "train", "done": number, "total": 60, "unit": "steps"}))


def start(stream: io.StringIO) -> Progress:
    listener = Progress(stream)
    listener(Event("stage_start", {"stage": "train lam", "total": 6}))
    return listener


def test_a_line_every_ten_seconds_says_where_it_stands_and_how_long_yet(clock: Clock) -> None:
    stream = io.StringIO()
    trained(start(stream), clock, 1, 24, 1.0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train lam: 6 epochs to do"
    assert lines[1] == "train lam: epoch 1/6, step 10/60, 40.0 images/s, 50 s left, loss 1.235"
    assert lines[2] == "train lam: epoch 2/6, step 20/60, 40.0 images/s, 40 s left, loss 1.235"
    assert len(lines) == 3


def test_the_time_left_of_a_resumed_training_counts_only_this_session(clock: Clock) -> None:
    stream = io.StringIO()
    trained(start(stream), clock, 41, 50, 2.0)
    assert "step 45/60, 40.0 images/s, 30 s left" in stream.getvalue()


def test_decoding_says_its_own_rate_and_does_not_count_as_training(clock: Clock) -> None:
    stream = io.StringIO()
    listener = start(stream)
    for done in range(0, 3001, 100):
        listener(Event("progress", {"stage": "recipe lam: decoding", "done": done, "total": 3000, "unit": "images"}))
        clock.now += 10
    trained(listener, clock, 1, 11, 1.0)
    lines = stream.getvalue().splitlines()
    assert lines[1] == "recipe lam: decoding: 100/3,000 images, 10.0/s, 4 min 50 s left"
    assert lines[2] == "recipe lam: decoding: 200/3,000 images, 10.0/s, 4 min 40 s left"
    assert lines[31].startswith("train lam: epoch 1/6, step 1/60, 40.0 images/s, loss")  # one step has no pace yet
    assert lines[32].startswith("train lam: epoch 2/6, step 11/60, 40.0 images/s, 49 s left")
    assert len(lines) == 33


def test_the_rate_is_the_images_over_the_time_since_the_last_line(clock: Clock) -> None:
    stream = io.StringIO()
    listener = start(stream)
    trained(listener, clock, 1, 5, 1.0, images_per_second=100.0)
    trained(listener, clock, 6, 10, 1.0, images_per_second=25.0)
    assert "40.0 images/s" in stream.getvalue()


def test_the_largest_losses_by_task_and_the_range_of_the_weights_are_shown(clock: Clock) -> None:
    stream = io.StringIO()
    losses = {"a": 0.1, "b": 0.44444, "c": 0.3, "d": 0.2, "e": 0.05}
    trained(start(stream), clock, 1, 10, 1.0, losses=losses, **{"lambda": {"a": 0.98765, "b": 1.5}})
    assert "loss 1.235 (b 0.444, c 0.3, d 0.2, 2 more), λ 0.9877..1.5000" in stream.getvalue()


def test_metrics_between_epochs_are_said_and_the_last_ones_once(clock: Clock) -> None:
    stream = io.StringIO()
    listener = start(stream)
    trained(listener, clock, 1, 1, 1.0)
    listener(Event("train_eval", {"recipe": "lam", "step": 20, "epoch": 2, "metrics": {"accuracy": 0.75}}))
    listener(Event("train_eval", {"recipe": "lam", "step": 60, "epoch": 6, "metrics": {"accuracy": 0.8}}))
    listener(Event("stage_end", {"stage": "train lam", "sha256": "", "metrics": {"accuracy": 0.8}}))
    said = stream.getvalue().splitlines()[1:]
    assert said == ["train lam: after epoch 2, accuracy 0.75", "train lam: done, 1 s, accuracy 0.8"]


def test_other_work_after_a_training_shows_its_own_progress(clock: Clock) -> None:
    stream = io.StringIO()
    listener = start(stream)
    trained(listener, clock, 1, 2, 1.0)
    listener(Event("stage_end", {"stage": "train lam"}))
    listener(Event("stage_start", {"stage": "features of x", "total": 100, "stored": 0}))
    clock.now += 20
    listener(Event("progress", {"stage": "features of x", "done": 40, "total": 100, "unit": "images"}))
    assert "features of x: 40/100 images, 2.0/s, 30 s left" in stream.getvalue()


def test_on_a_terminal_one_line_is_written_over_and_never_wraps(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(progress.shutil, "get_terminal_size", lambda: os.terminal_size((40, 24)))
    stream = Terminal()
    trained(start(stream), clock, 1, 3, 1.0)
    shown = stream.getvalue().split("\n", 1)[1].split("\r\x1b[K")[1:]
    assert len(shown) == 3
    assert all(len(line) == 39 for line in shown)

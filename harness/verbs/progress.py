"""What a person sees while work runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from harness.api.events import Event

PLAIN_SECONDS = 10.0


def clock(seconds: float) -> str:
    """A duration for people: 42 s, 3 min 5 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


SHOWN_TASKS = 3
"""Losses by task that a line shows at most, the largest."""


class TrainingLine:
    """A training under way as one line: what its steps of this session said."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        """When the first step was done: what came before it (decoding, say) says nothing of the pace."""
        self.steps, self.epochs = 0, 0
        self.seconds_an_image: list[float] = []

    def hear(self, fields: Mapping[str, Any]) -> None:
        """One ``train_step``."""
        self.steps, self.epochs = self.steps + 1, int(fields["epochs"])
        self.seconds_an_image.append(1 / max(float(fields["images_per_second"]), 1e-9))

    def text(self, fields: Mapping[str, Any]) -> str:
        """Epoch, step, images a second since the last line, time left, losses by task, range of the task weights."""
        step, steps = int(fields["step"]), int(fields["steps"])
        rate = len(self.seconds_an_image) / sum(self.seconds_an_image)
        self.seconds_an_image = []
        parts = [
            f"train {fields['recipe']}: epoch {fields['epoch']}/{fields['epochs']}", f"step {step:,}/{steps:,}",
            f"{rate:.1f} images/s",
        ]  # fmt: skip
        if self.steps > 1:
            left = (time.monotonic() - self.began) / (self.steps - 1) * (steps - step)
            parts.append(f"{clock(left)} left")
        parts.append(f"loss {fields['loss']:.4g}{_tasks(fields['losses'])}")
        weights = fields.get("lambda")
        if weights:
            parts.append(f"λ {min(weights.values()):.4f}..{max(weights.values()):.4f}")
        return ", ".join(parts)


def _tasks(losses: Mapping[str, float]) -> str:
    """The largest losses by task in brackets; nothing where there is only one."""
    if len(losses) < 2:
        return ""
    largest = sorted(losses.items(), key=lambda item: -item[1])[:SHOWN_TASKS]
    rest = f", {len(losses) - SHOWN_TASKS} more" if len(losses) > SHOWN_TASKS else ""
    return f" ({', '.join(f'{name} {value:.3g}' for name, value in largest)}{rest})"


class Progress:
    """Listens to events and writes rates and time left to standard error."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.live = self.stream.isatty()
        self.began = time.monotonic()
        self.last = 0.0
        self.stage = ""
        self.part, self.part_began = "", self.began
        self.open_line = False
        self.training: TrainingLine | None = None

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.open_line:
            self.stream.write("\r\x1b[K")
            self.open_line = False
        self.stream.write(text + "\n")
        self.stream.flush()

    def _start(self, event: Event) -> None:
        self.stage, self.began, self.last = str(event.fields["stage"]), time.monotonic(), time.monotonic()
        self.part, self.part_began = self.stage, self.began
        stored = event.fields.get("stored")
        known = f", {stored:,} already stored" if stored is not None else ""
        unit = "epochs" if self.stage.startswith("train") else "images"
        self.say(f"{self.stage}: {event.fields['total']:,} {unit} to do{known}")

    def _progress(self, event: Event) -> None:
        now, name = time.monotonic(), str(event.fields["stage"])
        if name != self.part:  # work that announced no start, of its own or before a training's first step
            self.part, self.part_began, self.last = name, now, now
        done, total = int(event.fields["done"]), int(event.fields["total"])
        if now - self.last < (0.2 if self.live else PLAIN_SECONDS):
            return
        self.last = now
        rate = done / max(now - self.part_began, 1e-9)
        unit = event.fields.get("unit", "")
        self._show(f"{name}: {done:,}/{total:,} {unit}, {rate:.1f}/s, {clock((total - done) / max(rate, 1e-9))} left")

    def _show(self, text: str) -> None:
        if self.live:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be written over
            self.stream.write("\r\x1b[K" + text[:width])
            self.stream.flush()
            self.open_line = True
        else:
            self.say(text)

    def _step(self, fields: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if self.training is None:
            self.training = TrainingLine()
        self.training.hear(fields)
        if now - self.last >= (0.2 if self.live else PLAIN_SECONDS):
            self.last = now
            self._show(self.training.text(fields))

    def _evaluated(self, fields: Mapping[str, Any]) -> None:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in fields["metrics"].items())
        last = self.training is not None and self.training.epochs == fields["epoch"]
        if metrics and not last:  # the end of the stage says the last ones
            self.say(f"train {fields['recipe']}: after epoch {fields['epoch']}, {metrics}")

    def _end(self, event: Event) -> None:
        fields = event.fields
        seconds = fields.get("seconds", time.monotonic() - self.began)
        metrics = fields.get("metrics") or {}
        extra = "".join(f", {name} {value:.4g}" for name, value in metrics.items())
        done = f"{fields['done']:,} images in " if "done" in fields else ""
        self.say(f"{fields['stage']}: done, {done}{clock(seconds)}{extra}")
        self.stage, self.part, self.training = "", "", None

    def __call__(self, event: Event) -> None:
        """Show one event; unknown kinds are for other listeners."""
        if event.kind == "stage_start":
            self._start(event)
        elif event.kind == "train_step":
            self._step(event.fields)
        elif event.kind == "train_eval":
            self._evaluated(event.fields)
        elif event.kind == "progress":
            if self.training is None:  # the steps of a training say more themselves
                self._progress(event)
        elif event.kind == "stage_end":
            self._end(event)
        elif event.kind == "warning":
            self.say(f"warning: {event.fields['text']}")
        elif event.kind == "note":
            self.say(str(event.fields["text"]))

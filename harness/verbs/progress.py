"""What a person sees while work runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

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


class Progress:
    """Listens to events and writes rates and time left to standard error."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.live = self.stream.isatty()
        self.began = time.monotonic()
        self.last = 0.0
        self.stage = ""
        self.open_line = False

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.open_line:
            self.stream.write("\r\x1b[K")
            self.open_line = False
        self.stream.write(text + "\n")
        self.stream.flush()

    def _start(self, event: Event) -> None:
        self.stage, self.began, self.last = str(event.fields["stage"]), time.monotonic(), time.monotonic()
        stored = event.fields.get("stored")
        known = f", {stored:,} already stored" if stored is not None else ""
        unit = "epochs" if self.stage.startswith("train") else "images"
        self.say(f"{self.stage}: {event.fields['total']:,} {unit} to do{known}")

    def _progress(self, event: Event) -> None:
        now = time.monotonic()
        if not self.stage:  # work that announced no start
            self.stage, self.began, self.last = str(event.fields["stage"]), now, now
        done, total = int(event.fields["done"]), int(event.fields["total"])
        if now - self.last < (0.2 if self.live else PLAIN_SECONDS):
            return
        self.last = now
        rate = done / max(now - self.began, 1e-9)
        unit = event.fields.get("unit", "")
        text = f"{self.stage}: {done:,}/{total:,} {unit}, {rate:.1f}/s, {clock((total - done) / max(rate, 1e-9))} left"
        if self.live:
            self.stream.write("\r\x1b[K" + text)
            self.stream.flush()
            self.open_line = True
        else:
            self.say(text)

    def _end(self, event: Event) -> None:
        fields = event.fields
        seconds = fields.get("seconds", time.monotonic() - self.began)
        metrics = fields.get("metrics") or {}
        extra = "".join(f", {name} {value:.4g}" for name, value in metrics.items())
        done = f"{fields['done']:,} images in " if "done" in fields else ""
        self.say(f"{fields['stage']}: done, {done}{clock(seconds)}{extra}")
        self.stage = ""

    def __call__(self, event: Event) -> None:
        """Show one event; unknown kinds are for other listeners."""
        if event.kind == "stage_start":
            self._start(event)
        elif event.kind == "progress":
            self._progress(event)
        elif event.kind == "stage_end":
            self._end(event)
        elif event.kind == "warning":
            self.say(f"warning: {event.fields['text']}")
        elif event.kind == "note":
            self.say(str(event.fields["text"]))

"""What a training says while it runs, kept beside its checkpoints so that it outlives an interruption."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.api.events import Event, Listener

FILE = "log.jsonl"


class TrainingLog:
    """Listens to a training and passes every event on: sessions, clock readings of each step, metrics on `select`.

    The history of a training is free of clock readings; these are here. What was heard is written to
    ``<folder>/log.jsonl`` with each checkpoint, so a killed training can lack readings of the steps since the one
    before it, which it makes again. Of a step that was made twice the later reading counts.

    Args:
        folder: the training's checkpoints.
        emit: who else listens.
    """

    def __init__(self, folder: Path, emit: Listener) -> None:
        self.path, self.emit = folder / FILE, emit
        self.sessions: list[dict[str, Any]] = []
        self.readings: dict[int, tuple[float, int]] = {}
        self.evaluations: dict[int, dict[str, Any]] = {}
        self._waiting: list[str] = []
        self._here: dict[str, Any] | None = None
        self._read()

    def _read(self) -> None:
        if not self.path.is_file():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            for line in whole.splitlines():
                self._take(*json.loads(line))
        except (ValueError, TypeError, KeyError, IndexError):
            self.emit(Event("warning", {"text": f"{self.path} is damaged; its readings of earlier steps are left out"}))
            self.sessions, self.readings, self.evaluations, whole = [], {}, {}, b""
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))

    def _take(self, kind: str, value: Any) -> None:
        if kind == "session":
            self.sessions.append(value)
        elif kind == "step":
            self.readings[int(value[0])] = (float(value[1]), int(value[2]))
        else:
            self.evaluations[int(value["step"])] = value

    def _hear(self, kind: str, value: Any) -> None:
        self._take(kind, value)
        self._waiting.append(json.dumps([kind, value]))

    def __call__(self, event: Event) -> None:
        """Hear one event and pass it on."""
        fields = event.fields
        if event.kind == "train_step":
            self._session(int(fields["step"]))
            self._hear("step", [fields["step"], round(fields["images_per_second"], 3), fields["memory_mib"]])
        elif event.kind == "train_eval":
            self._hear("eval", {k: fields[k] for k in ("step", "epoch", "metrics")})
        elif event.kind == "checkpoint":
            self._flush()
        self.emit(event)

    def _session(self, step: int) -> None:
        from harness.results.record import now

        if self._here is None:
            self._here = {"first_step": step, "started": now(), "command": ["harness", *sys.argv[1:]]}
            self._hear("session", self._here)

    def _flush(self) -> None:
        with self.path.open("a") as stream:
            stream.write("".join(f"{line}\n" for line in self._waiting))
        self._waiting.clear()

    def document(self, device: str, threads: int) -> Mapping[str, Any]:
        """JSON values for the training's entry: when, by which commands and where it ran, readings by column, and
        metrics on `select` by step."""
        from harness.results.record import environment, now

        steps = sorted(self.readings)
        return {
            "finished": now(), "sessions": self.sessions, "environment": environment(device, threads),
            "readings": {
                "step": steps,
                "images_per_second": [self.readings[s][0] for s in steps],
                "memory_mib": [self.readings[s][1] for s in steps],
            },
            "evaluations": [self.evaluations[s] for s in sorted(self.evaluations)],
        }  # fmt: skip

"""What a training's processes and the one that started them tell each other: files in the training's folder.

```
<folder>/events.jsonl         what the first process tells, a line an event
<folder>/stop                 who asks to stop, in words
<folder>/rank-<n>.json        how a process ended
<folder>/result.safetensors   what was trained; result.json: history and metrics
```

Files, because checkpoints need a folder that all processes see anyway, on one machine or many, whoever started them.
"""

from __future__ import annotations

import importlib
import json
import shutil
import signal
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import HarnessError, StoreError
from harness.api.events import Event, Listener
from harness.api.training import TrainingError
from harness.results.files import write_atomic

if TYPE_CHECKING:
    from harness.api.trainer import TrainResult

DONE, STOPPED, FAILED, LEFT = "done", "stopped", "failed", "left"
"""How a process can end; LEFT: because another one was gone."""


class Deserted(TrainingError):
    """The others that trained with this process are gone; one of them knows why."""


class Exchange:
    """Both ends of the exchange of one training.

    Args:
        folder: of this training alone; ``clear`` makes it, empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read = 0

    def clear(self) -> None:
        """Forget what an earlier, killed training left."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    # the processes' end

    def tell(self, event: Event) -> None:
        """One event for whoever listens to the training."""
        with (self.folder / "events.jsonl").open("a") as stream:
            stream.write(json.dumps([event.kind, dict(event.fields)]) + "\n")

    def asked(self) -> str | None:
        """Who asks to stop, or None."""
        try:
            return (self.folder / "stop").read_text() or None
        except FileNotFoundError:
            return None

    def give(self, result: TrainResult) -> None:
        """What was trained."""
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in result.tensors.items()}, self.folder / "result.safetensors")
        document = {"history": result.history, "metrics": result.metrics}
        write_atomic(self.folder / "result.json", json.dumps(document).encode())

    def ended(self, rank: int, error: BaseException | None = None) -> None:
        """How a process ended, and why."""
        document: dict[str, Any] = {"ended": DONE, "when": time.time()}
        if error is not None:
            document |= {"ended": _kind(error), "type": type(error).__name__, "text": str(error)}
        if isinstance(error, HarnessError):
            document |= {"what": error.what, "where": error.where, "fix": error.fix}
            document |= {"module": type(error).__module__}
        elif error is not None:
            document["traceback"] = "".join(traceback.format_exception(error))
        write_atomic(self.folder / f"rank-{rank}.json", json.dumps(document).encode())

    # the end of who started them

    def pass_on(self, emit: Listener) -> None:
        """Events that came since the last call."""
        try:
            with (self.folder / "events.jsonl").open("rb") as stream:
                stream.seek(self._read)
                data = stream.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            kind, fields = json.loads(line)
            emit(Event(kind, fields))

    def ask_to_stop(self, why: str) -> None:
        """The processes stop after their step, with a checkpoint."""
        if not (self.folder / "stop").exists():
            write_atomic(self.folder / "stop", why.encode())

    @property
    def silent(self) -> bool:
        """Whether no process has told anything yet."""
        return not (self.folder / "events.jsonl").exists() and not any(self.folder.glob("rank-*.json"))

    def end_of(self, rank: int) -> Mapping[str, Any] | None:
        """How a process said that it ended; None while it did not."""
        try:
            document: dict[str, Any] = json.loads((self.folder / f"rank-{rank}.json").read_text())
        except FileNotFoundError:
            return None
        return document

    def result(self) -> TrainResult:
        """What was trained.

        Raises:
            StoreError: it is not there.
        """
        from safetensors.torch import load_file

        from harness.api.trainer import TrainResult

        try:
            document = json.loads((self.folder / "result.json").read_text())
            tensors = load_file(self.folder / "result.safetensors")
        except OSError as error:
            raise StoreError("what was trained cannot be read", self.folder, "run again") from error
        return TrainResult(tensors, document["history"], document["metrics"])

    def outcome(self, processes: int, lost: Mapping[int, str]) -> TrainResult:
        """What was trained, once all processes have ended.

        Args:
            processes: how many there were.
            lost: of processes that said nothing, what is known of their end.

        Raises:
            HarnessError: the message of the process that failed first of itself, in its own words.
            TrainingError: a process is gone without a word.
            Interrupted: they were asked to stop.
            RuntimeError: a fault of the program in one of them; its traceback is in the message.
        """
        ends = {rank: self.end_of(rank) for rank in range(processes)}
        said = sorted((e for e in ends.values() if e is not None), key=lambda end: float(end["when"]))
        for end in said:
            if end["ended"] == FAILED and "what" in end:
                raise _error(end)
        silent = [rank for rank, end in ends.items() if end is None]
        if silent:
            raise TrainingError(
                f"a process of this training is gone: {lost.get(silent[0], 'it left no word')}",
                where=f"process {silent[0]} of {processes} (counted from 0)",
                fix="run the same command again: it goes on from the last checkpoint (out of memory? fewer processes)",
            )
        for end in said:
            if end["ended"] == FAILED:
                raise RuntimeError(f"{end['type']}: {end['text']}\n\nin a process of the training:\n{end['traceback']}")
        for end in said:
            if end["ended"] == STOPPED:
                from harness.api.checkpoint import Interrupted

                raise Interrupted(end["text"])
        for end in said:
            if end["ended"] == LEFT:
                raise _error(end)
        return self.result()


def _kind(error: BaseException) -> str:
    if isinstance(error, Deserted):
        return LEFT
    return STOPPED if isinstance(error, KeyboardInterrupt) else FAILED


def _error(end: Mapping[str, Any]) -> HarnessError:
    """The error that a process ended with, of its own class where that is one of ours."""
    kind = getattr(importlib.import_module(end["module"]), end["type"], HarnessError)
    try:
        made = kind(end["what"], end["where"], end["fix"])
    except TypeError:  # a subclass with other arguments
        made = HarnessError(end["what"], end["where"], end["fix"])
    return made if isinstance(made, HarnessError) else HarnessError(end["what"], end["where"], end["fix"])


def ended_by(code: int) -> str:
    """What an exit status says, for people."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"

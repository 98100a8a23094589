"""Checkpoints of a training: everything a resumed one needs to go on to the bit, whole on the disk or not there.

```
<folder>/step-00000120/tensors.safetensors     model, step, optimiser, best weights, random generators
<folder>/step-00000120/state.json              position, schedule, sha256 of the tensors; written last
<folder>/history.jsonl                         one line an optimiser step
```
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from harness.api.errors import StoreError

FORMAT = 1
UNFINISHED = ".tmp-"


class Interrupted(KeyboardInterrupt):
    """A training that was asked to stop (SIGINT, SIGTERM) and did so between two steps, its checkpoint written."""


@dataclass(frozen=True)
class Checkpoints:
    """Where checkpoints go and how often; nothing here changes a number.

    One is written every so many optimiser steps, when so many seconds have passed since the last one, and when asked to
    stop. After one that took long to write fifty times as long must pass instead.

    Attributes:
        folder: of one training; must belong to its recipe key alone.
        every: a checkpoint after each step whose number is a multiple of it.
        seconds: time after which the next step ends with a checkpoint, whatever its number.
        keep: how many of the last stay.
    """

    folder: Path
    every: int = 500
    seconds: float = 60.0
    keep: int = 2


class Due:
    """Says whether the next checkpoint is due by time; of several processes the first one alone has a clock."""

    SHARE = 50
    """Writing takes at most one part in so many of the time, by this rule."""

    def __init__(self, where: Checkpoints, *, clock: bool) -> None:
        self.where, self.clock = where, clock
        self.wait, self.last = where.seconds, time.monotonic()

    def now(self) -> bool:
        """Whether it is time."""
        return self.clock and time.monotonic() - self.last >= self.wait

    def written(self, began: float) -> None:
        """A checkpoint is written that was begun at that moment of ``time.monotonic``."""
        self.last = time.monotonic()
        self.wait = max(self.where.seconds, self.SHARE * (self.last - began))


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read: position (steps done), tensors by name, JSON state, and the history so far."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    history: list[dict[str, Any]]


class History:
    """The lines of ``history.jsonl``: appended, and cut back to a checkpoint's place on resume."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "history.jsonl"
        self._waiting: list[str] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """One more row; on the disk at the next ``flush``."""
        self._waiting.append(json.dumps(row))

    def flush(self) -> int:
        """Write and sync what waits; the file's size after."""
        with self.path.open("ab") as stream:
            if self._waiting:
                stream.write(("\n".join(self._waiting) + "\n").encode())
            self._waiting.clear()
            stream.flush()
            os.fsync(stream.fileno())
            return stream.tell()

    def read(self, size: int) -> list[dict[str, Any]]:
        """The rows of the first ``size`` bytes; what stands after them is cut off.

        Raises:
            StoreError: the file is shorter.
        """
        data = self.path.read_bytes() if self.path.is_file() else b""
        if len(data) < size:
            raise StoreError("the history of a training is shorter than its checkpoint says", where=self.path)
        if len(data) > size:
            os.truncate(self.path, size)
        return [json.loads(line) for line in data[:size].splitlines()]


def write_checkpoint(
    where: Checkpoints, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], history: History
) -> Path:
    """Write a checkpoint and remove older ones; gives its folder.

    Raises:
        StoreError: no room; older checkpoints are kept.
    """
    final = where.folder / f"step-{step:08d}"
    building = where.folder / f"{UNFINISHED}{uuid.uuid4().hex}"
    try:
        building.mkdir(parents=True)
        size = history.flush()
        data = save({name: value.detach().to("cpu").contiguous() for name, value in tensors.items()})
        document = {
            **state,
            "format": FORMAT,
            "step": step,
            "history": size,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        for name, content in (("tensors.safetensors", data), ("state.json", json.dumps(document).encode())):
            with (building / name).open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        if final.exists():
            shutil.rmtree(final)
        building.rename(final)
    except OSError as error:
        raise StoreError(f"a checkpoint cannot be written: {error.strerror}", final, "free some space") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    for old in _folders(where.folder)[where.keep :]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _folders(folder: Path) -> list[Path]:
    """Checkpoints, the newest first."""
    return sorted((p for p in folder.glob("step-*") if p.is_dir()), reverse=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what a training that was killed while it wrote a checkpoint left half written (the size of a checkpoint).

    The folder belongs to one training, and one process of it writes: whoever calls this is that one, and at its start.
    """
    for left in folder.glob(f"{UNFINISHED}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def read_checkpoint(where: Checkpoints, history: History) -> Saved | None:
    """The newest checkpoint that is whole; None where there is none. Damaged ones are passed over."""
    for folder in _folders(where.folder):
        try:
            state = json.loads((folder / "state.json").read_text())
            data = (folder / "tensors.safetensors").read_bytes()
            if state["format"] != FORMAT or hashlib.sha256(data).hexdigest() != state["sha256"]:
                continue
            rows = history.read(int(state["history"]))
        except (OSError, ValueError, KeyError, StoreError):
            continue
        return Saved(int(state["step"]), load(data), state, rows)
    return None


def pack(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under a prefix, copied: what is saved must not share memory."""
    return {f"{prefix}.{name}": value.detach().clone() for name, value in tensors.items()}


def unpack(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors below a prefix, under their own names."""
    return {name.removeprefix(f"{prefix}."): v for name, v in tensors.items() if name.startswith(f"{prefix}.")}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of every parameter, ``<number>.<name>``; rates and other options are the recipe's."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{i}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for i, p in enumerate(parameters)
        for name, value in optimizer.state.get(p, {}).items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Set the state of every parameter, in the parameter's own memory layout: another would add in another order."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.state.clear()
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        p = parameters[int(number)]
        same = value.shape == p.shape and value.dim() > 0
        optimizer.state[p][name] = torch.empty_like(p, requires_grad=False).copy_(value) if same else value.clone()


def generators_state(cuda: bool = False) -> dict[str, Tensor]:
    """States of torch's, NumPy's and Python's global generators, and of all CUDA devices' where asked for."""
    numbers = random.getstate()
    # Steps of others may draw from the global generator, which has no newer interface.
    numpy_state: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    out = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([numbers[0], *numbers[1]], dtype=torch.int64),
        "python_gauss": torch.tensor([float("nan") if numbers[2] is None else numbers[2]], dtype=torch.float64),
        "numpy": torch.from_numpy(np.concatenate([numpy_state[1].astype(np.int64), numpy_state[2:4]]).astype(np.int64)),
        "numpy_gauss": torch.tensor([numpy_state[4]], dtype=torch.float64),
    }
    if cuda:
        out |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return out


def set_generators(state: Mapping[str, Tensor]) -> None:
    """Bring the global generators back to ``generators_state``; a CUDA device that is not here is left out."""
    torch.set_rng_state(state["torch"])
    numbers, gauss = state["python"].tolist(), float(state["python_gauss"])
    random.setstate((numbers[0], tuple(numbers[1:]), None if gauss != gauss else gauss))
    words = state["numpy"].numpy()
    place = (words[:-2].astype(np.uint32), int(words[-2]), int(words[-1]), float(state["numpy_gauss"]))
    np.random.set_state(("MT19937", *place))  # noqa: NPY002
    for name in state:
        if name.startswith("cuda") and int(name[4:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state[name], int(name[4:]))


@contextmanager
def stop_requests() -> Iterator[Callable[[], str | None]]:
    """Inside, SIGINT and SIGTERM are noted and not acted on: the function given tells which came, or None. A second
    one acts at once. Outside the main thread signals are left alone."""
    came: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def note(number: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came[0] if came else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

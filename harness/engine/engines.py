"""What executes the parts of a plan: trainings, item stages, heads. `inline` is this process; `ray` is in ``cluster/``.

An engine decides where and in which order things are computed, never what: keys do not know it, and scores are equal to
the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from harness.api.errors import ConfigError
from harness.api.events import Listener
from harness.engine.images import Reader
from harness.engine.inline import run_stage
from harness.engine.plan import ItemStage, Plan, RowPlan
from harness.engine.processes import Launcher
from harness.engine.suite import ENGINES, Execution
from harness.results.store import Store

if TYPE_CHECKING:
    from types import TracebackType


@dataclass(frozen=True)
class Computed:
    """What came of an item stage: images computed, and the digests of those set aside, with what happened."""

    images: int = 0
    aside: Mapping[bytes, str] = field(default_factory=dict)


class RemoteError(Exception):
    """An exception of a detector's code in another process: its type and words; ``trace`` is the traceback there."""

    def __init__(self, text: str, trace: str) -> None:
        super().__init__(text)
        self.trace = trace


class Engine(Protocol):
    """Executes parts of one plan. Entered before the first part and left after the last, whatever happens.

    Attributes:
        start_seconds: how long entering took.
    """

    start_seconds: float

    def __enter__(self) -> Engine:
        """Start what the engine needs."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it; what is stored stays."""

    def launcher(self) -> Launcher | None:
        """Who starts the processes of a training (None: as ``harness.engine.recipes`` does by itself)."""

    def items(self, stage: ItemStage, without: np.ndarray) -> Computed:
        """Compute what the store lacks of a stage, less the images ``without`` which it must do.

        Raises:
            DataError, StoreError: about the images or the disk.
            Exception: whatever a detector raises.
        """

    def heads(self, rows: Sequence[RowPlan]) -> Mapping[str, Exception]:
        """Make the heads of rows, or leave that to the one who asks for them; what went wrong, by row."""


class Inline(AbstractContextManager["Inline"]):
    """Everything in this process, one thing after another."""

    start_seconds = 0.0

    def __init__(self, plan: Plan, store: Store, reader: Reader, emit: Listener, workers: int) -> None:
        self.plan, self.store, self.reader, self.emit, self.workers = plan, store, reader, emit, workers

    def __exit__(self, *unused: object) -> None:
        """Nothing to stop."""

    def launcher(self) -> Launcher | None:
        """The recipe's own."""
        return None

    def items(self, stage: ItemStage, without: np.ndarray) -> Computed:
        """As :class:`Engine`; this process does every image that it survives, so there is nothing to be without."""
        settings = self.plan.settings
        return Computed(run_stage(
            stage, self.reader, self.store, device=settings.device, threads=settings.threads, workers=self.workers,
            emit=self.emit,
        ))  # fmt: skip

    def heads(self, rows: Sequence[RowPlan]) -> Mapping[str, Exception]:
        """Left to who asks for them."""
        return {}


def check_engine(name: str, address: str | None, device: str) -> None:
    """Refuse early what could not work.

    Raises:
        ConfigError: an unknown engine, an address without Ray, no Ray, or nothing listens at the address.
    """
    if name not in ENGINES:
        raise ConfigError(f"unknown engine {name!r}", fix=f"use {' or '.join(ENGINES)}")
    if name != "ray":
        if address is not None:
            raise ConfigError("--ray-address is of the engine ray", where="--ray-address", fix="add --engine ray")
        return
    from harness.engine.cluster.connect import check_address

    check_address(address)
    if device.startswith("cuda:"):
        what = f"under Ray a worker is given its GPU; {device} names one"
        raise ConfigError(what, "--device", "use --device cuda, and CUDA_VISIBLE_DEVICES to keep GPUs out")


def make_engine(
    name: str, plan: Plan, store: Store, reader: Reader, emit: Listener, execution: Execution, workers: int,
    address: str | None = None,
) -> Engine:  # fmt: skip
    """The engine of a name, for one plan; ``workers`` threads read images (in each worker process, under Ray)."""
    if name == "inline":
        return Inline(plan, store, reader, emit, workers)
    from harness.engine.cluster.engine import RayEngine

    return RayEngine(plan, store, reader, emit, execution, workers, address)

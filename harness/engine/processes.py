"""Starts the processes that train one recipe together: here, by the user's torchrun, or none but this one.

Every way calls ``Job.train`` in each process inside an initialised group of `torch.distributed`. Ray Train's way is in
`ray_training`.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from harness.api.errors import ConfigError
from harness.api.events import Listener, silent
from harness.api.training import Recipe
from harness.engine.exchange import Deserted, Exchange, ended_by
from harness.engine.training_job import Job

if TYPE_CHECKING:
    from harness.api.trainer import TrainResult

ENGINES = ("inline", "ray")
PATIENCE = timedelta(days=1)
"""How long a process waits for the others: they wait while the first one evaluates or writes, and a process that dies
breaks the connection at once."""
GRACE = 5.0
"""Seconds that the others have to end after a process has failed: their own words may say more."""
LOOK = 0.05
EXCHANGE = "processes"
"""Folder of a training for the exchange with its processes."""


class Launcher(Protocol):
    """Trains a job in as many processes as its recipe says; called once the store says that there is work to do."""

    def __call__(self, job: Job, emit: Listener) -> TrainResult:
        """What was trained; events are passed to ``emit`` in this process. SIGINT and SIGTERM end it with a checkpoint.

        Raises:
            HarnessError: as ``Job.train``, from whichever process failed first.
            Interrupted: asked to stop.
        """


def alone(job: Job, emit: Listener) -> TrainResult:
    """A launcher: this process and no other."""
    return job.train(job.work.device, emit)


def launcher_of(recipe: Recipe) -> Launcher:
    """The launcher of a recipe where nothing else is said: this process, or processes on this machine."""
    return alone if recipe.processes == 1 else local_processes


def chosen_launcher(recipe: Recipe, engine: str = "inline", address: str | None = None) -> Launcher:
    """The launcher that a user asked for.

    Raises:
        ConfigError: an unknown engine, or a torchrun that does not fit the recipe or the engine.
    """
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine {engine!r}", "--engine", f"use {' or '.join(ENGINES)}")
    if address is not None and engine != "ray":
        raise ConfigError("--ray-address is of the engine ray", "--ray-address", "add --engine ray")
    started = torchrun_size()
    if started is not None and engine != "inline":
        raise ConfigError(f"torchrun and --engine {engine} both start processes", fix="use one of them")
    if started is not None and started != recipe.processes:
        raise ConfigError(
            f"torchrun started {started} processes, the recipe has {recipe.processes}", f"recipe {recipe.recipe}",
            f"add --set processes={started}, or start {recipe.processes}",
        )  # fmt: skip
    if engine == "ray":
        from harness.engine.ray_training import RayProcesses

        return RayProcesses(address)
    return Torchrun() if started is not None and started > 1 else launcher_of(recipe)


# by torchrun ---------------------------------------------------------------------------------------------------------


def torchrun_size() -> int | None:
    """How many processes a torchrun started of which this is one; None where there was none."""
    if not all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return None
    return int(os.environ["WORLD_SIZE"])


class Torchrun:
    """A launcher: the processes are there, this is one of them. The first one alone asks the store and writes to it;
    it tells the others (``says``, ``hears``) whether there is work to do."""

    def __init__(self) -> None:
        self.rank = int(os.environ["RANK"])

    def _join(self, device: str) -> str:
        from torch import distributed

        own = _own_device(device, int(os.environ["LOCAL_RANK"]))
        if not distributed.is_initialized():
            distributed.init_process_group(_backend(own), init_method="env://", timeout=PATIENCE)
        return own

    def says(self, job: Job, work_to_do: bool) -> None:
        """The first process: whether the others are to train."""
        self._word(job, work_to_do)

    def hears(self, job: Job) -> bool:
        """Another process: whether to train.

        Raises:
            ConfigError: this process would make something else than the first one.
        """
        return self._word(job, None)

    def _word(self, job: Job, work_to_do: bool | None) -> bool:
        from harness.api.world import World

        self._join(job.work.device)
        with _connected():
            key, train = World.here().first([job.work.key, work_to_do])
        if key != job.work.key:
            raise ConfigError(
                "this process has another recipe, other code, images or threads than the first one",
                where=f"process {self.rank}, keys {job.work.key[:16]} and {key[:16]}",
                fix="give all the same files and --threads",
            )
        return bool(train)

    def waits(self) -> None:
        """Until the others are here: what was trained is in the store, and nobody leaves before."""
        from torch import distributed

        with _connected():
            distributed.barrier()
        distributed.destroy_process_group()

    def __call__(self, job: Job, emit: Listener) -> TrainResult:
        """Train with the others."""
        with _connected():
            return job.train(self._join(job.work.device), emit if self.rank == 0 else silent)


# on this machine -----------------------------------------------------------------------------------------------------


def local_processes(job: Job, emit: Listener) -> TrainResult:
    """A launcher: processes on this machine, over gloo, or nccl with a CUDA device each.

    Raises:
        ConfigError: fewer CUDA devices than processes.
    """
    from harness.api.checkpoint import stop_requests

    _check_devices(job)
    exchange = Exchange(job.checkpoints / EXCHANGE)
    exchange.clear()
    started: list[subprocess.Popen[bytes]] = []
    try:
        with stop_requests() as asked:
            started += [_start(rank, job, exchange) for rank in range(job.processes)]
            for process in started:
                _send(process, job)
            _watch(started, exchange, emit, asked)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
    exchange.pass_on(emit)
    return exchange.outcome(job.processes, {rank: ended_by(p.returncode) for rank, p in enumerate(started)})


def _watch(
    started: list[subprocess.Popen[bytes]], exchange: Exchange, emit: Listener, asked: Callable[[], str | None]
) -> None:
    """Until all have ended; ``GRACE`` seconds after one failed the rest is no longer waited for."""
    failed_at: float | None = None
    while any(process.poll() is None for process in started):
        exchange.pass_on(emit)
        why = asked()
        if why is not None:
            exchange.ask_to_stop(why)
        now = time.monotonic()
        if failed_at is None and any(process.poll() not in (None, 0) for process in started):
            failed_at = now
        if failed_at is not None and now - failed_at > GRACE:
            return
        time.sleep(LOOK)


BEGIN = (
    "import sys, json; sys.path[:] = json.loads(sys.stdin.buffer.readline());"
    "from harness.engine.processes import take_part; take_part()"
)


def _start(rank: int, job: Job, exchange: Exchange) -> subprocess.Popen[bytes]:
    """A process of its own session, so that Ctrl-C comes here alone and is passed on once."""
    place = {"rank": rank, "size": job.processes, "exchange": str(exchange.folder.resolve())}
    threads = str(job.threads_each)
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN, json.dumps(place)], stdin=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
    )  # fmt: skip


def _send(process: subprocess.Popen[bytes], job: Job) -> None:
    """The job. The pipe stays open: the process leaves when this one is gone."""
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(sys.path).encode() + b"\n" + pickle.dumps(job))
        process.stdin.flush()
    except BrokenPipeError:  # it has ended; its status says how
        return


def take_part() -> None:
    """What a process on this machine does: read the job, join the others, train, say how it ended."""
    place = json.loads(sys.argv[1])
    job: Job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    exchange, rank = Exchange(job.checkpoints / EXCHANGE), int(place["rank"])

    def joined() -> str:
        from torch import distributed

        own = _own_device(job.work.device, rank)
        meeting = f"file://{place['exchange']}/meeting"
        distributed.init_process_group(
            _backend(own), init_method=meeting, rank=rank, world_size=int(place["size"]), timeout=PATIENCE
        )
        return own

    error = taken_part(job, exchange, rank, joined)
    sys.stdout.flush()
    sys.stderr.flush()
    # not through the interpreter's end, which would wait for threads of a connection that is gone
    os._exit(0 if error is None else 130 if isinstance(error, KeyboardInterrupt) else 1)


def taken_part(job: Job, exchange: Exchange, rank: int, join: Callable[[], str]) -> BaseException | None:
    """Train in this process as one of several and leave word of it; the error it ended with.

    Args:
        join: joins the group, if that is not done yet, and gives this process's device.
    """
    error: BaseException | None = None
    try:
        with _connected():
            result = job.train(join(), exchange.tell if rank == 0 else silent, exchange.asked)
        if rank == 0:
            exchange.give(result)
    except BaseException as raised:
        error = raised
    exchange.ended(rank, error)
    return error


def _leave_with_parent() -> None:
    """End this process when the one that started it is gone, however that ended."""
    while sys.stdin.buffer.read(1 << 16):
        pass
    os._exit(1)


# what all ways share -------------------------------------------------------------------------------------------------


@contextmanager
def _connected() -> Iterator[None]:
    """Inside, an error of the connection is said to be one: another process has ended, and knows why."""
    from torch import distributed

    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        fix = "its own message says why; run the same command again: it goes on from the last checkpoint"
        raise Deserted("another process of this training has ended", fix=fix) from error


def _check_devices(job: Job) -> None:
    import torch

    kind, _, number = job.work.device.partition(":")
    if kind != "cuda":
        return
    if number or torch.cuda.device_count() < job.processes:
        there = f"device {job.work.device}" if number else f"{torch.cuda.device_count()} CUDA devices"
        what = f"{job.processes} processes need a CUDA device each; there is {there}"
        raise ConfigError(what, f"recipe {job.work.recipe.recipe}", "use fewer processes, or --device cpu")


def _own_device(device: str, local_rank: int) -> str:
    """This process's device: on CUDA the one of its number, which is made the current one."""
    if device.partition(":")[0] != "cuda":
        return device
    import torch

    own = f"cuda:{local_rank}"
    torch.cuda.set_device(own)
    return own


def _backend(device: str) -> str:
    return "nccl" if device.startswith("cuda") else "gloo"

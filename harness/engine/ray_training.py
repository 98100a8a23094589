"""Several processes through Ray Train: the same job in each, on one machine or many."""

from __future__ import annotations

import os
import pickle
import threading
from typing import TYPE_CHECKING, Any, cast

from harness.api.errors import ClusterError
from harness.api.events import Listener
from harness.engine.cluster.connect import check_address, connected
from harness.engine.cluster.nodes import Word, check_nodes, left_word, nodes_text, require_room, require_seen, worded
from harness.engine.exchange import Exchange
from harness.engine.processes import EXCHANGE, PATIENCE, taken_part
from harness.engine.training_job import Job, files_of

if TYPE_CHECKING:
    from harness.api.trainer import TrainResult

LOOK = 0.1
STARTS = 5
"""How often Ray Train waits for room for its workers, 60 seconds each time unless the user's
``RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S`` says otherwise; left alone it would do so for ever."""
SETTINGS = {
    # seconds between two looks of the controller at its workers: by Ray's 2 it hears so late that they are done or dead
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # a node's notice that it will go is of no use here, where the same command goes on from the last checkpoint
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Of Ray Train, unless the user's environment says otherwise."""
NO_PLACE = ("WorkerGroupStartupTimeoutError", "WorkerGroupStartupFailedError", "InsufficientClusterResourcesError")
"""What Ray Train calls it when its workers do not come up; the classes are its own affair, and so is their module."""


class RayProcesses:
    """A launcher: Ray Train's ``TorchTrainer`` starts a worker a process, with the CPUs of its threads, and on CUDA a
    device each. Every node must see the store, and the images at the same paths.

    Ray Train brings up the group of `torch.distributed` and takes all workers down when one is lost. Checkpoints,
    resuming and events are the trainer's, as in every other way, so that what is trained is the same to the bit.

    Args:
        address: of a running cluster; None: the one that this process is connected to, else a Ray of our own.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address

    def __call__(self, job: Job, emit: Listener) -> TrainResult:
        """Train; this process passes on events and signals.

        Raises:
            ConfigError: no Ray, no cluster at the address, or one whose nodes do not hold the recipe's processes.
            StoreError: a node does not see the store.
            ClusterError: a node lacks images or weights, or others use the cluster and no room comes free.
            Interrupted: asked to stop, at once where no process has started.
        """
        from harness.api.checkpoint import Interrupted, stop_requests

        check_address(self.address)
        exchange = Exchange(job.checkpoints / EXCHANGE)
        exchange.clear()
        needs = _needs(job)
        with (
            connected(self.address) as ray, left_word(job.store, files_of(job.work)) as word, stop_requests() as asked
        ):  # fmt: skip
            fix = "use fewer processes, or less --threads"
            require_room(ray, needs, job.processes, f"process of recipe {job.work.recipe.recipe}", fix)
            check_nodes(ray, word)
            ended = _Fit(job, exchange, needs, word)
            while not ended.wait(LOOK):
                exchange.pass_on(emit)
                why = asked()
                if why is not None:
                    exchange.ask_to_stop(why)
                    if exchange.silent:  # they wait for room, or are being started: there is nothing to wait for
                        raise Interrupted(f"{why}: stopped before the training's processes had started")
            if ended.never_began:
                what = f"{job.processes} processes of {worded(needs)} found no place: {ended.why}"
                raise ClusterError(what, where=nodes_text(ray), fix="wait until the cluster has room, then run again")
        exchange.pass_on(emit)
        lost = dict.fromkeys(range(job.processes), ended.why)
        return exchange.outcome(job.processes, lost)


class _Fit:
    """Ray Train's ``fit`` in a thread of its own: it waits, and in the main thread it would take SIGINT for itself."""

    def __init__(self, job: Job, exchange: Exchange, needs: dict[str, float], word: Word) -> None:
        self.error: BaseException | None = None
        self._trainer = _trainer(job, exchange, needs, word)
        self._thread = threading.Thread(target=self._run, name="ray train", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # the processes' own words say more, where they left any
            self.error = error

    def wait(self, seconds: float) -> bool:
        """Whether it is over within so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def never_began(self) -> bool:
        """Whether the workers were not started, or not all of them."""
        from ray.train import ControllerError

        if not isinstance(self.error, ControllerError):
            return False
        return type(self.error.controller_failure).__name__ in NO_PLACE

    @property
    def why(self) -> str:
        """What Ray says of the end, in one line."""
        lines = [line.strip() for line in str(self.error or "").splitlines() if line.strip()]
        return f"Ray says: {' '.join(lines)[:300]}" if lines else "Ray says nothing of it"


def _needs(job: Job) -> dict[str, float]:
    """Of one process, by Ray's names."""
    return {"CPU": float(job.threads_each)} | ({"GPU": 1.0} if job.work.device.startswith("cuda") else {})


def _trainer(job: Job, exchange: Exchange, needs: dict[str, float], word: Word) -> Any:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cuda = job.work.device.startswith("cuda")
    # a worker that fails would fail again: what can be mended by going on is left to the same command
    limits: dict[str, Any] = {"max_failures": 0, "max_preemption_failures": 0, "controller_failure_limit": STARTS - 1}
    return TorchTrainer(
        _worker,
        # as bytes: Ray Train's controller reads this too, and has no use for the modules of what is in it
        train_loop_config={"sent": pickle.dumps((job, word))},
        torch_config=TorchConfig(backend="nccl" if cuda else "gloo", timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(num_workers=job.processes, use_gpu=cuda, resources_per_worker=needs),
        run_config=RunConfig(name="ray", storage_path=str(exchange.folder), failure_config=FailureConfig(**limits)),
    )


def _worker(config: dict[str, Any]) -> None:
    """One of Ray Train's workers, inside the group."""
    import ray.train
    from ray.train.torch import get_device

    job, word = cast("tuple[Job, Word]", pickle.loads(config["sent"]))
    require_seen(word)
    device = str(get_device()) if job.work.device.startswith("cuda") else job.work.device
    error = taken_part(
        job, Exchange(job.checkpoints / EXCHANGE), ray.train.get_context().get_world_rank(), lambda: device
    )
    if error is not None and not isinstance(error, KeyboardInterrupt):
        raise error  # Ray takes the other workers down, which may be waiting for this one

"""Several processes through Ray Train: the same job in each, on one machine or many."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from harness.api.errors import ConfigError
from harness.api.events import Listener
from harness.engine.cluster.connect import check_address, check_nodes, connected
from harness.engine.exchange import Exchange
from harness.engine.processes import EXCHANGE, PATIENCE, taken_part
from harness.engine.training_job import Job

if TYPE_CHECKING:
    from harness.api.trainer import TrainResult

LOOK = 0.1


class RayProcesses:
    """A launcher: Ray Train's ``TorchTrainer`` starts a worker a process, with the CPUs of its threads, and on CUDA a
    device each. Every node must see the store, and the images at the same paths.

    Ray Train brings up the group of `torch.distributed` and takes all workers down when one is lost. Checkpoints,
    resuming and events are the trainer's, as in every other way, so that what is trained is the same to the bit.

    Args:
        address: of a running cluster; by default what Ray finds, or a Ray of its own on this machine.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address

    def __call__(self, job: Job, emit: Listener) -> TrainResult:
        """Train; this process passes on events and signals.

        Raises:
            ConfigError: no Ray, no cluster at the address, or one with fewer CPUs or devices than the recipe needs.
            StoreError: a node does not see the store.
        """
        from harness.api.checkpoint import stop_requests

        check_address(self.address)
        exchange = Exchange(job.checkpoints / EXCHANGE)
        exchange.clear()
        with connected(self.address) as ray, stop_requests() as asked:
            _check_resources(job)
            check_nodes(ray, job.store.resolve(), ())
            ended = _Fit(job, exchange)
            while not ended.wait(LOOK):
                exchange.pass_on(emit)
                why = asked()
                if why is not None:
                    exchange.ask_to_stop(why)
        exchange.pass_on(emit)
        lost = dict.fromkeys(range(job.processes), ended.why)
        return exchange.outcome(job.processes, lost)


class _Fit:
    """Ray Train's ``fit`` in a thread of its own: it waits, and in the main thread it would take SIGINT for itself."""

    def __init__(self, job: Job, exchange: Exchange) -> None:
        self.error: BaseException | None = None
        self._trainer = _trainer(job, exchange)
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
    def why(self) -> str:
        """What Ray says of the end, in one line."""
        lines = [line.strip() for line in str(self.error or "").splitlines() if line.strip()]
        return f"Ray says: {' '.join(lines)[:300]}" if lines else "Ray says nothing of it"


def _trainer(job: Job, exchange: Exchange) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cuda = job.work.device.startswith("cuda")
    resources = {"CPU": float(job.threads_each)} | ({"GPU": 1.0} if cuda else {})
    return TorchTrainer(
        _worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if cuda else "gloo", timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(num_workers=job.processes, use_gpu=cuda, resources_per_worker=resources),
        # a worker that fails would fail again: what can be mended by going on is left to the same command
        run_config=RunConfig(
            name="ray", storage_path=str(exchange.folder), failure_config=FailureConfig(max_failures=0)
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    """One of Ray Train's workers, inside the group."""
    import ray.train
    from ray.train.torch import get_device

    job: Job = config["job"]
    os.chdir(job.folder)
    device = str(get_device()) if job.work.device.startswith("cuda") else job.work.device
    error = taken_part(
        job, Exchange(job.checkpoints / EXCHANGE), ray.train.get_context().get_world_rank(), lambda: device
    )
    if error is not None and not isinstance(error, KeyboardInterrupt):
        raise error  # Ray takes the other workers down, which may be waiting for this one


def _check_resources(job: Job) -> None:
    """Ray would wait for ever for what is not there."""
    import ray

    there = ray.cluster_resources()
    needs = {"CPU": float(job.processes * job.threads_each)}
    if job.work.device.startswith("cuda"):
        needs["GPU"] = float(job.processes)
    for name, need in needs.items():
        if there.get(name, 0.0) < need:
            raise ConfigError(
                f"{job.processes} processes need {need:g} {name}s; the cluster has {there.get(name, 0.0):g}",
                where=f"recipe {job.work.recipe.recipe}", fix="use fewer processes, or less --threads",
            )  # fmt: skip

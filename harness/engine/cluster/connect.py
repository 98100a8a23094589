"""Reaching Ray, quietly."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.api.errors import ConfigError

OBJECT_STORE = 128 << 20
"""Bytes of shared memory for a Ray of our own: trainings and sweeps are handed over through it, nothing else."""
REACH_SECONDS = 5.0


def check_address(address: str | None) -> None:
    """Refuse an address that cannot be meant, or at which nothing listens.

    Raises:
        ConfigError: that, or Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("Ray is not installed", where="--engine ray", fix="pip install 'ray[tune,train]'")
    if address is None or address == "auto":
        return
    host, colon, port = address.rpartition(":")
    fix = "the address of the cluster's head, as `ray start --head` prints it: HOST:6379"
    if "://" in address:
        raise ConfigError("Ray's client protocol is not supported", where=f"--ray-address {address}", fix=fix)
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError("this is no address", where=f"--ray-address {address}", fix=fix)
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except OSError as error:
        said = error.strerror or str(error)
        raise ConfigError(f"no Ray cluster: {said}", where=f"--ray-address {address}", fix=fix) from error


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The module ``ray``, connected: to the cluster at an address, to the one this process is connected to, or to a Ray
    of our own with the CPUs that this process may use, which ends with this.

    Raises:
        ConfigError: there is no cluster at the address, or it runs another version.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a Ray of our own: as urgent as inline's process is
    # Ray prints errors of its nodes on standard output, whatever ``log_to_driver`` is; lost workers are said by us
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    import ray

    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init("local", num_cpus=len(os.sched_getaffinity(0)), object_store_memory=OBJECT_STORE, **quiet)
        else:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of a node that is too slow to start Ray raises no class of its own
        said = (str(error).strip().splitlines() or [""])[0]
        where = f"--ray-address {address}" if address else "--engine ray"
        raise ConfigError(f"cannot reach Ray: {said}", where=where, fix="check that the cluster runs") from error
    try:
        yield ray
    finally:
        ray.shutdown()

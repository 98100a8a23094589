"""Reaching Ray, quietly, and finding out whether its nodes see the store, the images and the weights."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.api.errors import ClusterError, ConfigError, StoreError

OBJECT_STORE = 128 << 20
"""Bytes of shared memory for a Ray of our own: results go through the store, pieces of work are a few kilobytes."""
REACH_SECONDS = 5.0
SEEN_SECONDS = 15.0
"""How long a file that a node wrote may take to be seen here (shared file systems cache)."""
LOOK_SECONDS = 120.0
"""How long a node may take to look at its files: it starts a process for that."""


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
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        said = (str(error).strip().splitlines() or [""])[0]
        where = f"--ray-address {address}" if address else "--engine ray"
        raise ConfigError(f"cannot reach Ray: {said}", where=where, fix="check that the cluster runs") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def alive_nodes(ray: Any) -> list[dict[str, Any]]:
    """What Ray says of each node that lives: ``NodeID``, ``NodeManagerHostname``, ``NodeManagerAddress``,
    ``Resources``."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_name(node: dict[str, Any]) -> str:
    """A node for people."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def look(root: str, name: str, word: str, files: Sequence[str]) -> dict[str, Any]:
    """On a node: leave a word in the store, and see what of it and of some files is there."""
    folder = Path(root)
    marker = folder / "format.json"
    if not marker.is_file():
        return {"marker": None}
    try:
        (folder / name).write_text(word)
    except OSError as error:
        return {"marker": marker.read_text(), "refused": error.strerror or str(error)}
    return {"marker": marker.read_text(), "absent": [f for f in files if not os.access(f, os.R_OK)]}


def check_nodes(ray: Any, root: Path, files: Sequence[Path]) -> None:
    """Have every node write into the store and look for some files, and read here what it wrote.

    Raises:
        StoreError: a node does not see the store, or sees another one.
        ClusterError: a node lacks a file, or does not answer.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(look)
    asked = []
    for node in alive_nodes(ray):
        name, word = f".tmp-seen-{uuid.uuid4().hex}", uuid.uuid4().hex
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ref = remote.options(num_cpus=0, max_retries=0, scheduling_strategy=here).remote(
            str(root), name, word, [str(f) for f in files]
        )
        asked.append((node_name(node), root / name, word, ref))
    try:
        for who, path, word, ref in asked:
            _check_answer(who, root, path, word, _answer(ray, who, ref))
    finally:
        for _, path, _, _ in asked:
            path.unlink(missing_ok=True)


def _answer(ray: Any, who: str, ref: Any) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = ray.get(ref, timeout=LOOK_SECONDS)
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        fix = "install the same packages on every node, or take it out of the cluster"
        raise ClusterError(f"a node cannot work: {lines[-1] if lines else error!r}", where=who, fix=fix) from error
    return answer


def _check_answer(who: str, root: Path, path: Path, word: str, answer: dict[str, Any]) -> None:
    where = f"node {who}, {root}"
    fix = "put the store on a path that all nodes share, and name it with --store"
    if answer["marker"] is None:
        raise StoreError("a node does not see the store", where=where, fix=fix)
    if "refused" in answer:
        raise StoreError(f"a node cannot write to the store: {answer['refused']}", where=where, fix=fix)
    deadline = time.monotonic() + SEEN_SECONDS
    while not (path.is_file() and path.read_text() == word):
        if time.monotonic() > deadline:
            what = "a node has a store of its own at this path: what it wrote is not seen here"
            raise StoreError(what, where=where, fix=fix)
        time.sleep(0.05)
    if answer["absent"]:
        what = f"a node lacks {len(answer['absent'])} files that it needs, {answer['absent'][0]} first"
        raise ClusterError(what, where=f"node {who}", fix="images and weights must lie at the same paths on all nodes")

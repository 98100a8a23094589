"""The nodes of a cluster: whether they see the store, the images and the weights, and what they have room for."""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.api.errors import ClusterError, ConfigError, HarnessError, StoreError
from harness.results.files import write_atomic
from harness.results.upkeep import WORDS

SEEN_SECONDS = 15.0
"""How long a file that one machine wrote may take to be seen on another (shared file systems cache)."""
LOOK_SECONDS = 120.0
"""How long a node may take to look at its files: it starts a process for that."""
SHARED = "put the store on a path that all nodes share, and name it with --store"


def alive_nodes(ray: Any) -> list[dict[str, Any]]:
    """What Ray says of each node that lives: ``NodeID``, ``NodeManagerHostname``, ``NodeManagerAddress``,
    ``Resources``."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_name(node: dict[str, Any]) -> str:
    """A node for people."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


# what they have room for ---------------------------------------------------------------------------------------------


def held(resources: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How many times a node with these resources holds some needs (by Ray's names: ``CPU``, ``GPU``)."""
    return math.floor(min(resources.get(name, 0.0) / need for name, need in needs.items() if need) + 1e-9)


def worded(needs: Mapping[str, float]) -> str:
    """Needs for people."""
    return " and ".join(f"{need:g} {name}s" for name, need in needs.items() if need)


def nodes_text(ray: Any) -> str:
    """What each node has, for people."""
    nodes = [f"{node_name(n)}: {n['Resources'].get('CPU', 0):g} CPUs, {n['Resources'].get('GPU', 0):g} GPUs"
             for n in alive_nodes(ray)]  # fmt: skip
    return "; ".join(nodes) or "no node lives"


def require_room(ray: Any, needs: Mapping[str, float], count: int, what: str, fix: str) -> None:
    """Refuse what no node, or not all nodes together, can hold: Ray would wait for it for ever.

    Args:
        needs: of one process, which lies on one node.
        count: processes that run at once.
        what: a process, for people.

    Raises:
        ConfigError: with what is asked for and what there is.
    """
    places = sum(held(node["Resources"], needs) for node in alive_nodes(ray))
    if places < count:
        asked = f"a {what} needs {worded(needs)} on one node"
        found = f"{count} run at once and there is room for {places}" if places else "no node has them"
        raise ConfigError(f"{asked}; {found}", where=nodes_text(ray), fix=fix)


# what they see -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Word:
    """What the driver leaves in the store, by which another machine knows that it sees this store and not one of its
    own.

    Attributes:
        root: of the store.
        name: of the file, which holds its name, under ``WORDS``.
        files: what a node needs besides the store, an example of the images and every weights file.
    """

    root: str
    name: str
    files: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.root) / WORDS / self.name


@contextmanager
def left_word(root: Path, files: Iterable[Path] = ()) -> Iterator[Word]:
    """Inside, a word lies in the store."""
    word = Word(str(root.resolve()), uuid.uuid4().hex, tuple(str(f.resolve()) for f in dict.fromkeys(files)))
    write_atomic(word.path, word.name.encode())
    try:
        yield word
    finally:
        word.path.unlink(missing_ok=True)


def require_seen(word: Word) -> None:
    """On a node, before it opens a store at that path (which would make one): whether it is the driver's, and whether
    the files are there.

    Raises:
        StoreError: no store, or another one. ClusterError: a file is not there.
    """
    where = f"node {os.uname().nodename}, {word.root}"
    if not (Path(word.root) / "format.json").is_file():
        raise StoreError("a node does not see the store", where=where, fix=SHARED)
    if not _comes(word.path, word.name):
        what = "a node has a store of its own at this path: what the driver wrote is not seen there"
        raise StoreError(what, where=where, fix=SHARED)
    absent = [f for f in word.files if not os.access(f, os.R_OK)]
    if absent:
        what = f"a node lacks {len(absent)} files that it needs, {absent[0]} first"
        fix = "images and weights must lie at the same paths on all nodes"
        raise ClusterError(what, where=f"node {os.uname().nodename}", fix=fix)


def _comes(path: Path, text: str) -> bool:
    """Whether a file with this text appears in time."""
    deadline = time.monotonic() + SEEN_SECONDS
    while not (path.is_file() and path.read_text() == text):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def look(word: Word, name: str) -> HarnessError | None:
    """On a node: see that it is the driver's store, and leave a word of its own there; what is wrong."""
    try:
        require_seen(word)
        (Path(word.root) / WORDS / name).write_text(name)
    except HarnessError as error:
        return error
    except OSError as error:
        where = f"node {os.uname().nodename}, {word.root}"
        return StoreError(f"a node cannot write to the store: {error.strerror or error}", where=where, fix=SHARED)
    return None


def check_nodes(ray: Any, word: Word) -> None:
    """Have every node read the driver's word and look for its files, and read here what it wrote. Nodes that join later
    are checked by each worker as it starts (:func:`require_seen`).

    Raises:
        StoreError: a node does not see the store, or sees another one.
        ClusterError: a node lacks a file, or does not answer.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(look)
    asked = []
    for node in alive_nodes(ray):
        name = uuid.uuid4().hex
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ref = remote.options(num_cpus=0, max_retries=0, scheduling_strategy=here).remote(word, name)
        asked.append((node_name(node), Path(word.root) / WORDS / name, ref))
    try:
        for who, path, ref in asked:
            check_answer(who, path, _answer(ray, who, ref))
    finally:
        for _, path, _ in asked:
            path.unlink(missing_ok=True)


def _answer(ray: Any, who: str, ref: Any) -> HarnessError | None:
    try:
        answer: HarnessError | None = ray.get(ref, timeout=LOOK_SECONDS)
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        fix = "install the same packages on every node, or take it out of the cluster"
        raise ClusterError(f"a node cannot work: {lines[-1] if lines else error!r}", where=who, fix=fix) from error
    return answer


def check_answer(who: str, path: Path, answer: HarnessError | None) -> None:
    """What the driver makes of a node's answer, and of the word that it should have left at ``path``.

    Raises:
        StoreError, ClusterError: as :func:`check_nodes`.
    """
    if answer is not None:
        raise type(answer)(answer.what, where=f"{who}: {answer.where}", fix=answer.fix)
    if not _comes(path, path.name):
        what = "a node has a store of its own at this path: what it wrote is not seen here"
        raise StoreError(what, where=f"{who}: {path.parent.parent}", fix=SHARED)

"""Parts of the engine `ray` that need no Ray: addresses, what nodes see, what is sent, sizes, words of the suite."""

from __future__ import annotations

import os
import pickle
import secrets
import socket
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_support import RAY
from plugin_support import Cli, write_suite

from detectors.blades.one_class import BladesOC
from harness.api.contract import Chain, Extractor
from harness.api.errors import ClusterError, ConfigError, DataError, StoreError
from harness.api.heads import IdentityHead
from harness.api.preprocess import TensorResize
from harness.api.weights import ResolvedWeights
from harness.data.edits import InputEdits
from harness.engine.cluster import nodes
from harness.engine.cluster.connect import check_address
from harness.engine.cluster.engine import PIECE_IMAGES, size_of
from harness.engine.cluster.nodes import Word, check_answer, left_word, look
from harness.engine.cluster.pool import Size
from harness.engine.cluster.worker import Failure, Images, Stage, Surroundings, Worker, parts_of
from harness.engine.fitting import FitWork
from harness.engine.plan import ItemStage, Settings
from harness.engine.suite import Execution, load_suite
from harness.results.digests import digests_array
from harness.results.store import Store
from harness.results.upkeep import WORDS, collect

INLINED = 100 * 1024
"""Bytes up to which Ray sends arguments with the call, past its object store (``max_direct_call_object_size``)."""


# addresses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://head:10001", "client protocol is not supported"), ("head", "this is no address"),
        ("head:", "this is no address"), (":6379", "this is no address"), ("head:99999", "this is no address"),
        ("head:port", "this is no address"),
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_meant_is_refused(address: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_address(address)


def test_an_address_at_which_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match=r"no Ray cluster: Connection refused[\s\S]*HOST:6379"):
        check_address(f"127.0.0.1:{port}")


def test_an_address_without_ray_and_an_unknown_engine_are_refused(data: Path, cli: Cli, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, ("calibrated",))
    for words, said in (
        (("--ray-address", "127.0.0.1:6379"), "add --engine ray"),
        (("--engine", "spark"), "use inline or ray"),
        ((*RAY, "--device", "cuda:1"), "use --device cuda"),
        (("--set", "execution.engine=spark"), "execution.engine"),
    ):
        done = cli.run(suite, data, *words)
        assert done.code == 2, done.text
        assert said in done.err
        assert "Traceback" not in done.text


def surroundings(root: Path) -> Surroundings:
    """Of a worker that is told of a store."""
    torch = ".".join(version("torch").split(".")[:2])
    return Surroundings(Word(str(root), "0" * 32), str(root), InputEdits(), "cpu", 1, 0, (), torch)


# what nodes see ------------------------------------------------------------------------------------------------------


def checked(here: Path, there: Path, files: tuple[Path, ...] = ()) -> None:
    """What the driver with one store makes of the answer of a node with another at the same path."""
    with left_word(here, files) as word:
        answer = look(replace(word, root=str(there)), "7" * 32)
        check_answer("node-7 (10.0.0.7)", here / WORDS / ("7" * 32), answer)


def test_a_store_that_both_see_is_accepted_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    Store(tmp_path)
    checked(tmp_path, tmp_path, (tmp_path / "format.json",))
    assert [path.name for path in (tmp_path / WORDS).iterdir()] == ["7" * 32]  # which the driver removes


def test_a_node_without_the_store_is_named(tmp_path: Path) -> None:
    Store(tmp_path / "here")
    with pytest.raises(StoreError, match=r"does not see the store[\s\S]*node-7[\s\S]*all nodes share"):
        checked(tmp_path / "here", tmp_path / "nothing")


def test_a_node_with_a_store_of_its_own_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "SEEN_SECONDS", 0.2)
    Store(tmp_path / "here")
    Store(tmp_path / "there")
    with pytest.raises(StoreError, match=r"a store of its own.*what the driver wrote[\s\S]*node-7"):
        checked(tmp_path / "here", tmp_path / "there")


def test_a_node_that_reads_the_drivers_store_and_writes_elsewhere_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "SEEN_SECONDS", 0.2)
    Store(tmp_path)
    with pytest.raises(StoreError, match=r"a store of its own.*what it wrote is not seen here[\s\S]*node-7"):
        check_answer("node-7 (10.0.0.7)", tmp_path / WORDS / ("7" * 32), None)


def test_a_worker_makes_no_store_of_its_own(tmp_path: Path) -> None:
    worker = Worker(surroundings(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(StoreError, match="does not see the store"):
        worker._begin()
    assert not (tmp_path / "nothing").exists()


def test_words_of_killed_runs_are_collected_after_a_month(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with left_word(tmp_path) as word, left_word(tmp_path) as old:
        os.utime(old.path, (time.time() - 31 * 86400,) * 2)
        assert collect(store)[0] == 1
        assert word.path.exists()
        assert not old.path.exists()


def test_a_node_that_lacks_images_or_weights_is_named(tmp_path: Path) -> None:
    Store(tmp_path)
    with pytest.raises(ClusterError, match=r"lacks 1 files[\s\S]*OC\.pth[\s\S]*node-7"):
        checked(tmp_path, tmp_path, (tmp_path / "OC.pth", tmp_path / "format.json"))


# what is sent --------------------------------------------------------------------------------------------------------


def a_piece(count: int, sidecars: bool = False) -> tuple[np.ndarray, np.ndarray, list[str]]:
    items = np.array([secrets.token_bytes(31) + b"x" for _ in range(count)], "S32")
    shas = items if not sidecars else np.array([secrets.token_bytes(31) + b"y" for _ in range(count)], "S32")
    return items, shas, [f"stylegan2/{i // 1000:03d}/image-{secrets.token_hex(4)}-{i:06d}.png" for i in range(count)]


@pytest.mark.parametrize("sidecars", [False, True])
def test_the_largest_piece_goes_past_rays_object_store(sidecars: bool) -> None:
    sent = Images.of(*a_piece(PIECE_IMAGES, sidecars), careful=False)
    assert len(pickle.dumps(sent)) < INLINED


@pytest.mark.parametrize("sidecars", [False, True])
def test_a_piece_arrives_as_it_was_sent(tmp_path: Path, sidecars: bool) -> None:
    items, shas, paths = a_piece(70, sidecars)
    paths[3] = "with\udcff odd bytes é.png"
    arrived = pickle.loads(pickle.dumps(Images.of(items, shas, paths, careful=True)))
    reader = arrived.reader(tmp_path, InputEdits())
    assert np.array_equal(arrived.digests(), items)
    assert list(reader.paths) == paths
    assert np.array_equal(digests_array(list(reader.digests)), shas)
    assert arrived.careful


def test_the_work_of_a_head_goes_past_rays_object_store_in_parts() -> None:
    items, _, _ = a_piece(25_000)
    labels, names = np.zeros(25_000, np.int8), tuple(f"generator {i % 3}" for i in range(25_000))
    work = FitWork("key", "row", IdentityHead(), {}, None, "extractor", 1, items, labels, names, 1)
    parts = parts_of(work)
    assert len(parts) > 5
    assert all(len(pickle.dumps(part)) < INLINED for part in parts)
    arrived = pickle.loads(b"".join(parts))
    assert np.array_equal(arrived.items, items)
    assert arrived.generators == names


def test_errors_of_ours_come_back_as_themselves_and_others_as_what_they_said() -> None:
    ours = Failure.of(DataError("cannot be decoded", where="a.png", fix="replace it"))
    back = pickle.loads(pickle.dumps(ours)).raised()
    assert isinstance(back, DataError)
    assert (back.what, back.where, back.fix) == ("cannot be decoded", "a.png", "replace it")

    class Odd(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"{a} and {b}")

    try:
        raise Odd(1, 2)
    except Odd as error:
        theirs = pickle.loads(pickle.dumps(Failure.of(error))).raised()
    assert str(theirs) == "Odd: 1 and 2"
    assert "test_parts.py" in theirs.trace


def test_a_worker_with_other_code_of_a_stage_refuses_it(tmp_path: Path) -> None:
    Store(tmp_path)
    chain = Chain.of(BladesOC())
    weights = {"weights": ResolvedWeights("random", "random:0")}
    stage = Stage.of(ItemStage("key", "features", chain.extractor, {}, chain.preprocess, weights, None, 32))
    assert [name for name, _ in stage.sources] == [
        f"{type(part).__module__}.{type(part).__qualname__}" for part in (chain.extractor, chain.preprocess)
    ]
    worker = Worker(surroundings(tmp_path))
    for place in range(2):
        sources = list(stage.sources)
        sources[place] = (sources[place][0], "0" * 64)
        with pytest.raises(ClusterError, match=f"other code of {sources[place][0]}"):
            worker._load(replace(stage, sources=tuple(sources)))
        assert worker.loaded is None


# sizes and the suite -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpus", "gpus", "there", "held"),
    [
        (2, 0, {"CPU": 7}, 3), (0.5, 0, {"CPU": 2}, 4), (1, 0.25, {"CPU": 16, "GPU": 2}, 8), (4, 1, {"CPU": 8}, 0),
        (4, 1, {"CPU": 8, "GPU": 8}, 2), (0.1, 0, {"CPU": 1}, 10),
    ],
)  # fmt: skip
def test_a_node_holds_as_many_workers_as_its_scarcest_part_allows(
    cpus: float, gpus: float, there: dict[str, float], held: int
) -> None:
    assert Size(cpus, gpus).on(there) == held


@dataclass(frozen=True)
class Plain(Extractor):
    """Says nothing of what it needs."""

    @property
    def dim(self) -> int:
        return 1

    def load(self, weights: Any, device: str) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Thrifty(Plain):
    """States what it needs."""

    cpus = 0.5
    gpus = 0.25


@pytest.mark.parametrize(
    ("stage", "device", "said", "size"),
    [
        (Plain(), "cpu", {}, Size(3, 0)),  # a CPU a thread
        (Plain(), "cuda", {}, Size(1, 1)), (Thrifty(), "cpu", {}, Size(0.5, 0)),
        (Thrifty(), "cuda", {}, Size(0.5, 0.25)), (Thrifty(), "cuda", {"cpus": 2, "gpus": 0.5}, Size(2, 0.5)),
        (Thrifty(), "cuda", {"cpus": 2, "actors": {"row": {"gpus": 0.125}, "other": {"cpus": 9}}}, Size(2, 0.125)),
    ],
)  # fmt: skip
def test_a_worker_reserves_what_the_row_the_suite_or_else_the_extractor_says(
    stage: Plain, device: str, said: dict[str, Any], size: Size
) -> None:
    item = ItemStage("key", "features", stage, {}, TensorResize(8, False), {}, None, 8, rows=["row"])
    assert size_of(item, Settings(device, 3), Execution.model_validate(said)) == size


def test_the_suite_says_what_a_rows_workers_reserve(tmp_path: Path) -> None:
    execution = {"engine": "ray", "cpus": 1.5, "actors": {"calibrated": {"gpus": 0.25}}, "timeout_seconds": 5}
    path = write_suite(tmp_path, ("calibrated", "native-size"), execution=execution)
    suite = load_suite(path)
    assert suite.execution.actors["calibrated"].gpus == 0.25
    assert load_suite(path, detectors=["native-size"]).execution.actors == {}


@pytest.mark.parametrize(
    ("execution", "said"),
    [
        ({"actors": {"nobody": {"cpus": 1}}}, "'nobody' is no row"), ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"retries": -1}, "retries"), ({"cpus": 0}, "cpus"), ({"max_actors": 0}, "max_actors"),
        ({"gpu": 1}, "unknown key"), ({"actors": {"calibrated": {"cpu": 1}}}, "unknown key"),
    ],
)  # fmt: skip
def test_words_of_the_suite_that_cannot_be_meant_are_refused(
    tmp_path: Path, execution: dict[str, Any], said: str
) -> None:
    path = write_suite(tmp_path, ("calibrated",), execution=execution)
    with pytest.raises(ConfigError, match=said):
        load_suite(path)

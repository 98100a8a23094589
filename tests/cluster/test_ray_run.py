"""``run --engine ray`` undisturbed: the same bits as inline, one store for both, clear refusals."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from cluster_support import (
    EXECUTION,
    RAY,
    ROWS,
    Base,
    command,
    descendants,
    ended,
    same_results,
    start,
    wait_until,
    workers,
)
from plugin_support import Cli, scores_file, write_package, write_suite

pytestmark = pytest.mark.slow
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")

THRIFTY = """
from dataclasses import dataclass
from bench_plugins.slow import SlowNative, SlowSpectrum
from harness.api.contract import Facts

@dataclass(frozen=True)
class ThriftySpectrum(SlowSpectrum):
    cpus = 0.25

class Thrifty(SlowNative):
    name = "thrifty"
    facts = Facts("Residual spectrum on a quarter of a CPU", "nobody", "this file", "Apache-2.0")
    def extractor(self):
        return ThriftySpectrum()
"""


@pytest.fixture(scope="module")
def under_ray(base: Base, data: Path, installed: Path, tmp_path_factory: pytest.TempPathFactory):
    """The suite of ``base`` under Ray, on an empty store."""
    cli = Cli(tmp_path_factory.mktemp("ray") / "work", (installed,))
    return cli, cli.run(base.suite, data, *RAY)


def test_scores_are_inlines_to_the_bit(base: Base, under_ray) -> None:
    cli, done = under_ray
    assert done.code == 0, done.text
    same_results(scores_file(done, cli).parent, base.run)
    for row in ROWS:
        here = scores_file(done, cli).parent / "fitted" / row
        there = base.scores.parent / "fitted" / row
        for name in ("fitted.json", "head/head.json", "head/head.safetensors"):
            assert (here / name).read_bytes() == (there / name).read_bytes(), (row, name)


def test_either_engine_uses_what_the_other_stored(base: Base, under_ray, data: Path, tmp_path: Path) -> None:
    cli, _ = under_ray
    again = cli.run(base.suite, data)
    assert again.document["computed_images"] == 0
    assert scores_file(again, cli).read_bytes() == base.scores.read_bytes()
    other = Cli(tmp_path / "work", cli.packages)
    other.folder.mkdir()
    shutil.copytree(base.store, other.folder / ".blades-store")
    ray = other.run(base.suite, data, *RAY)
    assert ray.document["computed_images"] == 0
    assert scores_file(ray, other).read_bytes() == base.scores.read_bytes()


def test_it_says_little_and_leaves_nothing_behind(under_ray) -> None:
    cli, done = under_ray
    assert f"Ray: 1 nodes, {len(os.sched_getaffinity(0))} CPUs, 0 GPUs" in done.err
    for noise in ("dashboard", "usage stats", "(raylet", "(Worker pid", "Traceback", "WARNING", "logging.cc"):
        assert noise not in done.err, done.err
    store = cli.folder / ".blades-store"
    assert not list(store.glob(".tmp-*"))
    assert not list(store.glob("words/*"))
    assert cli("store", "verify").out.strip() == "sound"


def test_the_suite_can_ask_for_ray_and_fractions_of_cpus(base: Base, data: Path, cli: Cli, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, ROWS, execution={**EXECUTION, "engine": "ray", "cpus": 1 / 3, "max_actors": 3})
    loads = tmp_path / "loads"
    process = cli.with_(BENCH_PLUGINS_PAUSE="0.4", BENCH_PLUGINS_LOADS=str(loads)).start(
        "run", suite, "--data-root", data, "--device", "cpu", "--tracking-uri", "off", "--json",
        "--detectors", "slow-native",
    )  # fmt: skip
    at_work = set(wait_until(lambda: found if len(found := workers(process.pid)) == 3 else None))
    base.same(ended(process), cli, "slow-native")
    # more than sixty images in pieces of ten at most: a worker has several of them, and loads once
    assert sorted(map(int, loads.read_text().split())) == sorted(at_work)


def test_workers_are_as_many_as_the_extractor_that_states_its_cpus_leaves_room_for(
    base: Base, data: Path, cli: Cli, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_PLUGINS_PAUSE", "0.5")  # of the cluster's processes, which are this one's
    package = write_package(tmp_path / "thrifty", "thrifty", {"thrifty": "d_thrifty:Thrifty"}, {"d_thrifty": THRIFTY})
    cluster.add_node(num_cpus=1, include_dashboard=False)
    suite, both = write_suite(tmp_path, ("thrifty",)), cli.with_(packages=(*cli.packages, package))
    process = start(both, suite, data, "--ray-address", cluster.address)

    def four() -> bool:
        assert process.poll() is None, ended(process).text
        return len(workers(os.getpid())) == 4

    wait_until(four)
    done = ended(process)
    assert done.code == 0, done.text
    scores = pd.read_parquet(scores_file(done, cli))["score"]
    pd.testing.assert_series_equal(scores, base.table("slow-native")["score"], check_exact=True)


def test_a_recipe_is_trained_through_ray_train_to_the_same_bits(data: Path, cli: Cli, tmp_path: Path) -> None:
    recipe = {
        "recipe": "tiny", "detector": "trained-cnn", "step": "supervised", "generators": ["ldm"], "epochs": 2,
        "batch_size": 8, "lr": 0.01, "seed": 1,
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    suite = write_suite(tmp_path, {"trained-cnn": {"weights": f"recipe:{path}"}, "calibrated": {}})
    other = Cli(tmp_path / "other", cli.packages)
    inline, process = other.run(suite, data), start(cli, suite, data)

    def training() -> bool:
        """Whether a process of Ray Train's is there."""
        assert process.poll() is None, ended(process).text
        return any("RayTrainWorker" in command(pid) for pid in descendants(process.pid))

    wait_until(training)
    same_results(scores_file(ended(process), cli).parent, scores_file(inline, other).parent)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "execution.cpus=4000"), "no node has room for a worker, which takes 4000 CPUs"),
        pytest.param(("--device", "cuda"), "which takes 1 CPUs and 1 GPUs", marks=NO_GPU),
        pytest.param(("--device", "cuda", "--batch-size", "auto"), "measures on a GPU of this machine", marks=NO_GPU),
    ],
)
def test_what_no_cluster_can_give_is_refused(
    base: Base, data: Path, cli: Cli, words: tuple[str, ...], said: str
) -> None:
    done = cli.run(base.suite, data, *RAY, "--detectors", "calibrated", *words)
    assert done.code == 2, done.text
    assert said in done.err
    assert "Traceback" not in done.text


def test_a_ray_that_does_not_start_is_said_and_leaves_no_run_folder(
    base: Base, data: Path, cli: Cli, tmp_path: Path
) -> None:
    broken = cli.with_(RAY_TMPDIR=str(tmp_path / ("x" * 120)))  # no socket has so long a name
    done = broken.run(base.suite, data, *RAY, "--detectors", "calibrated")
    assert done.code == 2, done.text
    assert "cannot reach Ray" in done.err
    assert "Traceback" not in done.text
    assert not list(cli.folder.glob("runs/*/*"))

"""Trainings and sweeps on a cluster: room on single nodes, other folders, nodes that lack what is needed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from cluster_support import RAY, command, descendants, ended, wait_until
from plugin_support import Cli

from harness.api.errors import HarnessError
from harness.engine import tuning
from harness.engine.cluster.nodes import Word
from harness.engine.trials import Entrant, Plan, Trial
from harness.results.store import Store

pytestmark = pytest.mark.slow

TINY = {
    "recipe": "tiny", "detector": "trained-cnn", "step": "supervised", "generators": ["ldm"], "epochs": 2,
    "batch_size": 8, "lr": 0.01, "seed": 1,
}  # fmt: skip
FIXED = ("--device", "cpu", "--tracking-uri", "off", "--json")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe that takes moments."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def test_a_training_that_fits_all_nodes_together_and_no_single_one_is_refused(
    cluster: Any, cli: Cli, data: Path, recipe: Path
) -> None:
    cluster.add_node(num_cpus=1, include_dashboard=False)
    cluster.add_node(num_cpus=1)
    words = ("train", recipe, "--data-root", data, *FIXED, *RAY, "--ray-address", cluster.address)
    done = cli(*words, "--threads", "2")
    assert done.code == 2, done.text
    assert "a process of recipe tiny needs 2 CPUs on one node; no node has them" in done.err
    assert done.err.count("1 CPUs, 0 GPUs") == 2
    more = cli(*words, "--threads", "4", "--set", "processes=4")
    assert more.code == 2, more.text
    assert "needs 1 CPUs on one node; 4 run at once and there is room for 2" in more.err
    assert "Traceback" not in done.text + more.text


def controllers() -> set[int]:
    """Processes in which Ray Train waits for room."""
    return {pid for pid in descendants(os.getpid()) if "TrainController" in command(pid)}


def test_a_training_for_which_no_room_comes_free_ends_after_a_while_or_when_it_is_interrupted(
    cluster: Any, cli: Cli, data: Path, recipe: Path
) -> None:
    from harness.engine.cluster.connect import connected

    class Other:  # here, so that it is sent: a worker cannot import this module
        def here(self) -> bool:
            return True

    cluster.add_node(num_cpus=1, include_dashboard=False)
    with connected(cluster.address) as ray:
        other = ray.remote(Other).options(num_cpus=1).remote()
        assert ray.get(other.here.remote())
        words = ("train", recipe, "--data-root", data, *FIXED, *RAY, "--ray-address", cluster.address, "--threads", "1")
        done = cli.with_(RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="1")(*words)
        before = controllers()
        waiting = cli.start(*words)
        wait_until(lambda: controllers() - before)
        waiting.send_signal(signal.SIGINT)
        interrupted = ended(waiting)
    assert done.code == 2, done.text
    assert "1 processes of 1 CPUs found no place" in done.err
    assert "wait until the cluster has room" in done.err
    assert interrupted.code == 130, interrupted.text
    assert "interrupted: what was computed is kept" in interrupted.err
    assert "Traceback" not in done.text + interrupted.text


def test_relative_paths_are_the_drivers_on_every_node(
    cluster: Any, cli: Cli, data: Path, recipe: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, cli.folder / "faces")
    cluster.add_node(num_cpus=1, include_dashboard=False)  # whose processes have another folder
    words = ("train", recipe, *FIXED, "--threads", "1")
    far = cli(*words, "--data-root", "faces", *RAY, "--ray-address", cluster.address)
    assert far.code == 0, far.text
    here = Cli(tmp_path / "other", cli.packages)(*words, "--data-root", data)
    assert far.document["sha256"] == here.document["sha256"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_sweep_on_gpus_asks_the_cluster_for_them_and_not_this_machine(
    cli: Cli, data: Path, recipe: Path, tmp_path: Path
) -> None:
    sweep = {
        "sweep": "rates", "version": 1, "title": "Rates", "recipe": str(recipe), "samples": 2, "seed": 1,
        "space": {"lr": {"loguniform": [1e-4, 0.1]}}, "objective": {"metric": "accuracy"},
    }  # fmt: skip
    path = tmp_path / "rates.yaml"
    path.write_text(yaml.safe_dump(sweep))
    words = ("sweep", path, "--data-root", data, "--tracking-uri", "off", "--json")
    done = cli(*words, "--device", "cuda")
    assert done.code == 2, done.text
    assert "a trial needs 1 CPUs and 1 GPUs on one node; no node has them" in done.err
    named = cli(*words, "--device", "cuda:1")
    assert named.code == 2, named.text
    assert "use --device cuda" in named.err
    assert "Traceback" not in done.text + named.text


def test_a_trial_on_a_node_that_joins_without_the_store_ends_the_sweep_and_makes_no_store(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.add_node(num_cpus=1, include_dashboard=False)
    store, unmounted = Store(tmp_path / "store").root, tmp_path / "unmounted"

    @contextmanager
    def unseen(root: Path, files: Any) -> Iterator[Word]:
        yield Word(str(unmounted), "0" * 32)

    monkeypatch.setattr(tuning, "left_word", unseen)
    monkeypatch.setattr(tuning, "check_nodes", lambda ray, word: None)  # those that were there at the start are sound
    work: Any = SimpleNamespace(source=SimpleNamespace(example=lambda: tmp_path), start={})
    trial = Trial(Entrant(0, "key", 1), {}, work, lambda row: None)
    plan = Plan((trial.entrant,), "accuracy", None, store, 1, 1, tmp_path / "scratch/trials")
    with pytest.raises(HarnessError, match=r"a node does not see the store[\s\S]*unmounted"):
        tuning.run_trials(
            plan, [trial], lambda event: None, concurrent=1, gpus=0.0, address=cluster.address,
            scratch=tmp_path / "scratch/state",
        )  # fmt: skip
    assert not unmounted.exists()

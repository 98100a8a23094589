"""``run --engine ray`` undisturbed: the same bits as inline, one store for both, clear refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from cluster_support import RAY, ROWS, Base, wait_until, workers
from plugin_support import Cli, Done, scores_file, write_suite

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def under_ray(base: Base, data: Path, installed: Path, tmp_path_factory: pytest.TempPathFactory):
    """The suite of ``base`` under Ray, on an empty store."""
    cli = Cli(tmp_path_factory.mktemp("ray") / "work", (installed,))
    return cli, cli.run(base.suite, data, *RAY)


def test_scores_are_inlines_to_the_bit(base: Base, under_ray) -> None:
    cli, done = under_ray
    assert done.code == 0, done.text
    assert scores_file(done, cli).read_bytes() == base.scores.read_bytes()
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
    assert "Ray: 1 nodes, 2 CPUs" in done.err or "Ray: 1 nodes" in done.err
    for noise in ("dashboard", "usage stats", "(raylet", "(Worker pid", "Traceback", "WARNING", "logging.cc"):
        assert noise not in done.err, done.err
    store = cli.folder / ".blades-store"
    assert not list(store.glob(".tmp-*"))
    assert cli("store", "verify").out.strip() == "sound"


def test_the_suite_can_ask_for_ray_and_fractions_of_cpus(base: Base, data: Path, cli: Cli) -> None:
    words = ("--detectors", "slow-native", "--set", "execution.engine=ray", "--set", "execution.cpus=0.5",
             "--set", "execution.max_actors=3")  # fmt: skip
    process = cli.with_(BENCH_PLUGINS_PAUSE="0.4").start(
        "run", base.suite, "--data-root", data, "--device", "cpu", "--tracking-uri", "off", "--json", *words
    )
    assert len(wait_until(lambda: found if len(found := workers(process.pid)) == 3 else None)) == 3
    out, err = process.communicate(timeout=120)
    base.same(Done(process.returncode, out, err), cli, "slow-native")


def test_a_recipe_is_trained_through_ray_train_to_the_same_bits(data: Path, cli: Cli, tmp_path: Path) -> None:
    recipe = {
        "recipe": "tiny", "detector": "trained-cnn", "step": "supervised", "generators": ["ldm"], "epochs": 2,
        "batch_size": 8, "lr": 0.01, "seed": 1,
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    suite = write_suite(tmp_path, {"trained-cnn": {"weights": f"recipe:{path}"}, "calibrated": {}})
    other = Cli(tmp_path / "other", cli.packages)
    inline, ray = other.run(suite, data), cli.run(suite, data, *RAY)
    assert scores_file(ray, cli).read_bytes() == scores_file(inline, other).read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "execution.cpus=4000"), "no node has room for a worker, which takes 4000 CPUs"),
        (("--ray-address", "auto"), "cannot reach Ray"),
    ],
)
def test_what_no_cluster_can_give_is_refused(
    base: Base, data: Path, cli: Cli, words: tuple[str, ...], said: str
) -> None:
    done = cli.run(base.suite, data, *RAY, "--detectors", "calibrated", *words)
    assert done.code == 2, done.text
    assert said in done.err
    assert "Traceback" not in done.text

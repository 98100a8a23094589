"""An extractor trained by a recipe: trained once, found again by its key, trained again when what it made is gone."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from plugin_support import Ran, engine_run, keys_of, write_suite

from harness.api.errors import ConfigError
from harness.engine.rows import load_recipe

pytestmark = pytest.mark.usefixtures("plugins")
RECIPE: dict[str, Any] = {
    "recipe": "tiny", "detector": "trained-cnn", "step": "supervised", "generators": ["ldm"], "epochs": 3,
    "batch_size": 8, "lr": 0.01, "seed": 1,
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, data: Path):
    """Runs trained-cnn with a recipe in a folder of the test's own."""

    def ran(root: Path = data, folder: Path = tmp_path, **how: Any) -> Ran:
        plan_only = how.pop("plan_only", False)
        folder.mkdir(exist_ok=True)
        path = folder / "tiny.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, **how}))
        suite = write_suite(folder, {"trained-cnn": {"weights": f"recipe:{path}"}})
        return engine_run(suite, root, folder, plan_only=plan_only)

    return ran


def trained(ran: Ran) -> dict[str, Any]:
    assert ran.failures == {}
    (recipe,) = ran.outcome.recipes.values()
    return dict(recipe)


def test_a_recipe_is_trained_once_and_what_it_made_is_found_again(run, tmp_path: Path) -> None:
    first = run()
    assert len(first.of("trained-cnn")) > 10
    blob = tmp_path / "store/blobs" / f"{trained(first)['sha256']}.safetensors"
    stamp = blob.stat().st_mtime_ns
    again = run()
    assert again.computed == {}
    assert again.scores.equals(first.scores)
    assert trained(again) == trained(first)
    assert blob.stat().st_mtime_ns == stamp


def test_training_again_elsewhere_gives_the_same_bits(run, data: Path, tmp_path: Path) -> None:
    first = run()
    moved = run(root=Path(shutil.copytree(data, tmp_path / "moved")), folder=tmp_path / "other")
    assert trained(moved) == trained(first)
    assert moved.scores.equals(first.scores)


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_weights_that_are_damaged_or_gone_are_trained_again(run, tmp_path: Path, how: str) -> None:
    first = run()
    blob = tmp_path / "store/blobs" / f"{trained(first)['sha256']}.safetensors"
    if how == "gone":
        blob.unlink()
    else:
        content = bytearray(blob.read_bytes())
        content[-1] ^= 1
        blob.write_bytes(content)
    again = run()
    assert trained(again) == trained(first)
    assert again.scores.equals(first.scores)
    assert blob.is_file()


def test_images_of_the_recipes_generators_are_never_tested(run) -> None:
    ran = run()
    table = ran.plan.manifest
    (work,) = ran.plan.recipes.values()
    used = set(table["sha256"].iloc[[i for rows in work.source.rows.values() for i in rows]])
    assert used
    assert not used & set(ran.plan.cells["sha256"])
    assert set(table["split"].iloc[work.source.rows["train"]]) == {"train"}
    assert ran.plan.rows[0].row.trained_on == ("ldm",)


def test_a_recipe_is_what_it_does_and_not_what_it_is_called(run) -> None:
    def key(**how: Any) -> str:
        return next(iter(run(plan_only=True, **how).plan.recipes))

    before = key()
    assert key() == before
    assert key(recipe="another-name") == before
    others = [{"seed": 2}, {"epochs": 4}, {"lr": 0.02}, {"settings": {"init_seed": 3}}, {"generators": ["ddim"]}]
    assert len({before, *(key(**{**other, "recipe": "x"}) for other in others)}) == len(others) + 1


def test_the_recipe_is_in_the_key_of_the_features(run) -> None:
    one, other = (keys_of(run(plan_only=True, seed=n).plan)["trained-cnn"] for n in (1, 2))
    assert one["features"] != other["features"]


def test_training_code_is_in_the_recipes_key_and_not_in_that_of_features_from_a_file(plugins: Path) -> None:
    from bench_plugins.cnn import TinyCnn

    from harness.engine.source import closure

    assert "bench_plugins.cnn_training" not in closure(TinyCnn)
    assert "bench_plugins.cnn_training" in closure(TinyCnn().step_class())


@pytest.mark.parametrize(
    ("change", "said"),
    [({"epoch": 3}, "did you mean 'epochs'"), ({"epochs": 0}, "epochs"), ({"step": "trilevel"}, "step")],
)
def test_a_recipe_that_cannot_be_meant_is_refused(run, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(**change)


def test_an_unknown_recipe_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'dmeo_blades'[\s\S]*demo_blades"):
        load_recipe("dmeo_blades")


def test_a_training_that_fails_fails_its_rows_and_is_recorded(run) -> None:
    ran = run(lr=1e30, epochs=30)
    assert set(ran.failures) == {"trained-cnn"}
    assert "not finite" in ran.failures["trained-cnn"]["message"]


def _train(folder: str, data: str, installed: str, gate: Any, out: Any) -> None:
    import sys

    sys.path.insert(0, installed)
    suite = Path(folder) / "plugs.yaml"
    engine_run(suite, Path(data), Path(folder) / "before", plan_only=True)  # all imports are done before the gate
    gate.wait(60)
    ran = engine_run(suite, Path(data), Path(folder))
    out.put((trained(ran)["sha256"], ran.stages.count("train tiny"), len(ran.scores)))


@pytest.mark.slow
def test_two_runs_at_once_train_one_recipe_once(run, tmp_path: Path, data: Path, plugins: Path) -> None:
    run(plan_only=True)
    shutil.rmtree(tmp_path / "store")
    context = multiprocessing.get_context("spawn")
    gate, out = context.Barrier(2), context.Queue()
    both = [context.Process(target=_train, args=(str(tmp_path), str(data), str(plugins), gate, out)) for _ in range(2)]
    for process in both:
        process.start()
    found = [out.get(timeout=120) for _ in both]
    for process in both:
        process.join(60)
    (one, first, scores), (other, second, more) = found
    assert (one, scores) == (other, more)
    assert first + second == 1
    assert len(list((tmp_path / "store/blobs").iterdir())) == 1

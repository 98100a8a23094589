"""Sweep files: strict about everything, before anything is trained; and the recipes of the trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.api.errors import ConfigError, HarnessError, ProtocolError
from harness.api.yamlsafe import load_yaml
from harness.engine.rows import recipe_protocol
from harness.engine.suite import is_sweep, load_suite, shipped
from harness.engine.sweep import load_sweep, trials_of

RECIPE: dict[str, Any] = {
    "recipe": "lam", "detector": "blades-oc", "options": {"encoder": "tiny"}, "step": "bilevel",
    "settings": {"tasks": ["face_coarse"], "work_size": 32}, "epochs": 9, "lr": 1e-3,
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path):
    """A sweep file of changes to a whole one; the recipe lies beside it."""
    (tmp_path / "lam.yaml").write_text(yaml.safe_dump(RECIPE))

    def written(**changes: Any) -> Path:
        whole = {
            "sweep": "rates", "version": 1, "title": "Rates", "recipe": str(tmp_path / "lam.yaml"),
            "space": {"settings.lambda_lr": {"loguniform": [1e-5, 1e-2]}}, "samples": 4, "seed": 7,
            "objective": {"metric": "coarse_accuracy"}, "scheduler": {"asha": {"grace": 2, "reduction": 2}}, **changes,
        }  # fmt: skip
        path = tmp_path / "rates.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in whole.items() if v is not None}, sort_keys=False))
        return path

    return written


def test_every_shipped_sweep_loads_in_both_profiles_and_its_trials_are_recipes() -> None:
    names = [name for name, path in shipped().items() if is_sweep(load_yaml(path))]
    assert names == ["sweep_lambda_lr"]
    for profile in ("demo", "full"):
        sweep = load_sweep("sweep_lambda_lr", profile=profile)
        trials = trials_of(sweep)
        assert len(trials) == sweep.samples
        for trial in trials:
            assert trial.recipe.step == "bilevel"
            assert trial.recipe.evaluate_every == 1
            assert 1e-5 <= trial.recipe.settings["lambda_lr"] <= 1e-2
            assert trial.values == {"settings.lambda_lr": trial.recipe.settings["lambda_lr"]}


def test_trials_are_the_recipe_with_the_drawn_values(write) -> None:
    space = {"settings.lambda_lr": {"loguniform": ["1e-5", "1e-2"]}, "lr": {"grid": [1, 2]}}
    changes = {"settings.work_size": 64, "settings": {"tasks": None}, "epochs": 5}
    sweep = load_sweep(write(space=space, samples=2, set=changes))
    trials = trials_of(sweep)
    assert [t.recipe.lr for t in trials] == [1, 2, 1, 2]
    assert {t.recipe.epochs for t in trials} == {5}
    assert {tuple(t.recipe.settings) for t in trials} == {("work_size", "lambda_lr")}
    assert trials[0].recipe.settings["work_size"] == 64
    assert trials[0].recipe.recipe == "lam, trial 0 of rates"
    assert "lambda_lr=" in trials[1].text()


def test_a_switch_of_the_protocol_is_a_key(write) -> None:
    space = {"protocol.hypergradient": {"grid": ["exact", "finite_difference"]}}
    trials = trials_of(load_sweep(write(space=space, samples=1, set={"protocol": "clean"})))
    assert [recipe_protocol(t.recipe).hypergradient for t in trials] == ["exact", "finite_difference"]
    assert {recipe_protocol(t.recipe).resample_photographic for t in trials} == {True}


def test_set_on_the_command_line_is_of_the_sweep_or_of_its_recipe(write) -> None:
    settings = ("samples=2", "scheduler.asha.grace=1", "epochs=4", "settings.work_size=48", "set.seed=5",
                "space.settings.lambda_lr={uniform: [0, 1]}", "seed=9")  # fmt: skip
    sweep = load_sweep(write(), settings=settings)
    assert (sweep.samples, sweep.seed) == (2, 9)
    assert sweep.rule is not None
    assert sweep.rule.rungs(4) == (1, 2)
    trials = trials_of(sweep)
    assert [(t.recipe.epochs, t.recipe.seed, t.recipe.settings["work_size"]) for t in trials] == [(4, 5, 48)] * 2
    assert sweep.spaces()[0].kind == "uniform"


def test_a_profile_replaces_a_space_of_another_kind_or_takes_it_away(write) -> None:
    overlay = {"space": {"settings.lambda_lr": {"choice": [0.1, 0.2]}, "lr": None}, "samples": 1}
    space = {"settings.lambda_lr": {"loguniform": [1e-5, 1e-2]}, "lr": {"uniform": [0.1, 1]}}
    path = write(space=space, profiles={"demo": overlay})
    assert list(load_sweep(path).space) == ["settings.lambda_lr", "lr"]
    assert load_sweep(path, profile="demo").space == {"settings.lambda_lr": {"choice": [0.1, 0.2]}}


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"sample": 3}, ConfigError, "did you mean 'samples'"),
        ({"objective": {"metric": "x", "modus": "max"}}, ConfigError, r"did you mean 'objective\.mode'"),
        ({"scheduler": {"asha": {"graze": 2}}}, ConfigError, r"did you mean 'scheduler\.asha\.grace'"),
        ({"scheduler": {"asha": {"reduction": 1}}}, ConfigError, "reduction"),
        ({"scheduler": {"pbt": {}}}, ConfigError, "scheduler"),
        ({"scheduler": {"asha": {"grace": 9}}}, ConfigError, "no trial has more epochs"),
        ({"samples": 0}, ConfigError, "samples"),
        ({"objective": None}, ConfigError, "objective"),
        ({"objective": {"metric": "accuracy", "split": "report"}}, ProtocolError, "report"),
        ({"objective": {"metric": "report/coarse_accuracy"}}, ProtocolError, "nothing but the report step"),
        ({"objective": {"metric": "accuracy", "split": "train"}}, ConfigError, "select"),
        ({"space": {}}, ConfigError, "space"),
        ({"space": None}, ConfigError, "space"),
        ({"space": {"lr": {"uniform": [2, 1]}}}, ConfigError, "not below high"),
        ({"space": {"lr": {"loguniform": [0, 1]}}}, ConfigError, "above 0"),
        ({"space": {"learning_rate": {"uniform": [0, 1]}}}, ConfigError, "learning_rate"),
        ({"space": {"epoch": {"randint": [1, 5]}}}, ConfigError, "did you mean 'epochs'"),
        ({"space": {"detector": {"choice": ["cnnd"]}}}, ConfigError, "not a sweep's to change"),
        ({"space": {"settings..x": {"choice": [1]}}}, ConfigError, "is no key"),
        ({"space": {"epochs.x": {"choice": [1]}}}, ConfigError, "holds a value"),
        ({"space": {"epochs": {"uniform": [1.0, 5.0]}}}, ConfigError, "epochs"),
        ({"space": {"lr": {"choice": [-1]}}}, ConfigError, "lr"),
        ({"set": {"epoch": 3}}, ConfigError, "did you mean 'epochs'"),
        ({"set": {"processes": 2}}, ConfigError, "not a sweep's to change"),
        ({"set": 3}, ConfigError, "set"),
        ({"recipe": "demo_bladez"}, ConfigError, "demo_blades"),
        ({"sweep": "../x"}, ConfigError, "sweep"),
        ({"samples": 3, "space": {"epochs": {"grid": [1, 5]}}}, ConfigError, "equal trials"),
        ({"gpus": 0}, ConfigError, "gpus"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_message(write, changes: dict[str, Any], error: type, said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        trials_of(load_sweep(write(**changes)))
    assert isinstance(caught.value, HarnessError)


@pytest.mark.parametrize(
    ("setting", "said"), [("epoch=3", "did you mean 'epochs'"), ("samples=x", "samples"), ("samples", "key=value")]
)
def test_a_setting_that_cannot_be_meant_is_one_message(write, setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_sweep(write(), settings=(setting,))


def test_a_suite_is_no_sweep_and_a_sweep_no_suite(write) -> None:
    with pytest.raises(ConfigError, match="harness run cross_generator"):
        load_sweep("cross_generator")
    with pytest.raises(ConfigError, match="harness sweep sweep_lambda_lr"):
        load_suite("sweep_lambda_lr")
    with pytest.raises(ConfigError, match="unknown suite"):
        load_sweep("sweep_lambda_rl")

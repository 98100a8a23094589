"""The sweep file: which recipe, which keys from which spaces, what is to be best; typed, and strict about unknown keys.

A file of its own kind (its first key is ``sweep``) beside the suites: a suite names detectors, tables and test sets, of
which a sweep has none.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.api.errors import ConfigError, ProtocolError
from harness.api.registry import unknown
from harness.api.training import Recipe
from harness.api.yamlsafe import load_yaml
from harness.engine.halving import Halving
from harness.engine.rows import load_recipe, validated_recipe
from harness.engine.spaces import Space, drawn, space_of
from harness.engine.suite import assignment, find_suite, is_sweep, profiled, put

FIXED = ("recipe", "version", "base", "detector", "evaluate_every", "processes")
"""Keys of a recipe that a sweep does not change: what it is, and what the sweep needs itself."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Objective(_Model):
    """What is to be best: a metric on `select` by the name that the step's ``evaluate`` gives it."""

    metric: str = Field(min_length=1)
    mode: Literal["max", "min"] = "max"
    split: str = "select"


class Asha(_Model):
    """Epochs after which a trial is judged first, and the factor from one rung to the next; 1 in ``reduction`` of the
    trials goes on."""

    grace: int = Field(default=1, ge=1)
    reduction: float = Field(default=3.0, gt=1, le=100)


class Scheduler(_Model):
    """What stops trials early."""

    asha: Asha


class Sweep(_Model):
    """A sweep, resolved for one profile. ``changes`` (``set`` in the file) are keys of the recipe that hold for every
    trial; ``gpus`` is the part of a GPU that a trial has where the device is one."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    sweep: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    version: int = Field(ge=1)
    title: str
    profile: Literal["demo", "full"] = "full"
    recipe: str
    changes: dict[str, Any] = Field(default_factory=dict, alias="set")
    space: dict[str, Any] = Field(min_length=1)
    samples: int = Field(default=1, ge=1)
    seed: int = 2024
    objective: Objective
    scheduler: Scheduler | None = None
    gpus: float = Field(default=1.0, gt=0)

    @property
    def rule(self) -> Halving | None:
        """What stops trials early, if anything."""
        if self.scheduler is None:
            return None
        asha = self.scheduler.asha
        return Halving(asha.grace, asha.reduction, self.sign)

    @property
    def sign(self) -> float:
        """1 where more is better, else -1."""
        return 1.0 if self.objective.mode == "max" else -1.0

    def spaces(self) -> list[Space]:
        """The space of each key, in the file's order.

        Raises:
            ConfigError: one that cannot be meant.
        """
        return [space_of(key, document, f"sweep {self.sweep}") for key, document in self.space.items()]

    def document(self) -> dict[str, Any]:
        """The resolved sweep as plain data."""
        return self.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True)
class Draw:
    """A trial before its images are known: number from 0, drawn values by key, and its recipe."""

    number: int
    values: dict[str, Any]
    recipe: Recipe

    def text(self) -> str:
        """For messages."""
        return f"trial {self.number} ({', '.join(f'{k}={shown(v)}' for k, v in self.values.items())})"


def shown(value: Any) -> str:
    """A drawn value for people."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def load_sweep(name: str | Path, *, profile: str = "full", settings: Iterable[str] = ()) -> Sweep:
    """The sweep of a file or shipped name, with the profile's overlay and ``--set`` applied. ``--set`` changes a key of
    the sweep, or else of the recipe of every trial.

    Raises:
        ConfigError: what is wrong, in which file and key, and the nearest known name.
        ProtocolError: an objective that looks at `report`.
    """
    path = find_suite(str(name))
    document = load_yaml(path)
    if not is_sweep(document):
        raise ConfigError("this file is no sweep", path, f"run it: harness run {name}")
    base = document.get("space")
    document = profiled(document, profile, path)
    if isinstance(base, dict) and isinstance(document.get("space"), dict):
        document["space"] = _replaced(base, document["space"])
    for setting in settings:
        _assign(document, setting)
    try:
        sweep = Sweep.model_validate(document)
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise unknown("key", key, _keys(first["loc"]), where=path) from None
        raise ConfigError(f"{key or 'sweep'}: {first['msg']}", where=path) from None
    _check_objective(sweep.objective, path)
    sweep.spaces()
    return sweep


def _replaced(base: dict[str, Any], merged: dict[str, Any]) -> dict[str, Any]:
    """Spaces after an overlay: one that it names stands alone, also where it is of another kind; null takes it away."""
    out = {}
    for key, space in merged.items():
        before = base.get(key)
        if isinstance(before, dict) and isinstance(space, dict) and len(before) == 1 and len(space) == 2:
            space = {k: v for k, v in space.items() if k not in before}
        out[key] = space
    return {k: v for k, v in out.items() if v is not None}


def _keys(place: Sequence[int | str]) -> list[str]:
    """Keys that are known beside an unknown one, dotted as it is."""
    model: Any = {"objective": Objective, "scheduler": Asha if len(place) > 2 else Scheduler}.get(str(place[0]), Sweep)
    names = [field.alias or name for name, field in model.model_fields.items()]
    return [".".join([*map(str, place[:-1]), name]) for name in (*names, *(["profiles"] if model is Sweep else []))]


def _assign(document: dict[str, Any], setting: str) -> None:
    words, value = assignment(setting)
    own = [field.alias or name for name, field in Sweep.model_fields.items()]
    if words[0] not in own:
        if words[0] not in Recipe.model_fields:
            raise unknown("key", words[0], [*own, *Recipe.model_fields], where=f"--set {setting}")
        words = ["set", ".".join(words)]
    elif words[0] in ("space", "set") and len(words) > 2:  # their keys are dotted themselves
        words = [words[0], ".".join(words[1:])]
    put(document, words, value)


def _check_objective(objective: Objective, path: Path) -> None:
    if objective.split == "report" or objective.metric.startswith("report"):
        raise ProtocolError(
            f"the objective is {objective.metric} on {objective.split}: nothing but the report step sees `report`",
            where=f"{path}: objective", fix="name a metric on `select`",
        )  # fmt: skip
    if objective.split != "select":
        raise ConfigError(f"objective.split: {objective.split!r}", path, "trials are measured on `select`")


def trials_of(sweep: Sweep) -> list[Draw]:
    """Every trial with its recipe: the named one with ``set``, the drawn values, and metrics after every epoch.

    Raises:
        ConfigError: a recipe, key or value that cannot be meant.
    """
    where = f"sweep {sweep.sweep}"
    base = load_recipe(sweep.recipe, where=where).model_dump(mode="json")
    for key, value in sweep.changes.items():
        _check_key(key, f"{where}: set.{key}")
        _spell_out(base)
        _change(base, key.split("."), value)
    _spell_out(base)
    if base.get("processes", 1) != 1:
        raise ConfigError("trials of several processes are not here", f"{where}: recipe", "set processes to 1")
    spaces = sweep.spaces()
    for space in spaces:
        _check_key(space.key, f"{where}: space.{space.key}")
    out = []
    for number, values in enumerate(drawn(spaces, sweep.samples, sweep.seed, where)):
        document = copy.deepcopy(base)
        for key, value in values.items():
            put(document, key.split("."), value)
        document |= {"recipe": f"{base['recipe']}, trial {number} of {sweep.sweep}", "evaluate_every": 1}
        draw = Draw(number, values, validated_recipe(document, f"{where}, trial {number}"))
        out.append(draw)
    if sweep.rule is not None and not any(sweep.rule.rungs(d.recipe.epochs) for d in out):
        epochs = max(d.recipe.epochs for d in out)
        raise ConfigError(
            f"scheduler.asha.grace is {sweep.rule.grace}, and no trial has more epochs ({epochs} at most)", where,
            "lower grace, or leave the scheduler out",
        )  # fmt: skip
    return out


def _spell_out(document: dict[str, Any]) -> None:
    """A protocol's name as a mapping, so that single switches can be set beside it."""
    if isinstance(document.get("protocol"), str):
        document["protocol"] = {"base": document["protocol"]}


def _change(document: dict[str, Any], words: Sequence[str], value: Any) -> None:
    """One key of ``set``: a mapping is merged key by key, null takes a key away."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _change(document, [*words, str(name)], inner)
    elif value is None:
        for word in words[:-1]:
            document = document.get(word) or {}
        document.pop(words[-1], None)
    else:
        put(document, words, value)


def _check_key(key: str, where: str) -> None:
    word = key.split(".")[0]
    if word not in Recipe.model_fields:
        raise unknown("key of a recipe:", word, list(Recipe.model_fields), where=where)
    if word in FIXED:
        raise ConfigError(f"{word!r} is not a sweep's to change", where, "name another recipe, or leave it out")
    if not all(key.split(".")):
        raise ConfigError(f"{key!r} is no key", where)

"""Rows of a suite made concrete: the detector's chain, and where each of its weights comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.api.contract import Chain, Detector
from harness.api.errors import ConfigError, WeightsError
from harness.api.protocol import Protocol
from harness.api.registry import detector_class, make_detector
from harness.api.training import Recipe
from harness.api.weights import ResolvedWeights, file_digest
from harness.api.yamlsafe import load_yaml
from harness.engine.origins import Origin, read_origin
from harness.engine.suite import DetectorRow, Suite, merge, suites_folder


@dataclass(frozen=True)
class PreparedRow:
    """A row before any image is known. ``missing`` says which weights are absent and how to get them; such a row
    is reported, not run. ``recipes`` maps a slot to the recipe that makes its weights, ``origins`` places of files to
    what those say they were trained on (files of slots, and files that recipes start from)."""

    name: str
    detector: Detector
    chain: Chain
    batch_size: int | None
    weights: Mapping[str, ResolvedWeights]
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    missing: str | None = None
    origins: Mapping[str, Origin] = field(default_factory=dict)

    @property
    def random(self) -> bool:
        """Whether some weights are random (every output must say so)."""
        return any(w.kind == "random" for w in self.weights.values())

    @property
    def trains_on(self) -> tuple[str, ...]:
        """Generators whose images the head or the extractor is trained on in this run: they must be there."""
        names: list[str] = []
        head = self.chain.head
        while head is not None:
            names += head.generators
            head = head.upstream  # type: ignore[assignment]
        for recipe in self.recipes.values():
            names += recipe.generators
        return tuple(dict.fromkeys(names))

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Those, and the generators whose images its weights files were trained on: seen."""
        return tuple(dict.fromkeys([*self.trains_on, *(g for o in self.origins.values() for g in o.generators)]))


def load_recipe(name: str, where: object = None) -> Recipe:
    """A recipe of ``suites/recipes`` by name, or of a YAML file by path.

    Raises:
        ConfigError: unknown name, unknown key or a wrong value.
    """
    from harness.api.registry import unknown

    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        folder = suites_folder() / "recipes"
        known = {p.stem: p for p in folder.glob("*.yaml")}
        if name not in known:
            raise unknown("recipe", name, list(known), where=where)
        path = known[name]
    return validated_recipe(_based(path), path)


MAX_BASES = 8


def _based(path: Path, depth: int = 0) -> Any:
    """A recipe's document, its keys laid over those of the recipe that ``base`` names (a shipped one, or a file beside
    it); mappings are merged key by key.

    Raises:
        ConfigError: a base that is not there, or bases that go round.
    """
    document = load_yaml(path)
    if not isinstance(document, dict) or "base" not in document:
        return document
    name = str(document.pop("base"))
    candidates = [path.parent / name, path.parent / f"{name}.yaml", suites_folder() / "recipes" / f"{name}.yaml"]
    found = next((p for p in candidates if p.suffix in (".yaml", ".yml") and p.is_file() and p != path), None)
    if found is None or depth == MAX_BASES:
        raise ConfigError(f"the base {name!r} of a recipe is not there, or names its own heir", where=path)
    return merge(_based(found, depth + 1), document)


def validated_recipe(document: Any, where: object) -> Recipe:
    """A recipe of a mapping.

    Raises:
        ConfigError: an unknown key or a wrong value, named.
    """
    from pydantic import ValidationError

    from harness.api.registry import unknown

    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise unknown("key", key, list(Recipe.model_fields), where=where) from None
        said = f"recipe key {key}: {first['msg']}" if key else f"recipe: {first['msg'].removeprefix('Value error, ')}"
        raise ConfigError(said, where=where) from None


def start_weights(recipe: Recipe, weights_root: Path) -> dict[str, ResolvedWeights]:
    """The files that a recipe starts from, by slot.

    Raises:
        WeightsError: one is not there.
    """
    for error in absent_starts(recipe, weights_root):
        raise error
    return {slot: _file(_start_path(name, weights_root)) for slot, name in recipe.start.items()}


def absent_starts(recipe: Recipe, weights_root: Path) -> list[WeightsError]:
    """An error a file that a recipe starts from and that is not there."""
    paths = {slot: _start_path(name, weights_root) for slot, name in recipe.start.items()}
    return [
        WeightsError(
            f"recipe {recipe.recipe} starts from {recipe.start[slot]} ({slot}), which is not at {path}",
            where=f"recipe {recipe.recipe}, start.{slot}",
            fix="put the file there (--weights-root), or leave `start` out to begin with random weights",
        )
        for slot, path in paths.items() if not path.is_file()
    ]  # fmt: skip


def _start_path(name: str, weights_root: Path) -> Path:
    """A file below the weights root, in its converted form where there is one; or a path of its own."""
    path = Path(name).expanduser() if Path(name).expanduser().is_absolute() else weights_root / name
    converted = path.with_name(f"{path.name}.safetensors")
    return converted if converted.is_file() else path


def recipe_protocol(recipe: Recipe) -> Protocol:
    """The protocol a recipe trains under."""
    if isinstance(recipe.protocol, str):
        return Protocol.named(recipe.protocol)
    rest = {k: v for k, v in recipe.protocol.items() if k != "base"}
    return Protocol.named(str(recipe.protocol.get("base", "paper")), **rest)


def _random(text: str, row: str) -> ResolvedWeights:
    _, _, seed = text.partition(":")
    if seed and not seed.isdecimal():
        raise ConfigError(f"row {row!r}: {text!r}: the seed after 'random:' must be a whole number")
    number = int(seed or 0)
    return ResolvedWeights("random", f"random:{number}", seed=number, label=f"random weights, seed {number}")


def _file(path: Path) -> ResolvedWeights:
    digest = file_digest(path)
    return ResolvedWeights("file", digest, path=path, label=f"{path.name} (sha256 {digest[:12]})")


def _absent(slot: str, detector: Detector, looked: Path) -> str:
    official = detector.weights_files[slot]
    return f"{official.name} ({slot}) is not here; get it from {official.where} and put it at {looked}"


def _wanted(row: DetectorRow, chain: Chain, name: str) -> dict[str, str | None]:
    """Slot -> what the suite says of it (None: the official file)."""
    given = {"weights": row.weights} if isinstance(row.weights, str) else dict(row.weights or {})
    if isinstance(row.weights, str) and row.weights.split(":")[0] == "random":
        given = dict.fromkeys(chain.slots, row.weights)
    for slot in given:
        if slot not in chain.slots:
            known = ", ".join(chain.slots) or "none"
            raise ConfigError(f"row {name!r}: the detector has no weights slot {slot!r}", fix=f"slots: {known}")
    return {slot: given.get(slot) for slot in chain.slots}


def prepare_row(name: str, row: DetectorRow, protocol: Protocol, weights_root: Path) -> PreparedRow:
    """A row's chain with its weights found, or what is missing.

    Raises:
        ConfigError, PluginError: unknown detector or option, broken plugin, or a weights value that cannot be meant.
        WeightsError: a weights file that was named explicitly cannot be read.
    """
    detector = make_detector(row.detector or name, row.options, protocol)
    chain = Chain.of(detector)
    weights: dict[str, ResolvedWeights] = {}
    recipes: dict[str, Recipe] = {}
    missing: list[str] = []
    for slot, value in _wanted(row, chain, name).items():
        if value is None:
            path = weights_root / detector.weights_files[slot].name
            converted = path.with_name(f"{path.name}.safetensors")  # as `weights convert` writes it beside the original
            found = next((p for p in (converted, path) if p.is_file()), None)
            if found is not None:
                weights[slot] = _file(found)
            else:
                missing.append(_absent(slot, detector, path))
        elif value.split(":")[0] == "random":
            weights[slot] = _random(value, name)
        elif value.startswith("recipe:"):
            recipes[slot] = load_recipe(value.removeprefix("recipe:"), where=f"row {name!r}")
            missing += [str(e.what) for e in absent_starts(recipes[slot], weights_root)]
        elif Path(value).expanduser().is_file():
            weights[slot] = _file(Path(value).expanduser())
        else:
            missing.append(_absent(slot, detector, Path(value)))
    origins = _origins(weights, recipes, weights_root)
    return PreparedRow(name, detector, chain, row.batch_size, weights, recipes, "; ".join(missing) or None, origins)


def _origins(
    weights: Mapping[str, ResolvedWeights], recipes: Mapping[str, Recipe], weights_root: Path
) -> dict[str, Origin]:
    """What the files of a row's slots, and those that its recipes start from, say of their own training."""
    files = {slot: w.path for slot, w in weights.items() if w.path is not None}
    for slot, recipe in recipes.items():
        paths = {start: _start_path(name, weights_root) for start, name in recipe.start.items()}
        files |= {f"{slot}, start.{start}": path for start, path in paths.items() if path.is_file()}
    found = {place: read_origin(path) for place, path in files.items()}
    return {place: origin for place, origin in found.items() if origin is not None}


def prepare_rows(suite: Suite, weights_root: Path) -> list[PreparedRow]:
    """Every row of a suite, in its order (errors as :func:`prepare_row`)."""
    for name, row in suite.detectors.items():
        try:
            detector_class(row.detector or name)
        except ConfigError as error:
            raise ConfigError(error.what, where=f"suite {suite.suite}, row {name!r}", fix=error.fix) from None
    return [prepare_row(name, row, suite.switches, weights_root) for name, row in suite.detectors.items()]


def describe(row: PreparedRow) -> dict[str, Any]:
    """The row for ``record.json``."""
    weights: dict[str, dict[str, Any]] = {
        slot: {"kind": w.kind, "identity": w.identity, "label": w.label} for slot, w in row.weights.items()
    }
    for slot, recipe in row.recipes.items():
        weights[slot] = {"kind": "recipe", "identity": recipe.recipe, "label": f"recipe {recipe.recipe}"}
    for slot, origin in row.origins.items():
        if slot in weights:
            weights[slot] |= {"recipe_key": origin.key, "trained_on": list(origin.generators)}
    return {
        "name": row.detector.name,
        "options": row.detector.options.model_dump(mode="json"),
        "weights": weights,
        "random_weights": row.random,
        "seen": list(row.trained_on),
        "published_row": row.detector.facts.published_row,
    }

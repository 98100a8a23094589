"""The suite file: which data, which detectors, which protocol, which tables; typed, and strict about unknown keys."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.api.errors import ConfigError
from harness.api.protocol import NAMES as PROTOCOLS
from harness.api.protocol import Protocol
from harness.api.registry import unknown
from harness.api.yamlsafe import load_yaml, parse_yaml

PROFILES = ("demo", "full")
ENGINES = ("inline", "ray")


RowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w .()+-]{0,63}$")]
"""Names of rows are also names of folders."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DetectorRow(_Model):
    """One row of the tables: a detector plugin with its weights and options. Keys that are not fields here are
    the plugin's own options."""

    model_config = ConfigDict(frozen=True, extra="allow")

    detector: str | None = None
    weights: str | dict[str, str] | None = None
    batch_size: int | None = Field(default=None, gt=0)

    @property
    def options(self) -> dict[str, Any]:
        """Options for the plugin."""
        return dict(self.__pydantic_extra__ or {})


class TestDraw(_Model):
    """How test sets are drawn: up to ``per_generator`` generated images and as many photographs, by hash of seed."""

    per_generator: int = Field(default=5000, gt=0)
    seed: int = 2024


class FitSpec(_Model):
    """Where heads are fitted: the `train` photographs of a dataset (None: the first one), at most ``count``."""

    dataset: str | None = None
    count: int = Field(default=25_000, gt=0)


class TableSpec(_Model):
    """A table to make: what it shows, which published table stands beside it, what counts as reproduced, and a note to
    print under it."""

    kind: Literal["accuracy", "auc", "sensitivity"]
    title: str
    published: str | None = None
    tolerance: float = Field(default=0.01, gt=0)
    note: str | None = Field(default=None, min_length=1)


class BootstrapSpec(_Model):
    """Resamples for intervals and for comparisons of two detectors."""

    n: int = Field(default=2000, ge=100)
    comparisons: int = Field(default=10_000, ge=100)
    seed: int = 2024


class ActorSpec(_Model):
    """What a worker of one row's stages reserves under Ray, where that differs from the rest."""

    cpus: float | None = Field(default=None, gt=0)
    gpus: float | None = Field(default=None, gt=0)


class Execution(_Model):
    """How the work is run; none of it changes a score but threads (they are in the keys).

    ``workers`` threads read images. The rest is of the engine `ray`: what a worker reserves (``cpus``, ``gpus``;
    fractions are shares; by row in ``actors``), at most how many of them (``max_actors``), how long a piece of work may
    take, and how often it is tried again before it is cut in two."""

    engine: Literal["inline", "ray"] = "inline"
    workers: int = Field(default=2, ge=0)
    threads: int | None = Field(default=None, gt=0)
    cpus: float | None = Field(default=None, gt=0)
    gpus: float | None = Field(default=None, gt=0)
    actors: dict[RowName, ActorSpec] = Field(default_factory=dict)
    max_actors: int | None = Field(default=None, gt=0)
    timeout_seconds: float = Field(default=600.0, gt=0)
    retries: int = Field(default=2, ge=0, le=20)


class Suite(_Model):
    """A suite, resolved for one profile and protocol."""

    suite: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    version: int = Field(ge=1)
    title: str
    profile: Literal["demo", "full"] = "full"
    data: dict[str, Any]
    protocol: dict[str, Any] = Field(default_factory=lambda: {"base": "paper"})
    test: TestDraw = TestDraw()
    fit: FitSpec = FitSpec()
    detectors: dict[RowName, DetectorRow] = Field(min_length=1)
    reference: str | None = None
    tables: tuple[TableSpec, ...] = ()
    bootstrap: BootstrapSpec = BootstrapSpec()
    execution: Execution = Execution()

    @model_validator(mode="after")
    def _known_reference(self) -> Suite:
        if self.reference is not None and self.reference not in self.detectors:
            raise ValueError(f"reference {self.reference!r} is no row of detectors")
        return self

    @model_validator(mode="after")
    def _known_actors(self) -> Suite:
        for row in self.execution.actors:
            if row not in self.detectors:
                raise ValueError(f"execution.actors: {row!r} is no row of detectors")
        return self

    @property
    def switches(self) -> Protocol:
        """The protocol with every switch."""
        return Protocol.named(**_split_protocol(self.protocol))

    def document(self) -> dict[str, Any]:
        """The resolved suite as plain data, for ``suite.resolved.yaml``."""
        return self.model_dump(mode="json")


def _split_protocol(value: Mapping[str, Any]) -> dict[str, Any]:
    rest = {k: v for k, v in value.items() if k != "base"}
    return {"name": str(value.get("base", "paper")), **rest}


def shipped() -> dict[str, Path]:
    """Suites that come with the package, by name."""
    return {path.stem: path for path in sorted(suites_folder().glob("*.yaml"))}


def suites_folder() -> Path:
    """Where shipped suites are: inside the installed package, or beside it in a source tree."""
    import harness

    package = Path(harness.__file__).parent
    inside = package / "_suites"
    return inside if inside.is_dir() else package.parent / "suites"


def find_suite(name: str) -> Path:
    """The file a user means: a path, or the name of a shipped suite.

    Raises:
        ConfigError: neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = shipped()
    if path.stem in known and path.suffix in ("", ".yaml", ".yml") and (path.parent.name in ("", "suites")):
        return known[path.stem]
    if path.is_dir() or (path.suffix in (".yaml", ".yml") and path.parent != Path(".")):
        raise ConfigError("suite file not found", where=name, fix=f"shipped suites: {', '.join(known)}")
    raise unknown("suite", path.stem, list(known))


def merge(base: Any, over: Any) -> Any:
    """Mappings are merged key by key; anything else is replaced; a null row removes it."""
    if isinstance(base, dict) and isinstance(over, dict):
        merged = dict(base)
        for key, value in over.items():
            if value is None and isinstance(base.get(key), dict):
                merged.pop(key)
            else:
                merged[key] = merge(base[key], value) if key in base else copy.deepcopy(value)
        return merged
    return copy.deepcopy(over)


def assignment(setting: str) -> tuple[list[str], Any]:
    """The words of the key and the value (YAML) of one ``a.b=c``.

    Raises:
        ConfigError: it is not of that form, or the value is not YAML.
    """
    path, equals, text = setting.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set {setting!r} is not of the form key.key=value", fix="as in test.per_generator=100")
    return path.strip().split("."), parse_yaml(f"value: {text}", f"--set {setting}")["value"]


def put(document: dict[str, Any], words: Sequence[str], value: Any) -> None:
    """Set a nested key in place; mappings on the way that are absent or null are made.

    Raises:
        ConfigError: a word on the way holds a value.
    """
    target = document
    for word in words[:-1]:
        nested = target.get(word)
        if nested is None:
            nested = target[word] = {}
        if not isinstance(nested, dict):
            raise ConfigError(f"--set {'.'.join(words)}: {word!r} holds a value, not keys")
        target = nested
    target[words[-1]] = value


def _assign(document: dict[str, Any], setting: str) -> None:
    """Apply one ``--set a.b=c``; the first word may be a detector row, else it is a key of the suite."""
    words, value = assignment(setting)
    if len(words) > 1 and words[0] in document.get("detectors", {}):
        words = ["detectors", *words]
    elif words[0] not in Suite.model_fields:
        known = [*Suite.model_fields, *document.get("detectors", {})]
        raise unknown("key", words[0], known, where=f"--set {setting}")
    put(document, words, value)


def _explain(error: ValidationError, where: object) -> NoReturn:
    # a misspelt key is both spare and missing: the spare one tells what was meant
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        model: Any = Suite
        for part in first["loc"][:-1]:
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field is not None else None
        fields = list(getattr(model, "model_fields", {})) or [f for m in _NESTED for f in m.model_fields]
        raise unknown("key", str(first["loc"][-1]), fields, where=f"{where}: {place}") from None
    message = first["msg"].removeprefix("Value error, ")
    raise ConfigError(f"{place or 'suite'}: {message}", where=where) from None


_NESTED = (TestDraw, FitSpec, TableSpec, BootstrapSpec, Execution, ActorSpec)


def is_sweep(document: Mapping[str, Any]) -> bool:
    """Whether a file's document is a sweep's (``harness.engine.sweep``), not a suite's."""
    return "sweep" in document and "suite" not in document


def profiled(document: dict[str, Any], profile: str, where: object) -> dict[str, Any]:
    """A file's document for one profile: the overlay of that name under ``profiles`` merged in.

    Raises:
        ConfigError: an unknown profile, here or in the file, or overlays that are no mappings.
    """
    profiles = document.pop("profiles", {}) or {}
    if not isinstance(profiles, dict):
        raise ConfigError("profiles must be a mapping", where=where)
    for key, overlay in profiles.items():
        if key not in PROFILES:
            raise unknown("profile", str(key), list(PROFILES), where=where)
        if not isinstance(overlay, dict | None):
            raise ConfigError(f"profiles.{key} must be a mapping", where=where)
    if profile not in PROFILES:
        raise unknown("profile", profile, list(PROFILES))
    return {**merge(document, profiles.get(profile) or {}), "profile": profile}


def load_suite(
    name: str | Path,
    *,
    profile: str = "full",
    protocol: str | None = None,
    settings: Iterable[str] = (),
    detectors: Iterable[str] | None = None,
) -> Suite:
    """The suite of a file or shipped name, with the profile's overlay, ``--protocol``, ``--set`` and
    ``--detectors`` applied in this order.

    Raises:
        ConfigError: what is wrong, in which file and key, and the nearest known name.
    """
    path = find_suite(str(name))
    document = load_yaml(path)
    if is_sweep(document):
        raise ConfigError("this file is a sweep, not a suite", path, f"start it: harness sweep {name}")
    document = profiled(document, profile, path)
    rows = document.get("detectors")
    if isinstance(rows, dict):
        document["detectors"] = {k: ({} if v is None else v) for k, v in rows.items()}
    if isinstance(document.get("protocol"), str):
        document["protocol"] = {"base": document["protocol"]}
    if protocol is not None:
        if protocol not in PROTOCOLS:
            raise unknown("protocol", protocol, list(PROTOCOLS))
        document["protocol"] = {"base": protocol}
    for setting in settings:
        _assign(document, setting)
    if isinstance(document.get("protocol"), str):
        document["protocol"] = {"base": document["protocol"]}
    try:
        suite = Suite.model_validate(document)
    except ValidationError as error:
        _explain(error, path)
    suite.switches  # noqa: B018 - raises on an unknown switch
    if detectors is not None:
        suite = _only(suite, list(detectors))
    return suite


def _only(suite: Suite, wanted: list[str]) -> Suite:
    for name in wanted:
        if name not in suite.detectors:
            raise unknown("detector row", name, dict(suite.detectors), where=f"suite {suite.suite}")
    rows = {name: row for name, row in suite.detectors.items() if name in wanted}
    reference = suite.reference if suite.reference in rows else None
    actors = {name: actor for name, actor in suite.execution.actors.items() if name in wanted}
    execution = suite.execution.model_copy(update={"actors": actors})
    return suite.model_copy(update={"detectors": rows, "reference": reference, "execution": execution})

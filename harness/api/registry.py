"""Finds detectors: built-in and third-party ones register alike, through the entry-point group
``harness.detectors``. Listing reads metadata only; a plugin is imported when it is used."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import ValidationError

from harness.api.contract import Detector, Facts
from harness.api.errors import ConfigError, HarnessError, PluginError
from harness.api.protocol import Protocol

GROUP = "harness.detectors"


@dataclass(frozen=True)
class Registration:
    """Where a detector name points: ``target`` is ``module:Class``, ``distribution`` the package that says so."""

    name: str
    target: str
    distribution: str


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown distribution"


def registrations() -> dict[str, Registration]:
    """Every registered detector by name, sorted; imports no plugin.

    Raises:
        PluginError: two packages register the same name (both are named).
    """
    found: dict[str, Registration] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        new = Registration(point.name, point.value, _origin(point))
        old = found.get(point.name)
        if old is not None and old.target != new.target:
            raise PluginError(
                f"detector {point.name!r} is registered twice: {old.target} from {old.distribution} "
                f"and {new.target} from {new.distribution}",
                fix="uninstall one of the two packages, or rename one detector",
            )
        found[point.name] = new
    return found


def unknown(kind: str, name: str, known: Mapping[str, Any] | list[str], where: object = None) -> ConfigError:
    """The error for a name nobody knows, with the nearest known one as suggestion."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    fix = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known)) or 'none'}"
    return ConfigError(f"unknown {kind} {name!r}", where=where, fix=fix)


@cache
def _load(target: str, name: str, distribution: str) -> type[Detector]:
    module_name, _, attribute = target.partition(":")
    try:
        loaded = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # a plugin can fail in any way; the culprit must be named
        raise PluginError(
            f"detector {name!r} of package {distribution!r} cannot be imported: {type(error).__name__}: {error}",
            where=target, fix=f"repair or uninstall {distribution}",
        ) from error  # fmt: skip
    if not (isinstance(loaded, type) and issubclass(loaded, Detector)):
        raise PluginError(
            f"detector {name!r} of package {distribution!r} is not a subclass of harness.api.contract.Detector",
            where=target,
        )
    if getattr(loaded, "name", None) != name:
        raise PluginError(
            f"detector class says its name is {getattr(loaded, 'name', None)!r}, but package {distribution!r} "
            f"registers it as {name!r}",
            where=target,
        )
    if not isinstance(getattr(loaded, "facts", None), Facts):
        raise PluginError(f"detector {name!r} of package {distribution!r} states no facts", where=target)
    return loaded


def detector_class(name: str) -> type[Detector]:
    """The class registered under a name.

    Raises:
        ConfigError: unknown name, with a suggestion.
        PluginError: the plugin is broken; it and its package are named.
    """
    found = registrations()
    if name not in found:
        raise unknown("detector", name, found)
    entry = found[name]
    return _load(entry.target, entry.name, entry.distribution)


def make_detector(name: str, options: Mapping[str, Any] | None = None, protocol: Protocol | None = None) -> Detector:
    """A detector with typed options.

    Raises:
        ConfigError: unknown detector, unknown option (with the nearest known one) or a value of the wrong type.
    """
    cls = detector_class(name)
    options = dict(options or {})
    known = cls.Options.model_fields
    for key in options:
        if key not in known:
            raise unknown(f"option of detector {name!r}:", key, dict(known))
    try:
        typed = cls.Options(**options)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"detector {name!r}, option {'.'.join(map(str, first['loc']))}: {first['msg']} (got {first['input']!r})"
        ) from None
    try:
        return cls(typed, protocol)
    except HarnessError:
        raise
    except Exception as error:  # a plugin can fail in any way; the culprit must be named
        what = f"detector {name!r} cannot be made: {type(error).__name__}: {error}"
        raise PluginError(what, where=cls.__module__) from error

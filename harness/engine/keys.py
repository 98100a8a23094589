"""Merkle keys: one function says what makes two results the same thing."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from harness.api.contract import Stage
from harness.api.errors import ConfigError
from harness.engine.source import source_digest

KEY_VERSION = 1


@dataclass(frozen=True)
class Numerics:
    """The numerics class: what makes the same program give other bits on one machine."""

    device: str
    micro_batch: int
    threads: int
    dtype: str = "float32"
    torch: str = ""

    @classmethod
    def here(cls, device: str, micro_batch: int, threads: int) -> Numerics:
        """The numerics class of this process; reads torch's version without importing torch."""
        from importlib.metadata import version

        return cls(device.split(":")[0], micro_batch, threads, torch=".".join(version("torch").split(".")[:2]))


def canonical(value: Any) -> Any:
    """A value as JSON with one spelling: tuples become lists, mappings are sorted, dataclasses become mappings.

    Raises:
        TypeError: a value with no stable JSON form (an option must not be, say, a function).
    """
    if is_dataclass(value) and not isinstance(value, type):
        return canonical(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): canonical(value[k]) for k in sorted(value, key=str)}
    if isinstance(value, list | tuple | np.ndarray):
        return [canonical(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{value!r} cannot be part of a key")


def digest_of(value: Any) -> str:
    """sha256 of a value's canonical JSON, 64 hex digits."""
    text = json.dumps(canonical(value), separators=(",", ":"), sort_keys=True, allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()


def stage_identity(stage: Stage, weights: Mapping[str, str]) -> dict[str, Any]:
    """What a stage is: version, source, options, nested stages, and the identities of the weights it reads.

    Raises:
        ConfigError: an option that has no stable JSON form.
    """
    nested: dict[str, Stage] = {}
    if is_dataclass(stage):
        nested = {f.name: getattr(stage, f.name) for f in fields(stage) if isinstance(getattr(stage, f.name), Stage)}
    try:
        options = canonical(stage.options())
    except TypeError as error:
        kind = f"{type(stage).__module__}.{type(stage).__qualname__}"
        fix = "give it plain values: numbers, words, lists, mappings"
        raise ConfigError(f"an option of stage {kind} has no stable form: {error}", fix=fix) from None
    return {
        "version": stage.version,
        "source": source_digest(type(stage)),
        "options": options,
        "nested": {name: stage_identity(value, weights) for name, value in sorted(nested.items())},
        "weights": {slot: weights[slot] for slot in stage.slots},
    }


def stage_key(
    kind: str,
    stage: Mapping[str, Any],
    *,
    inputs: Sequence[str],
    numerics: Numerics | None,
    edits: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> tuple[str, dict[str, Any]]:
    """The key of a stage's results and the description it is the hash of.

    In: the stage's kind and version; the source it runs (the import closure of that stage, inside our
    distribution and the plugin's); its resolved options; the edits made to the input image; the keys of its
    inputs (preprocess, transforms, weights by sha256 or recipe key, fit-set and calibration-set digests, an
    upstream head); the numerics class (device type, dtype, torch major.minor, micro-batch, intra-op threads);
    a seed where the stage draws.

    Out: paths, names of classes, rows, detectors and runs, worker counts, the engine, other machines' details
    (scores agree across machines to 1e-5, and one store is one machine's or one cluster's).
    """
    description = {
        "key_version": KEY_VERSION,
        "kind": kind,
        "stage": dict(stage),
        "inputs": list(inputs),
        "edits": canonical(edits or {}),
        "numerics": None if numerics is None else asdict(numerics),
        "seed": seed,
    }
    return digest_of(description), description


def set_digest(digests: np.ndarray, labels: np.ndarray, generators: Sequence[str]) -> str:
    """Digest of an ordered set of images: item digests ``[N] S32``, labels and generator names."""
    hasher = hashlib.sha256()
    hasher.update(np.ascontiguousarray(digests).tobytes())
    hasher.update(np.ascontiguousarray(labels, dtype=np.int8).tobytes())
    hasher.update("\0".join(generators).encode())
    return hasher.hexdigest()


def machine() -> str:
    """A word for this machine's kind, for records (never part of a key)."""
    return f"{platform.machine()} {platform.system()}"

"""Filling a network: from a checkpoint under other names, back to those names, or from a seed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from harness.api.errors import WeightsError

FIX = "use the official file of this detector, or the options of the network that made this one"


class Name(NamedTuple):
    """One tensor under both names; `part` is its third (0 query, 1 key, 2 value) of a stacked one, or −1."""

    ours: str
    theirs: str
    part: int = -1


def _expected(module: nn.Module, names: Sequence[Name]) -> dict[str, list[int]]:
    own = module.state_dict()
    shapes: dict[str, list[int]] = {}
    for name in names:
        shape = list(own[name.ours].shape)
        shapes[name.theirs] = shape if name.part < 0 else [3 * shape[0], *shape[1:]]
    return shapes


def _check(
    shapes: Mapping[str, list[int]], tensors: Mapping[str, Tensor], prefix: str, where: object, fix: str
) -> None:
    present = [key for key in shapes if key in tensors]
    counters = "num_batches_tracked"  # used by nothing here; files older than torch 0.4 lack it
    real = [key for key in present if not key.endswith(counters)]
    faults = {
        "missing": [key for key in shapes if key not in tensors and not key.endswith(counters)],
        "spare": [key for key in tensors if key not in shapes],
        "misshaped": [
            f"{key} is {list(tensors[key].shape)}, expected {shapes[key]}"
            for key in present
            if list(tensors[key].shape) != shapes[key]
        ],
        "not floating point": [key for key in real if not tensors[key].is_floating_point()],
        "not finite": [
            key
            for key in real
            if list(tensors[key].shape) == shapes[key] and not torch.isfinite(tensors[key].to(torch.float32)).all()
        ],
    }
    parts = [
        f"{len(keys)} {fault}: {', '.join(prefix + key for key in keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for fault, keys in faults.items()
        if keys
    ]
    if parts:
        raise WeightsError(
            "checkpoint does not fit the network; " + "; ".join(parts),
            where=where,
            fix=fix,
        )


def load_named(
    module: nn.Module,
    names: Sequence[Name],
    tensors: Mapping[str, Tensor],
    *,
    prefix: str,
    where: object,
    ignore: Iterable[str] = (),
    fix: str = FIX,
) -> None:
    """Fill `module` from tensors under the authors' names; the tensors' memory is taken over, in its own dtype.

    Args:
        names: every state tensor of `module` with its name in the file (without `prefix`).
        prefix: what stands before those names in the file.
        where: what errors call the file.
        ignore: beginnings of whole keys (with prefix) that belong to another part of the same file.
        fix: what errors advise.

    Raises:
        WeightsError: naming (the first few, and how many) tensors that are missing, spare, misshaped, not
            floating point or not finite. `num_batches_tracked` alone may be absent.
    """
    skipped = tuple(ignore)
    kept = {key: value for key, value in tensors.items() if not (skipped and key.startswith(skipped))}
    alien = {key: value for key, value in kept.items() if not key.startswith(prefix)}
    inner = {key[len(prefix) :]: value for key, value in kept.items() if key not in alien}
    shapes = _expected(module, names)
    if alien:
        _check({}, alien, "", where, fix)
    _check(shapes, inner, prefix, where, fix)
    own = module.state_dict()
    state: dict[str, Tensor] = {}
    for name in names:
        value = inner.get(name.theirs)
        if value is None:
            state[name.ours] = torch.zeros((), dtype=own[name.ours].dtype)
            continue
        value = value if name.part < 0 else value.chunk(3, dim=0)[name.part]
        state[name.ours] = value.to(own[name.ours].dtype).contiguous()
    module.load_state_dict(state, strict=True, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_()


def to_named(module: nn.Module, names: Sequence[Name], prefix: str) -> dict[str, Tensor]:
    """The state of `module` under the authors' names with `prefix`: what `load_named` reads back."""
    own = module.state_dict()
    out: dict[str, Tensor] = {}
    for name in names:
        value = own[name.ours].detach()
        key = prefix + name.theirs
        out[key] = torch.cat([out[key], value]) if name.part > 0 else value
    return out


def fill_random(module: nn.Module, seed: int) -> None:
    """Fill every tensor of `module` from (seed, its name) alone: stated random weights, not a training.

    Convolutions He-normal by fan-in, matrices n/√(fan-in), token and position embeddings 0.02·n, norm layers the
    identity, biases 0, running statistics 0 and 1; scalars (the logit scale) keep their value, which therefore
    must not be on the meta device. n is numpy's `default_rng` stream of sha256(seed, name): the same on every
    machine, whatever was drawn before.
    """
    state: dict[str, Tensor] = {}
    for key, old in module.state_dict().items():
        state[key] = _random(key, old, seed)
    module.load_state_dict(state, strict=True, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_()


def _random(key: str, old: Tensor, seed: int) -> Tensor:
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros((), dtype=old.dtype)
    if old.dim() == 0:
        return old.detach().clone()
    if last in ("bias", "running_mean"):
        return torch.zeros(old.shape)
    if old.dim() == 1:
        return torch.ones(old.shape)
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    noise = np.random.default_rng(int.from_bytes(digest[:16], "little")).standard_normal(tuple(old.shape), np.float32)
    if old.dim() == 4:
        noise *= math.sqrt(2 / math.prod(old.shape[1:]))
    elif "embedding" in key:
        noise *= 0.02
    else:
        fan_in = old.shape[0] if last == "projection" else old.shape[1]
        noise /= math.sqrt(fan_in)
    return torch.from_numpy(noise)

"""Where the encoder of BLADES stands in a checkpoint; the filling itself is `detectors.networks.states`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from detectors.networks.states import Name, fill_random, load_named, to_named
from harness.api.errors import WeightsError

__all__ = ["Name", "container_prefix", "fill_random", "load_named", "to_named"]

CONTAINER_PREFIXES: tuple[str, ...] = ("model.model.", "model.", "")
"""What stands before `visual.` in the authors' files: BC.pth, OC.pth, and a bare state dictionary."""


def container_prefix(tensors: Mapping[str, Tensor], where: object) -> str:
    """What stands before `visual.` in these keys; WeightsError when there is no image tower in them."""
    for prefix in CONTAINER_PREFIXES:
        if any(key.startswith(f"{prefix}visual.") for key in tensors):
            return prefix
    raise WeightsError(
        f"holds no image tower: none of its {len(tensors)} tensors is called [model.[model.]]visual.*",
        where=where,
        fix="give OC.pth or BC.pth of the authors, or an encoder that this program trained",
    )

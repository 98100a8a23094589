"""Named protocols: sets of the switches where the paper's text and the released code differ (FIDELITY)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.api.errors import ConfigError

NAMES = ("paper", "released", "clean")


class Protocol(BaseModel):
    """Every switch, with the paper's choice as default; stored with each result and printed under each table.

    Where the text at hand is silent, ``paper`` takes the released value. Source of each row: ``docs/fidelity.md``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outer_batch: Literal["heldout", "train"] = "heldout"
    hypergradient: Literal["exact", "finite_difference"] = "exact"
    virtual_weight_decay: float = 0.0
    outer_lr_scale: Literal["constant", "scheduled"] = "constant"
    regions: Literal["mouth_eye_nose", "mouth_eye"] = "mouth_eye_nose"
    ranking_scale: float = 2.0
    bn_updates: Literal[1, 4] = 1
    resize_antialias: bool = False
    manipulated_exif: bool = True
    no_landmarks: Literal["whole_face", "drop"] = "whole_face"
    ranking_single: Literal["zero", "nan"] = "zero"
    resample_photographic: bool = False
    gmm_fit_order: Literal["list", "shuffled_2024"] = "list"
    threshold: Literal["in_sample", "held_out"] = "in_sample"

    @classmethod
    def named(cls, name: str, **switches: Any) -> Protocol:
        """The protocol of that name with single switches set on top.

        Raises:
            ConfigError: an unknown protocol, switch or value.
        """
        if name not in _NAMED:
            raise ConfigError(f"unknown protocol {name!r}", fix=f"use one of {', '.join(NAMES)}")
        for key in switches:
            if key not in cls.model_fields:
                near = difflib.get_close_matches(key, cls.model_fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(cls.model_fields)}"
                raise ConfigError(f"unknown protocol switch {key!r}", fix=hint)
        try:
            return cls(**{**_NAMED[name], **switches})
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"protocol switch {first['loc'][0]!r}: {first['msg']}") from None


_NAMED: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "released": {
        "outer_batch": "train",
        "hypergradient": "finite_difference",
        "virtual_weight_decay": 1e-3,
        "outer_lr_scale": "scheduled",
        "regions": "mouth_eye",
        "bn_updates": 4,
        "ranking_single": "nan",
        "gmm_fit_order": "shuffled_2024",
    },
    "clean": {"threshold": "held_out", "resample_photographic": True, "no_landmarks": "drop"},
}

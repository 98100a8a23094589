"""What ``fitted.json`` of a fitted folder holds, checked before any of it is used: the folder may be a stranger's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from harness.api.contract import Chain
from harness.api.errors import DataError
from harness.api.protocol import Protocol


class _Weights(BaseModel):
    kind: str
    identity: str
    file: str | None = None
    seed: int = 0
    sha256: str | None = None


class _Numerics(BaseModel):
    threads: int | None = Field(ge=1)
    device: Literal["cpu", "cuda", "mps", "xpu"] = "cpu"


class _Match(BaseModel):
    """What :class:`harness.data.edits.MatchFormat` takes; a run's also states the filter."""

    size: int = Field(ge=8, le=8192)
    quality: int = Field(ge=1, le=100)


class _Edits(BaseModel):
    rotate: bool = False
    match_format: _Match | None = None


class _Document(BaseModel):
    detector: str
    options: dict[str, Any]
    protocol: Protocol
    weights: dict[str, _Weights]
    threshold: float = Field(allow_inf_nan=False)
    edits: _Edits
    micro_batches: list[int]
    numerics: _Numerics


def check_document(document: Any, folder: Path) -> Protocol:
    """The protocol of a parsed ``fitted.json``, once everything in it has the type it should have.

    Raises:
        DataError: the first key that is missing or cannot be meant.
    """
    try:
        return _Document.model_validate(document).protocol
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        what = f"not a fitted detector: fitted.json lacks {key}" if first["type"] == "missing" else (
            f"not a fitted detector: fitted.json, {key or 'all of it'}: {first['msg']}"
        )  # fmt: skip
        raise DataError(what, where=folder, fix="fit it again, or copy the whole folder") from None


def check_fits(document: Any, chain: Chain, folder: Path) -> None:
    """Refuse a ``fitted.json`` whose weights or batches are not those of its detector.

    Raises:
        DataError: other slots, or another number of stages.
    """
    sizes, stages = document["micro_batches"], len(chain.transforms) + 1
    if set(document["weights"]) != set(chain.slots) or len(sizes) != stages or min(sizes) < 1:
        what = f"not a fitted detector: its weights or micro-batches are not those of {document['detector']!r}"
        raise DataError(what, where=folder, fix="fit it again, or copy the whole folder")

"""Capability: abstaining, and reading a file beside the image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench_plugins.calibrated import Calibrated
from bench_plugins.pixels import Square
from harness.api.contract import Abstain, Facts, FixedThreshold, Preprocess

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FaceSquare(Preprocess):
    """The face as a small square: the box ``[left, top, right, bottom]`` of ``<image>.json`` where there is one.

    Abstains on faces that are smaller than ``smallest`` pixels or darker than ``darkest`` on average.
    """

    smallest: int = 40
    darkest: float = 20.0

    def sidecar(self, image: Path) -> Path | None:
        """``<image>.json``."""
        return image.with_name(image.name + ".json")

    def __call__(self, pixels: np.ndarray, sidecar: Path | None = None) -> Tensor:
        """``[3, 32, 32]`` float32."""
        if sidecar is not None and sidecar.is_file():
            left, top, right, bottom = json.loads(sidecar.read_text())["box"]
            pixels = np.ascontiguousarray(pixels[top:bottom, left:right])
        if min(pixels.shape[:2]) < self.smallest or pixels.mean() < self.darkest:
            raise Abstain
        return Square(32)(pixels)


class Abstainer(Calibrated):
    """``calibrated`` on faces, where there is one to judge."""

    name = "abstainer"
    facts = Facts("Faces alone", "nobody: made for tests", "this package", "Apache-2.0")

    def preprocess(self) -> Preprocess:
        """The face, or nothing."""
        return FaceSquare()

    def threshold(self) -> FixedThreshold:  # type: ignore[override]
        """A published number."""
        return FixedThreshold(16.0)

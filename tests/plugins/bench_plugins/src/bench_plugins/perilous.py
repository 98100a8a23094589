"""``calibrated`` that, where a test asks for it, ends or stops its process over an image, or dawdles; nothing of this
changes a score.

``BENCH_PLUGINS_PERIL``: ``exit`` or ``hang``, and sha256 of the pixels that do it (``exit:3fa..,77b..``).
``BENCH_PLUGINS_DAWDLE``: ``features``, ``fit`` or ``score``, a folder to leave a word in, seconds to wait there
(``fit:/tmp/x:60``).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench_plugins.calibrated import Calibrated
from bench_plugins.gaussian import FittedGaussian, GaussianHead
from bench_plugins.pixels import PixelStatistics, Square
from harness.api.contract import Extractor, Facts, FitData, FittedHead, Head, Preprocess, Weights

if TYPE_CHECKING:
    from torch import Tensor


def dawdle(place: str) -> None:
    """Leave word that this place was reached, and wait there, if a test wants that."""
    where, _, rest = os.environ.get("BENCH_PLUGINS_DAWDLE", "").partition(":")
    if where == place:
        folder, _, seconds = rest.rpartition(":")
        (Path(folder) / place).touch()
        time.sleep(float(seconds))


@dataclass(frozen=True)
class PerilousSquare(Square):
    """Ends or stops the process over some pixels."""

    def __call__(self, pixels: np.ndarray, sidecar: Path | None = None) -> Tensor:
        """As Square."""
        how, _, digests = os.environ.get("BENCH_PLUGINS_PERIL", "").partition(":")
        if how and hashlib.sha256(pixels.tobytes()).hexdigest() in digests.split(","):
            if how == "exit":
                os._exit(1)
            time.sleep(3600)
        return super().__call__(pixels, sidecar)


@dataclass(frozen=True)
class SlowStatistics(PixelStatistics):
    """Dawdles before each micro-batch of four."""

    micro_batch = 4

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """As PixelStatistics."""
        statistics = super().load(weights, device)

        def slowly(images: Tensor) -> Tensor:
            dawdle("features")
            return statistics(images)

        return slowly


@dataclass(frozen=True)
class SlowFitted(FittedGaussian):
    """Dawdles before it scores."""

    def score(self, features: np.ndarray) -> np.ndarray:
        """As FittedGaussian."""
        dawdle("score")
        return super().score(features)


@dataclass(frozen=True)
class SlowGaussian(GaussianHead):
    """Dawdles before it is fitted, or ends the process."""

    @property
    def fitted_class(self) -> type[FittedHead]:
        """SlowFitted."""
        return SlowFitted

    def fit(self, data: FitData | None, weights: Weights) -> FittedGaussian:
        """As GaussianHead."""
        dawdle("fit")
        if os.environ.get("BENCH_PLUGINS_PERIL") == "head:":
            os._exit(1)
        return super().fit(data, weights)


class Perilous(Calibrated):
    """``calibrated`` with faults to order."""

    name = "perilous"
    facts = Facts("Pixel statistics, with faults", "nobody: made for tests", "this package", "Apache-2.0")

    def preprocess(self) -> Preprocess:
        """A small square."""
        return PerilousSquare(self.options.side)

    def extractor(self) -> Extractor:
        """Nine statistics."""
        return SlowStatistics(self.options.gain)

    def head(self) -> Head:
        """One Gaussian."""
        return SlowGaussian(self.options.shrink)

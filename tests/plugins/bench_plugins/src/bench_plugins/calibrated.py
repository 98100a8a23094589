"""Capability: a threshold calibrated on held-out photographs."""

from __future__ import annotations

from pydantic import Field

from bench_plugins.gaussian import GaussianHead
from bench_plugins.pixels import PixelStatistics, Square
from harness.api.contract import Detector, DetectorOptions, Extractor, Facts, Head, Preprocess, QuantileThreshold


class Options(DetectorOptions):
    """Side of the square, gain of the pixels, shrinkage of the covariance, share of photographs to reject."""

    side: int = Field(default=32, ge=8, le=256)
    gain: float = 1.0
    shrink: float = Field(default=0.1, gt=0, le=1)
    fpr: float = Field(default=0.2, gt=0, lt=1)


class Calibrated(Detector):
    """Distance of pixel statistics from those of photographs."""

    name = "calibrated"
    facts = Facts("Pixel statistics", "nobody: made for tests", "this package", "Apache-2.0")
    Options = Options
    options: Options

    def preprocess(self) -> Preprocess:
        """A small square."""
        return Square(self.options.side)

    def extractor(self) -> Extractor:
        """Nine statistics."""
        return PixelStatistics(self.options.gain)

    def head(self) -> Head:
        """One Gaussian."""
        return GaussianHead(self.options.shrink)

    def threshold(self) -> QuantileThreshold:
        """A quantile of photographs that the head has not seen."""
        return QuantileThreshold(self.options.fpr, "held_out")

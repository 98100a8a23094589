"""Capability: a head that needs another detector's fitted head, and generated images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench_plugins.calibrated import Calibrated
from bench_plugins.calibrated import Options as CalibratedOptions
from bench_plugins.gaussian import GaussianHead
from harness.api.contract import PHOTOGRAPHIC, Facts, FitData, FittedHead, FixedThreshold, Head, Weights


@dataclass(frozen=True)
class FittedLogistic(FittedHead):
    """Logistic regression on standardised features."""

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: float

    def score(self, features: np.ndarray) -> np.ndarray:
        """Probability of generated."""
        z = (np.asarray(features, np.float64) - self.mean) / self.scale
        return 1 / (1 + np.exp(-((z * self.weight).sum(axis=1) + self.bias)))

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Three arrays and the bias."""
        return {"mean": self.mean, "scale": self.scale, "weight": self.weight}, {"bias": self.bias}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> FittedLogistic:
        """The head that ``state`` described."""
        return cls(arrays["mean"], arrays["scale"], arrays["weight"], float(meta["bias"]))


@dataclass(frozen=True)
class LogisticHead(Head):
    """Photographs against generated images and the ``share`` of photographs that ``upstream`` finds least likely."""

    upstream: Head | None = None
    generators: tuple[str, ...] = ()
    share: float = 0.2
    steps: int = 200
    fit_on = "both"

    @property
    def fitted_class(self) -> type[FittedHead]:
        """FittedLogistic."""
        return FittedLogistic

    def fit(self, data: FitData | None, weights: Weights) -> FittedLogistic:
        """Gradient descent over all images, from zero."""
        assert data is not None
        assert data.upstream is not None
        x, y = data.features.astype(np.float64), data.labels.astype(np.float64)
        rows = np.flatnonzero(data.labels == PHOTOGRAPHIC)
        order = np.argsort(-data.upstream.score(data.features[rows]), kind="stable")
        y[rows[order[: int(self.share * len(rows))]]] = 1.0
        mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
        z, weight, bias = (x - mean) / scale, np.zeros(x.shape[1]), 0.0
        for _ in range(self.steps):
            slope = 1 / (1 + np.exp(-((z * weight).sum(axis=1) + bias))) - y
            weight, bias = weight - 0.5 * (z * slope[:, None]).mean(axis=0), bias - 0.5 * float(slope.mean())
        return FittedLogistic(mean, scale, weight, bias)


class Options(CalibratedOptions):
    """Generators whose `train` images the head learns from, and the share of pseudo-outliers."""

    generators: tuple[str, ...] = ()
    share: float = 0.2


class PseudoHeadDetector(Calibrated):
    """The features of ``calibrated`` with a head that names that detector's own."""

    name = "pseudo-head"
    facts = Facts("Pseudo-outliers", "nobody: made for tests", "this package", "Apache-2.0")
    Options = Options
    options: Options

    def head(self) -> Head:
        """Logistic regression above the Gaussian that ``calibrated`` fits."""
        return LogisticHead(GaussianHead(self.options.shrink), self.options.generators, self.options.share)

    def threshold(self) -> FixedThreshold:  # type: ignore[override]
        """0.5."""
        return FixedThreshold(0.5)

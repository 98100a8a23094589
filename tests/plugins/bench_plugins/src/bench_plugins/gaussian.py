"""A one-class head: how far features lie from those of photographs (Mahalanobis distance, shrunk covariance)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.api.contract import FitData, FittedHead, Head, Weights


@dataclass(frozen=True)
class FittedGaussian(FittedHead):
    """Mean ``[D]`` and whitening matrix ``[D, D]`` of the photographs."""

    mean: np.ndarray
    whiten: np.ndarray

    def score(self, features: np.ndarray) -> np.ndarray:
        """Squared distance; summed row by row, so that no score depends on its companions."""
        centred = np.asarray(features, np.float64) - self.mean
        return np.square((centred[:, None, :] * self.whiten[None]).sum(axis=2)).sum(axis=1)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Both arrays."""
        return {"mean": self.mean, "whiten": self.whiten}, {}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> FittedGaussian:
        """The head that ``state`` described."""
        return cls(arrays["mean"], arrays["whiten"])


@dataclass(frozen=True)
class GaussianHead(Head):
    """Mean and covariance of the photographs; ``shrink`` is the share of the identity in the covariance."""

    shrink: float = 0.1
    fit_on = "photographic"

    @property
    def fitted_class(self) -> type[FittedHead]:
        """FittedGaussian."""
        return FittedGaussian

    def fit(self, data: FitData | None, weights: Weights) -> FittedGaussian:
        """Moments of ``data.photographic``."""
        assert data is not None
        x = data.photographic.astype(np.float64)
        mean = x.mean(axis=0)
        covariance = np.atleast_2d(np.cov(x - mean, rowvar=False)) if len(x) > 1 else np.eye(x.shape[1])
        scale = float(np.trace(covariance)) / len(covariance) or 1.0
        shrunk = (1 - self.shrink) * covariance + self.shrink * scale * np.eye(len(covariance))
        return FittedGaussian(mean, np.linalg.inv(np.linalg.cholesky(shrunk)))

"""Heads that detectors share: identity and Gaussian mixture (the perceptron is in `harness.api.mlp`).

Scores of a row depend on that row alone, to the bit: matrix products run on blocks of one fixed size, the last
one padded, because BLAS rounds differently for different numbers of rows. State is arrays and JSON, never a pickle.
scikit-learn and torch are imported when a head is fitted, not before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from harness.api.contract import FitData, FittedHead, Head, Weights
from harness.api.errors import ProtocolError

BLOCK = 64
"""Rows of one matrix product when scoring."""


def in_blocks(features: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`function` of float64 blocks `[BLOCK, D]` of `features [N, D]`, joined to `[N, ...]`; the last is padded
    with copies of its first row, so that no row's value depends on how many others there are."""
    rows = np.ascontiguousarray(features, dtype=np.float64)
    out = [function(np.zeros((BLOCK, rows.shape[1])))[:0]]
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        lack = BLOCK - len(block)
        padded = np.concatenate([block, np.repeat(block[:1], lack, axis=0)]) if lack else block
        out.append(function(padded)[: len(block)])
    return np.concatenate(out)


def check_dim(features: np.ndarray, dim: int, what: str) -> None:
    """ProtocolError unless `features` is `[N, dim]`."""
    if features.ndim != 2 or features.shape[1] != dim:
        raise ProtocolError(f"{what} was made for {dim} features an image, got an array {features.shape}")


@dataclass(frozen=True)
class FittedIdentity(FittedHead):
    """One feature as it stands is the score."""

    column: int

    def score(self, features: np.ndarray) -> np.ndarray:
        """That column `[N]` of features `[N, D]`, float64."""
        return np.asarray(features, dtype=np.float64)[:, self.column]

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """No array; the column."""
        return {}, {"column": self.column}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> FittedIdentity:
        """The head that `state` described."""
        return cls(int(meta["column"]))


@dataclass(frozen=True)
class IdentityHead(Head):
    """For extractors whose output is the score already (networks that end in a logit, distances)."""

    column: int = 0

    @property
    def fitted_class(self) -> type[FittedHead]:
        """FittedIdentity."""
        return FittedIdentity

    def fit(self, data: FitData | None, weights: Weights) -> FittedIdentity:
        """Nothing to fit."""
        return FittedIdentity(self.column)


@dataclass(frozen=True)
class FittedMixture(FittedHead):
    """A Gaussian mixture of K full-covariance components; score = −log p, high for what is unlike the fit set.

    Attributes:
        mixing: `[K]`, component weights.
        means: `[K, D]`.
        precisions: `[K, D, D]`, upper Cholesky factors of the inverse covariances (scikit-learn's
            `precisions_cholesky_`).
        normalise: features are scaled to unit norm first.
        fit: JSON facts of the fit (images, iterations, converged, lower bound).
    """

    mixing: np.ndarray
    means: np.ndarray
    precisions: np.ndarray
    normalise: bool
    fit: Mapping[str, Any]

    def log_likelihood(self, features: np.ndarray) -> np.ndarray:
        """log p `[N]` float64 of features `[N, D]` (scikit-learn's `score_samples`)."""
        num, dim = self.means.shape
        check_dim(features, dim, "the mixture")
        diagonal = np.diagonal(self.precisions, axis1=1, axis2=2)
        offset = np.log(self.mixing) + np.log(diagonal).sum(axis=1) - 0.5 * dim * np.log(2 * np.pi)

        def block(rows: np.ndarray) -> np.ndarray:
            if self.normalise:
                rows = unit_norm(rows)
            logs = np.empty((BLOCK, num))
            for k in range(num):
                whitened = (rows - self.means[k]) @ self.precisions[k]
                logs[:, k] = offset[k] - 0.5 * np.square(whitened).sum(axis=1)
            peak = logs.max(axis=1)
            return peak + np.log(np.exp(logs - peak[:, None]).sum(axis=1))

        return in_blocks(features, block)

    def score(self, features: np.ndarray) -> np.ndarray:
        """−log p `[N]` float64."""
        return -self.log_likelihood(features)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Three float64 arrays; the facts of the fit."""
        arrays = {"mixing": self.mixing, "means": self.means, "precisions": self.precisions}
        return arrays, {"normalise": self.normalise, "fit": dict(self.fit)}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> FittedMixture:
        """The head that `state` described."""
        mixing, means, precisions = (
            np.asarray(arrays[name], dtype=np.float64) for name in ("mixing", "means", "precisions")
        )
        return cls(mixing, means, precisions, normalise=bool(meta["normalise"]), fit=dict(meta["fit"]))


def unit_norm(rows: np.ndarray) -> np.ndarray:
    """Rows `[N, D]` scaled to Euclidean norm 1; rows of zeros stay zero."""
    norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    return cast("np.ndarray", rows / np.where(norms == 0, 1, norms))


def mixture_parameters(components: int, dim: int) -> int:
    """Free parameters of a full-covariance mixture's means and covariances: K·(D + D(D+1)/2)."""
    return components * (dim + dim * (dim + 1) // 2)


@dataclass(frozen=True)
class MixtureHead(Head):
    """Gaussian mixture of the photographs' features (METHOD "OC"): full covariance, k-means++ start.

    Attributes:
        components: K.
        normalise: scale features to unit norm first; BLADES's are already, Zou25's must not be.
        seed: `random_state` of the k-means++ start.
        order: `list`, or `shuffled_2024` as released (`shuffled_order`); k-means++ depends on it.

    scikit-learn's defaults otherwise (reg_covar 1e-6, tol 1e-3, at most 100 iterations). Fitted in float64.
    *Deviation*: the released code fits in float32, which moves its own scores by about 1e-5.

    Source: METHOD "Detection"; AIGFD_BLO at 5f26ede, OC_GMM.py.
    """

    components: int = 10
    normalise: bool = False
    seed: int = 2024
    order: Literal["list", "shuffled_2024"] = "list"

    fit_on = "photographic"

    @property
    def fitted_class(self) -> type[FittedHead]:
        """FittedMixture."""
        return FittedMixture

    def fit_order(self, count: int) -> np.ndarray:
        """The order `[count]` in which photographs are presented."""
        return np.arange(count) if self.order == "list" else shuffled_order(count)

    def fit(self, data: FitData | None, weights: Weights) -> FittedMixture:
        """The mixture of `data.photographic`.

        Raises:
            ProtocolError: fewer photographs than components, or a covariance that is singular.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        assert data is not None
        features = np.ascontiguousarray(data.photographic, dtype=np.float64)
        if len(features) < self.components:
            raise ProtocolError(
                f"a mixture of {self.components} components needs as many photographs, got {len(features)}",
                fix="give more photographs to fit on, or fewer components",
            )
        if self.normalise:
            features = unit_norm(features)
        model = GaussianMixture(
            n_components=self.components,
            covariance_type="full",
            init_params="k-means++",
            random_state=self.seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said in the facts of the fit instead
            try:
                model.fit(features)
            except ValueError as error:
                raise ProtocolError(
                    f"the mixture cannot be fitted on {len(features)} photographs of {features.shape[1]} features: "
                    f"{error}",
                    fix="give more photographs to fit on, fewer components or a smaller feature",
                ) from error
        facts = {
            "images": len(features),
            "iterations": int(model.n_iter_),
            "converged": bool(model.converged_),
            "lower_bound": float(model.lower_bound_),
        }
        return FittedMixture(model.weights_, model.means_, model.precisions_cholesky_, self.normalise, facts)


def shuffled_order(count: int, seed: int = 2024) -> np.ndarray:
    """The order `[count]` in which a shuffling DataLoader visits its items right after `torch.manual_seed(seed)`.

    The loader draws its base seed, then the sampler's seed, from torch's global generator, and permutes with a
    generator of that seed. What cannot be known: whether the released script drew anything (for instance while
    building its network) between seeding and loading; then its order was another.
    Source: FIDELITY `gmm_fit_order`; torch.utils.data, the same from 1.13 to 2.13.
    """
    import torch

    draws = torch.Generator().manual_seed(seed)
    torch.empty((), dtype=torch.int64).random_(generator=draws)
    sampler_seed = int(torch.empty((), dtype=torch.int64).random_(generator=draws).item())
    return torch.randperm(count, generator=torch.Generator().manual_seed(sampler_seed)).numpy()

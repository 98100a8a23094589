"""Shared heads: the mixture equals the released fit, and no row's score depends on another row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from harness.api.contract import FitData, QuantileThreshold, predict
from harness.api.errors import ProtocolError
from harness.api.heads import (
    BLOCK,
    FittedIdentity,
    FittedMixture,
    IdentityHead,
    MixtureHead,
    mixture_parameters,
    shuffled_order,
)


def photographs(features: np.ndarray) -> FitData:
    return FitData(features, np.zeros(len(features), dtype=np.int8), [""] * len(features))


def drawn_mixture(dim: int = 6, components: int = 3, seed: int = 0, normalise: bool = False) -> FittedMixture:
    rng = np.random.default_rng(seed)
    factors = np.triu(rng.standard_normal((components, dim, dim)))
    factors[:, range(dim), range(dim)] = 1 + np.abs(factors[:, range(dim), range(dim)])
    mixing = np.full(components, 1 / components)
    return FittedMixture(mixing, rng.standard_normal((components, dim)), factors, normalise, {"images": 9})


def test_mixture_threshold_and_metrics_equal_the_released_fit(golden_dir: Path) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    golden = np.load(golden_dir / "gmm.npz", allow_pickle=False)
    head = MixtureHead().fit(photographs(golden["train"]), {})
    for ours, name in ((head.mixing, "weights_"), (head.means, "means_"), (head.precisions, "precisions_cholesky_")):
        np.testing.assert_allclose(ours, golden[f"f64/{name}"], rtol=0, atol=1e-6)
    scores = {part: head.score(golden[part]) for part in ("train", "real", "fake")}
    for part, score in scores.items():
        np.testing.assert_allclose(-score, golden[f"f64/score_{part}"], rtol=0, atol=1e-6)
    threshold = QuantileThreshold(0.05).value(scores["train"])
    np.testing.assert_allclose(-threshold, golden["f64/threshold"], rtol=0, atol=1e-6)
    score = np.concatenate([scores["real"], scores["fake"]])
    label = np.repeat([0, 1], [len(scores["real"]), len(scores["fake"])])
    accuracy = (predict(score, threshold) == label).mean()
    released = [accuracy, roc_auc_score(label, score), average_precision_score(1 - label, -score)]
    np.testing.assert_allclose(np.multiply(released, 100), golden["f64/acc_auc_ap_pct"], rtol=0, atol=1e-6)
    ours = 100 * average_precision_score(label, score)
    np.testing.assert_allclose(ours, golden["f64/ap_fake_positive_pct"], rtol=0, atol=1e-6)
    assert head.fit["converged"]
    assert head.fit["iterations"] == golden["f64/n_iter_"]


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 3 * BLOCK + 1), dim=st.sampled_from([1, 3, 16, 33]), seed=st.integers(0, 99),
    normalise=st.booleans(),
)  # fmt: skip
def test_a_rows_score_is_the_same_bits_alone_in_any_order_and_in_any_company(
    count: int, dim: int, seed: int, normalise: bool
) -> None:
    head = drawn_mixture(dim, seed=seed, normalise=normalise)
    features = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    order = np.random.default_rng(seed + 1).permutation(count)
    scores = head.score(features)
    assert scores.shape == (count,)
    np.testing.assert_array_equal(head.score(features[order]), scores[order])
    np.testing.assert_array_equal(head.score(features[count // 2 :]), scores[count // 2 :])
    np.testing.assert_array_equal(head.score(features[:1]), scores[:1])


def test_mixture_score_is_minus_the_log_density() -> None:
    head = drawn_mixture()
    row = np.random.default_rng(3).standard_normal((1, 6))
    density = 0.0
    for weight, mean, factor in zip(head.mixing, head.means, head.precisions, strict=True):
        covariance = np.linalg.inv(factor @ factor.T)
        distance = (row - mean) @ np.linalg.inv(covariance) @ (row - mean).T
        density += weight * np.exp(-0.5 * distance.item()) / np.sqrt(np.linalg.det(2 * np.pi * covariance))
    np.testing.assert_allclose(head.score(row), -np.log(density), rtol=1e-9)


def test_no_rows_give_no_scores_and_wrong_widths_are_an_error() -> None:
    head = drawn_mixture()
    assert head.score(np.empty((0, 6), dtype=np.float32)).shape == (0,)
    with pytest.raises(ProtocolError, match="6 features"):
        head.score(np.zeros((2, 5)))


def test_normalise_makes_the_score_blind_to_length() -> None:
    features = np.random.default_rng(0).standard_normal((300, 4))
    head = MixtureHead(components=2, normalise=True).fit(photographs(features), {})
    np.testing.assert_allclose(head.score(3 * features), head.score(features), rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [0, 9])
def test_fewer_photographs_than_components_is_an_error(count: int) -> None:
    with pytest.raises(ProtocolError, match="10 components"):
        MixtureHead().fit(photographs(np.zeros((count, 3), dtype=np.float32)), {})


@pytest.mark.parametrize("head", [drawn_mixture(normalise=True), FittedIdentity(1)])
def test_state_restores_the_same_scores(head: FittedMixture | FittedIdentity) -> None:
    features = np.random.default_rng(0).standard_normal((70, 6)).astype(np.float32)
    arrays, meta = head.state()
    np.testing.assert_array_equal(type(head).restore(arrays, meta).score(features), head.score(features))


def test_identity_passes_its_column_on() -> None:
    features = np.array([[1, 2], [3, 4]], dtype=np.float32)
    np.testing.assert_array_equal(IdentityHead(1).fit(None, {}).score(features), [2.0, 4.0])


@pytest.mark.parametrize("workers_batch", [1, 7])
def test_shuffled_order_is_the_one_of_a_shuffling_loader_seeded_just_before(workers_batch: int) -> None:
    state = torch.get_rng_state()
    try:
        torch.manual_seed(2024)
        loaded = torch.cat(list(DataLoader(list(range(100)), batch_size=workers_batch, shuffle=True)))
    finally:
        torch.set_rng_state(state)
    np.testing.assert_array_equal(shuffled_order(100), loaded.numpy())
    np.testing.assert_array_equal(MixtureHead(order="shuffled_2024").fit_order(100), loaded.numpy())
    np.testing.assert_array_equal(MixtureHead().fit_order(3), [0, 1, 2])


def test_a_component_of_768_features_has_as_many_parameters_as_the_formula_says() -> None:
    assert mixture_parameters(1, 768) == 768 + 768 * 769 // 2 == 296_064

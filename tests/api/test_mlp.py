"""The perceptron head: strict about its file, trained alike every time, blind to other rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.api.contract import FitData, FittedHead
from harness.api.errors import ProtocolError, WeightsError
from harness.api.heads import FittedIdentity
from harness.api.mlp import FittedMlp, LoadedMlp, TrainedMlp, random_mlp
from harness.api.weights import ResolvedWeights, file_digest

HEAD = TrainedMlp(generators=("a",), upstream=None, pseudo_share=0.0, hidden=16, epochs=30, lr=1e-2)


def two_classes(count: int = 200, seed: int = 0, upstream: FittedHead | None = None) -> FitData:
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 4 == 0).astype(np.int8)
    features = rng.standard_normal((count, 5)).astype(np.float32) + 2 * labels[:, None]
    return FitData(features, labels, ["a" if label else "" for label in labels], upstream)


def stored(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, ResolvedWeights]:
    torch.save({"model": tensors}, path)
    return {"weights": ResolvedWeights("file", file_digest(path), path)}


def test_trained_head_separates_and_balanced_classes_share_the_loss() -> None:
    data = two_classes()
    fitted = HEAD.fit(data, {})
    called = fitted.score(data.features) > 0.5
    assert (called == (data.labels == 1)).mean() > 0.95
    assert (fitted.fit["photographic"], fitted.fit["generated"]) == (150, 50)
    one_sided = replace(HEAD, balanced=False, epochs=3).fit(data, {}).score(data.features)
    even = replace(HEAD, epochs=3).fit(data, {}).score(data.features)
    assert even.mean() > one_sided.mean()


def test_training_gives_the_same_bits_whatever_ran_before_and_keeps_torchs_settings() -> None:
    first = HEAD.fit(two_classes(), {}).state()[0]
    torch.manual_seed(77)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    again = HEAD.fit(two_classes(), {}).state()[0]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert all(np.array_equal(first[name], again[name]) for name in first)
    other = replace(HEAD, seed=1).fit(two_classes(), {}).state()[0]
    assert not np.array_equal(first["fc1.weight"], other["fc1.weight"])


def test_pseudo_outliers_are_the_least_likely_photographs_and_no_generated_image() -> None:
    data = two_classes(upstream=FittedIdentity(0))
    head = replace(HEAD, pseudo_share=0.1)
    chosen = head.pseudo_outliers(data)
    assert chosen.sum() == 15
    assert not data.labels[chosen].any()
    left = (data.labels == 0) & ~chosen
    assert data.features[chosen, 0].min() >= data.features[left, 0].max()
    assert head.fit(data, {}).fit["pseudo_outliers"] == 15


def test_what_cannot_be_trained_is_an_error() -> None:
    data = two_classes()
    with pytest.raises(ProtocolError, match="upstream"):
        replace(HEAD, pseudo_share=0.1).fit(data, {})
    for label in (0, 1):
        rows = data.labels == label
        with pytest.raises(ProtocolError, match="both classes"):
            HEAD.fit(FitData(data.features[rows], data.labels[rows], [""] * int(rows.sum())), {})
    with pytest.raises(ProtocolError, match="diverged"):
        HEAD.fit(FitData(data.features * np.float32(np.inf), data.labels, data.generators), {})


@pytest.mark.parametrize("count", [1, 64, 65, 130])
def test_a_rows_score_is_the_same_bits_alone_and_in_any_order(count: int) -> None:
    named = {name: value.numpy() for name, value in random_mlp(5, 33, seed=0).items()}
    head = FittedMlp.of(named, {})
    features = np.random.default_rng(0).standard_normal((count, 5)).astype(np.float32)
    scores, order = head.score(features), np.random.default_rng(1).permutation(count)
    np.testing.assert_array_equal(head.score(features[order]), scores[order])
    np.testing.assert_array_equal(head.score(features[-1:]), scores[-1:])
    restored = FittedMlp.restore(*head.state())
    np.testing.assert_array_equal(restored.score(features), scores)
    logits = head.logits(features)
    np.testing.assert_allclose(scores, np.exp(logits[:, 1]) / np.exp(logits).sum(axis=1), rtol=1e-12)


def test_scores_stay_finite_for_huge_logits() -> None:
    named = {name: value.numpy() * 1e5 for name, value in random_mlp(3, 4, seed=0).items()}
    scores = FittedMlp.of(named, {}).score(np.random.default_rng(0).standard_normal((50, 3)))
    assert np.isfinite(scores).all()
    assert ((scores >= 0) & (scores <= 1)).all()


def test_loaded_head_is_the_files_and_other_tensors_are_left_alone(tmp_path: Path) -> None:
    tensors = {**random_mlp(5, 7, seed=3), "model.model.visual.conv1.weight": torch.zeros(1)}
    head = LoadedMlp(5, 7).fit(None, stored(tmp_path / "BC.pth", tensors))
    np.testing.assert_array_equal(head.fc1_weight, tensors["fc1.weight"].numpy())
    assert head.fit == {}


def test_a_file_without_a_fitting_head_is_refused_by_name(tmp_path: Path) -> None:
    good = random_mlp(5, 7, seed=3)
    cases = {
        "no binary head": {"model.visual.conv1.weight": torch.zeros(1)},
        "lacks fc2.bias": {k: v for k, v in random_mlp(5, 9, seed=3).items() if k != "fc2.bias"},
        r"fc1.weight is \[7, 5\], expected \[9, 5\]": good,
        "not finite": {**random_mlp(5, 9, seed=0), "fc2.bias": torch.tensor([0.0, float("nan")])},
    }
    for words, tensors in cases.items():
        with pytest.raises(WeightsError, match=words):
            LoadedMlp(5, 9).fit(None, stored(tmp_path / "BC.pth", tensors))


def test_random_weights_give_a_random_head_of_the_seed() -> None:
    def head(seed: int) -> FittedMlp:
        return LoadedMlp(5, 7).fit(None, {"weights": ResolvedWeights("random", f"random:{seed}", seed=seed)})

    np.testing.assert_array_equal(head(1).fc1_weight, head(1).fc1_weight)
    assert not np.array_equal(head(1).fc1_weight, head(2).fc1_weight)

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


def test_pseudo_outliers_change_sides_or_are_on_both_and_weigh_what_is_said() -> None:
    data = two_classes(upstream=FittedIdentity(0))
    head = replace(HEAD, pseudo_share=0.1)
    moved = head.fit(data, {})
    kept = replace(head, pseudo_keep=True).fit(data, {})
    assert (moved.fit["photographic"], kept.fit["photographic"]) == (135, 150)
    assert moved.fit["pseudo_outliers"] == kept.fit["pseudo_outliers"] == 15
    heavy = replace(head, pseudo_weight=20.0).fit(data, {})
    rows = head.pseudo_outliers(data)
    plain = HEAD.fit(data, {})
    means = [fitted.score(data.features[rows]).mean() for fitted in (plain, kept, moved, heavy)]
    assert means == sorted(means)
    assert means[0] < means[1] - 0.02 < means[2] - 0.04
    # photographs weigh N / (2 * 150) = 2 / 3 each, generated images N / (2 * 50) = 2, a pseudo-outlier 20 times 2 / 3
    samples = replace(head, pseudo_weight=20.0)._samples(data, rows)
    assert np.unique(samples.weight[rows]) == pytest.approx([20 * 2 / 3])
    assert np.unique(samples.weight[~rows & (data.labels == 0)]) == pytest.approx([2 / 3])
    assert np.unique(samples.weight[data.labels == 1]) == pytest.approx([2.0])


def test_images_held_out_are_not_trained_on() -> None:
    data = two_classes(120)
    head = replace(HEAD, epochs=1, hold_out=0.25)
    held = head._held(data.labels)
    assert held[data.labels == 0].sum() == 22  # a quarter of 90 photographs, cut to whole ones
    assert held[data.labels == 1].sum() == 7
    moved = data.features.copy()
    moved[held] += 100
    one, two = head.fit(data, {}), head.fit(FitData(moved, data.labels, data.generators), {})
    assert np.array_equal(one.fc1_weight, two.fc1_weight)
    assert one.fit["held_out_loss"] != two.fit["held_out_loss"]
    moved[~held] += 1
    three = head.fit(FitData(moved, data.labels, data.generators), {})
    assert not np.array_equal(one.fc1_weight, three.fc1_weight)


def test_images_held_out_choose_the_epoch_and_end_the_training() -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(120) % 2).astype(np.int8)
    features = (rng.standard_normal((120, 5)) + 0.7 * labels[:, None]).astype(np.float32)
    data = FitData(features, labels, ["a" if label else "" for label in labels])
    head = replace(HEAD, lr=0.03, hidden=64, hold_out=0.3, patience=6)
    held = head._held(labels)

    fitted = replace(head, epochs=500).fit(data, {})
    chosen, ran = fitted.fit["epoch"], fitted.fit["epochs"]
    assert ran == chosen + 6 < 500
    score = fitted.score(features[held])
    loss = float(-np.log(np.where(labels[held] == 1, score, 1 - score)).mean())  # both classes weigh 1
    assert fitted.fit["held_out_loss"] == pytest.approx(loss, rel=1e-5)
    assert np.array_equal(fitted.fc1_weight, replace(head, epochs=chosen).fit(data, {}).fc1_weight)
    assert fitted.fit["held_out_loss"] < replace(head, epochs=1).fit(data, {}).fit["held_out_loss"]
    last = replace(head, hold_out=0.0, patience=5, epochs=500).fit(data, {})
    assert (last.fit["epoch"], last.fit["held_out"]) == (500, 0)


def test_what_cannot_be_trained_is_an_error() -> None:
    data = two_classes()
    with pytest.raises(ProtocolError, match="upstream"):
        replace(HEAD, pseudo_share=0.1).fit(data, {})
    for label in (0, 1):
        rows = data.labels == label
        with pytest.raises(ProtocolError, match="both classes"):
            HEAD.fit(FitData(data.features[rows], data.labels[rows], [""] * int(rows.sum())), {})
    with pytest.raises(ProtocolError, match=r"hold_out 0\.01 of 50 images of a class is none"):
        replace(HEAD, hold_out=0.01).fit(data, {})
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

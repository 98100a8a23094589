"""Supervised training of the one-logit networks: it learns, repeats itself, and its file loads in the detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from detectors.cnnd import CnndPreprocess
from detectors.logit import ResNetLogit
from detectors.logit_training import ResNetLogitStep
from detectors.networks.resnet import ResNet
from harness.api.errors import ConfigError, WeightsError
from harness.api.protocol import Protocol
from harness.api.trainer import train
from harness.api.training import Recipe, TrainingImages, stream
from harness.api.weights import ResolvedWeights, file_digest

SMALL = ResNetLogit("small")
AUGMENT = [{"resize": 76}, {"jpeg": {"p": 0.3}}, {"crop": 64}, {"flip": 0.5}]


def pixels(split: str, i: int) -> np.ndarray:
    """Even rows are photographs: noise; odd ones generated: the same noise, smoothed."""
    rng = stream(1, split, i)
    noise = rng.normal(0, 40, (80, 80, 3))
    if i % 2:
        noise = sum(np.roll(noise, shift, axis=1) for shift in range(4)) / 2
    return np.clip(128 + noise, 0, 255).astype(np.uint8)


def images(train_count: int = 64, select_count: int = 32) -> TrainingImages:
    counts = {"train": train_count, "select": select_count}
    labels = {s: (np.arange(n) % 2).astype(np.int8) for s, n in counts.items()}
    return TrainingImages(
        read=pixels, labels=labels, generators={s: ["g" if v else "" for v in values] for s, values in labels.items()},
        digests={s: [f"{s}{i}" for i in range(n)] for s, n in counts.items()}, preprocess=CnndPreprocess(64),
    )  # fmt: skip


def recipe(**changes: Any) -> Recipe:
    values = {
        "recipe": "t", "detector": "cnnd", "step": "supervised", "epochs": 20, "batch_size": 16, "lr": 1e-3,
        "optimizer": "adam", "weight_decay": 0.0, "schedule": "constant", "seed": 3, **changes,
    }  # fmt: skip
    return Recipe(**values)


def step(**settings: Any) -> ResNetLogitStep:
    return ResNetLogitStep(SMALL, {"augment": AUGMENT, **settings}, images(), Protocol.named("paper"))


def kept(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> ResolvedWeights:
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    return ResolvedWeights("file", file_digest(path), path=path)


def test_it_learns_what_tells_the_classes_apart_and_its_file_loads(tmp_path: Path) -> None:
    result = train(step(augment=[{"crop": 64}, {"flip": 0.5}]), recipe(), threads=1)
    assert result.metrics["accuracy"] > 0.8
    logit = SMALL.load({"weights": kept(tmp_path, result.tensors)}, "cpu")
    inputs = torch.stack([CnndPreprocess(64)(pixels("select", i)) for i in range(32)])
    called = logit(inputs)[:, 0] > 0
    accuracy = float((called == (torch.arange(32) % 2).bool()).double().mean())
    assert accuracy == pytest.approx(result.metrics["accuracy"], abs=1 / 32)


def test_equal_trainings_are_equal_and_augmentations_change_each_epoch() -> None:
    one, two = (train(step(), recipe(epochs=1), threads=1) for _ in range(2))
    assert all(torch.equal(one.tensors[k], two.tensors[k]) for k in one.tensors)
    made = step()
    first, again, later = (made.batch(epoch, 0, 16, 3) for epoch in (0, 0, 1))
    assert torch.equal(first.inputs, again.inputs)
    row = first.names[0]
    place = next(later_batch for i in range(4) if row in (later_batch := made.batch(1, i, 16, 3)).names)
    assert not torch.equal(first.inputs[0], place.inputs[place.names.index(row)])
    assert later.inputs.shape == (16, 3, 64, 64)


def test_balanced_batches_are_half_generated_and_go_round_the_smaller_class() -> None:
    few = images(64, 8)
    few = replace(few, labels={**few.labels, "train": (np.arange(64) % 8 == 1).astype(np.int8)})  # 8 of 64 generated
    made = ResNetLogitStep(SMALL, {"augment": AUGMENT, "balanced": True}, few, Protocol.named("paper"))
    assert made.num_batches(16) == 56 // 8
    batches = [made.batch(2, i, 16, 3) for i in range(7)]
    assert all(batch.labels.tolist() == [0, 1] * 8 for batch in batches)  # each process's part has both
    names = np.array([batch.names for batch in batches])
    photographs, generated = names[:, ::2], names[:, 1::2]
    assert len(np.unique(photographs)) == 56
    rounds = [sorted(turn) for turn in generated]
    assert all(turn == rounds[0] and len(set(turn)) == 8 for turn in rounds)  # each image once a round
    assert len({tuple(turn) for turn in generated}) == 7  # in another order each
    again = made.batch(2, 3, 16, 3)
    assert again.names == batches[3].names
    assert torch.equal(again.inputs, batches[3].inputs)
    assert made.batch(3, 3, 16, 3).names != again.names
    with pytest.raises(ConfigError, match="balanced batches cannot have 15 images"):
        made.num_batches(15)


def test_balanced_batches_go_on_with_the_round_where_the_last_one_ended() -> None:
    odd = replace(images(64, 8), labels={"train": (np.arange(64) < 5).astype(np.int8), "select": np.array([0, 1] * 4)})
    made = ResNetLogitStep(SMALL, {"balanced": True}, odd, Protocol.named("paper"))
    found = [name for i in range(made.num_batches(8)) for name in made.batch(0, i, 8, 3).names[1::2]]
    assert all(len(set(found[i : i + 5])) == 5 for i in range(0, len(found) - 5, 5))  # 4 a batch, 5 a round


def test_it_starts_from_given_weights_but_for_the_last_layer(tmp_path: Path) -> None:
    given = ResNet.seeded(1000, 5, stem=16, hidden_sizes=(64, 128, 256, 512), depths=(2, 2, 2, 2)).to_torchvision()
    begun = step()
    begun.begin_with({"weights": kept(tmp_path, {k: v.contiguous().clone() for k, v in given.items()})})
    begun.start(3, "cpu")
    found = begun.export()
    assert found["fc.weight"].shape == (1, 512)
    assert all(torch.equal(found[k], v) for k, v in given.items() if not k.startswith("fc."))
    assert 0.01 < float(found["fc.weight"].std()) < 0.03
    assert not found["fc.bias"].any()
    other = step()
    other.begin_with({"weights": kept(tmp_path, {"conv1.weight": torch.ones(3)})})
    with pytest.raises(WeightsError):
        other.start(3, "cpu")


def test_settings_and_slots_that_cannot_be_meant_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="augmant"):
        step(augmant=[])
    with pytest.raises(ConfigError, match="unknown augmentation"):
        step(augment=[{"blurr": 1}])
    with pytest.raises(ConfigError, match="unknown slot 'image'"):
        step().begin_with({"image": kept(tmp_path, {"a": torch.ones(1)})})

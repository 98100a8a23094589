"""Joint training: what a batch holds, that it repeats itself, that it learns, and that its file loads as OC.pth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from detectors.blades.config import EncoderConfig
from detectors.blades.image_tower import BladesImageTower, BladesPreprocess
from detectors.blades.joint import BladesJointStep
from detectors.blades.tasks import TASK_NAMES
from harness.api.contract import PHOTOGRAPHIC
from harness.api.errors import ConfigError, DataError
from harness.api.protocol import Protocol
from harness.api.trainer import train
from harness.api.training import Recipe, TrainingImages, stream
from harness.api.weights import ResolvedWeights, file_digest

TINY = EncoderConfig.tiny()
COARSE = {"tasks": ["face_coarse"], "work_size": 32}


def rings(seed: int, i: int, side: int = 32) -> np.ndarray:
    """A stand-in for a face: straight stripes, which a piecewise affine warp bends, with some noise."""
    rng = stream(seed, i)
    y, x = np.mgrid[:side, :side]
    wave = np.sin(rng.uniform(0.8, 1.1) * (x if rng.random() < 0.5 else y) + rng.uniform(0, 6))
    return np.clip(128 + 80 * wave[..., None] + rng.normal(0, 6, (side, side, 3)), 0, 255).astype(np.uint8)


def images(train_count: int = 24, select_count: int = 10, generated: int = 0) -> TrainingImages:
    counts = {"train": train_count, "select": select_count}
    labels = {s: np.array([1] * generated + [PHOTOGRAPHIC] * n, np.int8) for s, n in counts.items()}
    return TrainingImages(
        read=lambda split, i: rings(1 if split == "train" else 2, i),
        labels=labels,
        generators={s: ["g" if v else "" for v in values] for s, values in labels.items()},
        digests={s: [f"{s}{i}" for i in range(len(v))] for s, v in labels.items()},
        preprocess=BladesPreprocess(32),
    )


def recipe(**changes: Any) -> Recipe:
    values = {"recipe": "t", "detector": "blades-oc", "epochs": 2, "batch_size": 8, "lr": 3e-3, "seed": 5, **changes}
    return Recipe(**values)


def step(settings: dict[str, Any] = COARSE, protocol: str = "clean", **data: int) -> BladesJointStep:
    return BladesJointStep(TINY, settings, images(**data), Protocol.named(protocol))


@pytest.mark.parametrize("pairing", ["drawn", "twins"])
@pytest.mark.parametrize("augment", [False, True])
def test_batch_is_a_function_of_seed_epoch_and_index_alone(pairing: str, augment: bool) -> None:
    settings = {**COARSE, "pairing": pairing, "augment": augment}
    first, other = step(settings), step({**settings, "workers": 3})
    other.batch(3, 1, 8, 5)
    other.batch(0, 0, 8, 9)
    a, b = first.batch(1, 2, 8, 5), other.batch(1, 2, 8, 5)
    assert torch.equal(a.inputs, b.inputs)
    assert a.names == b.names
    if pairing == "twins":
        assert a.labels["face_coarse"].tolist() == [0] * 4 + [1] * 4
    assert (a.names[:4] == a.names[4:]) == (pairing == "twins")
    assert len(set(a.names)) == (4 if pairing == "twins" else 8)
    for changed in (first.batch(2, 2, 8, 5), first.batch(1, 1, 8, 5), first.batch(1, 2, 8, 6)):
        assert not torch.equal(a.inputs, changed.inputs)


def test_an_epoch_visits_each_photograph_once_and_no_generated_image() -> None:
    used = step(generated=5)
    names = [name for i in range(used.num_batches(8)) for name in used.names(used.batch(0, i, 8, 5))]
    assert sorted(names) == sorted(f"train{i}" for i in range(5, 29))


def test_photographs_pass_through_the_resampling_in_clean_and_are_left_alone_in_paper() -> None:
    twins = {**COARSE, "pairing": "twins", "manipulations": [3]}
    plain, clean = step(twins, protocol="paper").batch(0, 0, 8, 5), step(twins, protocol="clean").batch(0, 0, 8, 5)
    assert plain.names == clean.names
    assert torch.equal(plain.inputs[4:], clean.inputs[4:])
    assert not torch.equal(plain.inputs[:4], clean.inputs[:4])
    raw = BladesPreprocess(32)(rings(1, int(plain.names[0].removeprefix("train"))))
    torch.testing.assert_close(plain.inputs[0], raw, rtol=0, atol=1e-5)


def labelled(**changes: Any) -> TrainingImages:
    """Photographs with landmarks, two tags and every third label missing."""
    values = np.arange(24, dtype=np.int16) % 3
    known = np.where(np.arange(24) % 3 == 2, -1, values).astype(np.int16)
    points = np.stack([np.linspace(60, 160, 68), np.linspace(80, 150, 68)], axis=1).astype(np.float32)
    tags = {"iso": values, "make": known}
    more: dict[str, Any] = {"tags": {"train": tags}, "tag_levels": 3, "landmarks": lambda split, i: points}
    return replace(images(), **(more | changes))


def test_labels_are_the_photographs_tags_and_a_missing_one_is_masked() -> None:
    used = BladesJointStep(TINY, {"work_size": 32}, labelled(), Protocol.named("paper"))
    batch = used.batch(0, 0, 24, 5)
    at = [int(name.removeprefix("train")) for name in batch.names]
    assert batch.labels["iso"].tolist() == [i % 3 for i in at]
    assert batch.masks["iso"].all()
    assert batch.masks["make"].tolist() == [i % 3 != 2 for i in at]
    assert not batch.masks["aperture"].any()
    used.start(0, "cpu")
    losses = used.losses(batch)
    assert losses["iso"] > 0.01
    assert losses["make"] > 0.01
    assert losses["aperture"] == 0
    without = Protocol.named("paper", manipulated_exif=False)
    apart = BladesJointStep(TINY, {"work_size": 32}, labelled(), without).batch(0, 0, 24, 5)
    assert torch.equal(apart.masks["iso"], apart.labels["face_coarse"] == 0)


def test_fine_labels_are_the_regions_of_what_was_done() -> None:
    for protocol, regions, numbers in (("paper", 3, (0, 1, 2, 3, 4)), ("released", 2, (0, 1, 2, 3))):
        used = BladesJointStep(TINY, {"work_size": 32}, labelled(), Protocol.named(protocol))
        assert used.faces.settings.numbers == numbers
        rows, everything = np.arange(24), np.ones(24, bool)
        drawn = used.faces.batch("train", rows, everything, 5, 0)
        fine = used._labelled(drawn, "train").labels["face_fine"]
        wanted = {0: [1, 0, 0], 1: [1, 0, 0], 2: [0, 1, 0], 3: [1, 1, 1], 4: [0, 0, 1]}
        assert fine.tolist() == [wanted[n][:regions] for n in drawn.numbers.tolist()]
        assert len(set(drawn.numbers.tolist())) > 2


def test_labels_that_do_not_fit_the_recipe_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 levels, the recipe 3"):
        BladesJointStep(TINY, {}, labelled(tag_levels=5), Protocol.named("paper"))
    odd = {"train": {"make": np.full(24, 10, np.int16)}}
    with pytest.raises(DataError, match="label 10 of make, which has 10 classes"):
        BladesJointStep(TINY, {}, labelled(tags=odd), Protocol.named("paper"))


def test_tasks_without_labels_are_masked_and_move_nothing() -> None:
    everything = step({"work_size": 32})
    assert everything.table.names == TASK_NAMES
    everything.start(0, "cpu")
    losses = everything.losses(everything.batch(0, 0, 8, 5))
    unlabelled = [name for name in TASK_NAMES if not name.startswith("face_")]
    assert all(losses[name].item() == 0 for name in unlabelled)
    assert losses["face_coarse"].item() > 0.1
    sum(losses[name] for name in unlabelled).backward()
    assert all(p.grad is None or not p.grad.any() for p in everything.parameters())


def test_whole_face_distortion_changes_every_region_and_lambda_is_fixed() -> None:
    settings = {"tasks": ["face_fine", "face_coarse"], "weights": {"face_fine": 0.25}, "work_size": 32}
    both = step({**settings, "pairing": "twins"})
    assert both.batch(0, 0, 8, 5).labels["face_fine"].tolist() == [[0, 0, 0]] * 4 + [[1, 1, 1]] * 4
    assert both.weights() == {"face_coarse": 1.0, "face_fine": 0.25}
    row = train(both, recipe(epochs=1)).history[0]
    assert row["loss"] == pytest.approx(row["losses"]["face_coarse"] + 0.25 * row["losses"]["face_fine"], rel=1e-6)
    two = BladesJointStep(TINY, {"tasks": ["face_fine"]}, images(), Protocol.named("released"))
    assert two.table.num_prompts == 2


def test_training_repeats_itself_to_the_bit() -> None:
    one, two = train(step(), recipe(), threads=1), train(step(), recipe(), threads=1)
    assert one.history == two.history
    assert one.metrics == two.metrics
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensors[k], two.tensors[k]) for k in one.tensors)


def test_it_learns_to_find_distortions() -> None:
    used = step({**COARSE, "pairing": "twins"}, train_count=64, select_count=40)
    result = train(used, recipe(epochs=14, batch_size=32, lr=5e-3), threads=1)
    assert result.metrics["coarse_accuracy"] > 0.75
    kept, found = (result.metrics[f"coarse_accuracy_{kind}"] for kind in ("photographic", "manipulated"))
    assert result.metrics["coarse_accuracy"] == pytest.approx((kept + found) / 2)
    assert 0 <= result.metrics["coarse_accuracy_untouched"] <= 1


def test_export_is_read_by_the_detectors_extractor_and_gives_the_trained_features(tmp_path: Path) -> None:
    tower = BladesImageTower("tiny")
    used = tower.train_step(COARSE, images(), Protocol.named("clean"))
    result = train(used, recipe())
    path = tmp_path / "encoder.safetensors"
    save_file(result.tensors, path)
    weights = ResolvedWeights("recipe", file_digest(path), path)
    batch = used.batch(0, 0, 8, 5).inputs
    assert isinstance(used, BladesJointStep)
    used.encoder.eval()
    with torch.inference_mode():
        expected = used.encoder.features(batch)
    found = tower.load({"weights": weights}, "cpu")(batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert any(name.startswith("model.transformer.") for name in result.tensors)


def test_a_report_is_of_the_exported_encoder_on_images_that_training_never_saw() -> None:
    used = BladesJointStep(
        TINY, {"work_size": 32, "pairing": "twins", "augment": True}, labelled(), Protocol.named("paper")
    )
    tensors = train(used, recipe(epochs=1)).tensors
    unseen = {"report": {"iso": np.arange(10, dtype=np.int16) % 3}}
    held = replace(images(), read=lambda split, i: rings(9, i), labels={"report": np.zeros(10, np.int8)},
                   digests={"report": [f"r{i}" for i in range(10)]}, tags=unseen)  # fmt: skip
    found = {(row["task"], row["metric"]): row for row in used.report(tensors, held, "report")}
    assert found["iso", "concordance"]["images"] == 10
    assert ("make", "balanced_accuracy") not in found
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in found.values())
    with torch.no_grad():
        for value in used.parameters():  # the running encoder plays no part
            value.zero_()
    assert {(r["task"], r["metric"]): r for r in used.report(tensors, held, "report")} == found
    empty = replace(held, labels={"report": np.ones(10, np.int8)})
    assert used.report(tensors, empty, "report") == []


def test_no_select_photographs_no_metrics() -> None:
    assert train(step(select_count=0), recipe(epochs=1)).metrics == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"taks": ["face_coarse"]}, "taks"),
        ({"tasks": ["face"]}, "unknown task"),
        ({"tasks": ["iso"]}, "no task has labels"),
        ({"tasks": ["face_coarse"], "weights": {"face_fine": 1}}, "not trained: 'face_fine'"),
        ({"work_size": 4}, "work_size"),
    ],
)
def test_settings_that_cannot_be_meant_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        step(settings)


def test_training_without_photographs_is_refused() -> None:
    with pytest.raises(DataError, match="photographs in `train`"):
        step(train_count=0, generated=8)

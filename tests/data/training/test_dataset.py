"""Batches of faces: shares, labels, crops, and that a face depends on nothing but (seed, epoch, image)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detectors.blades.image_tower import BladesPreprocess
from harness.api.errors import ConfigError
from harness.api.preprocess import fdf_crop
from harness.api.training import TrainingImages
from harness.data.demo.corpus import take_photograph
from harness.data.manipulate.face import manipulate_face
from harness.data.training.cache import cached
from harness.data.training.dataset import PHOTOGRAPH, FaceDataset, FaceSettings
from harness.data.training.fdf import open_fdf

COUNT = 24


@pytest.fixture(scope="module")
def faces() -> TrainingImages:
    """Demo photographs with landmarks, the last six without; every third with a box; one tag."""
    taken = [take_photograph(7, i, 128) for i in range(COUNT)]
    boxes = np.full((COUNT, 4), np.nan, np.float32)
    boxes[::3] = (0.2, 0.2, 0.8, 0.9)

    def landmarks(split: str, i: int) -> np.ndarray | None:
        return None if i >= COUNT - 6 else taken[i].landmarks * (224 / 128)

    return TrainingImages(
        read=lambda split, i: taken[i].image,
        labels={"train": np.zeros(COUNT, np.int8)},
        generators={"train": [""] * COUNT},
        digests={"train": [f"d{i}" for i in range(COUNT)]},
        preprocess=BladesPreprocess(64),
        tags={"train": {"iso": np.arange(COUNT, dtype=np.int16) % 4 - 1}},
        tag_levels=3,
        boxes={"train": boxes},
        landmarks=landmarks,
        stored=lambda split, i, number: 255 - taken[i].image if number in (1, 2) and i % 2 else None,
    )


ROWS = list(range(COUNT))


@pytest.mark.parametrize("source", ["online", "stored"])
@pytest.mark.parametrize("augment", [False, True])
def test_a_face_depends_on_seed_epoch_and_image_alone(faces: TrainingImages, source: str, augment: bool) -> None:
    settings = FaceSettings(source=source, augment=augment, resample=True)  # type: ignore[arg-type]
    one, many = FaceDataset(faces, settings), FaceDataset(faces, settings, workers=3)
    drawn = one.draws("train", ROWS, 1, 5)
    batch = one.batch("train", ROWS, drawn, 1, 5)
    turned = many.batch("train", ROWS[::-1], many.draws("train", ROWS[::-1], 1, 5), 1, 5)
    assert torch.equal(batch.inputs, turned.inputs.flip(0))
    assert batch.numbers.tolist() == turned.numbers.tolist()[::-1]
    for seed, epoch in ((2, 5), (1, 6)):
        other = one.batch("train", ROWS, one.draws("train", ROWS, seed, epoch), seed, epoch)
        assert not torch.equal(batch.inputs, other.inputs)


@pytest.mark.parametrize("path", ["plain", "cached"])
def test_the_fast_path_is_the_slow_one_to_1e_5(faces: TrainingImages, tmp_path: Path, path: str) -> None:
    images = cached(faces, tmp_path) if path == "cached" else faces
    dataset = FaceDataset(replace(images, preprocess=BladesPreprocess(224)), FaceSettings())
    batch = dataset.batch("train", ROWS, [False] * COUNT, 1, 0)
    slow = BladesPreprocess(224)
    for row in ROWS:
        pixels = faces.read("train", row)
        if row % 3 == 0:
            pixels = fdf_crop(pixels, (0.2, 0.2, 0.8, 0.9))
        assert (batch.inputs[row] - slow(pixels)).abs().max() <= 1e-5


def test_half_are_photographs_and_manipulations_come_equally_often() -> None:
    blank = np.zeros((16, 16, 3), np.uint8)
    count = 4000
    images = TrainingImages(
        read=lambda split, i: blank, labels={}, generators={}, digests={"train": [str(i) for i in range(count)]},
        preprocess=BladesPreprocess(32), stored=lambda split, i, number: blank,
    )  # fmt: skip
    dataset = FaceDataset(images, FaceSettings(source="stored"))
    rows = range(count)
    manipulated = dataset.draws("train", rows, 3, 0)
    numbers = dataset.batch("train", rows, manipulated, 3, 0).numbers
    shares = np.bincount(numbers + 1, minlength=6) / count
    assert abs(shares[0] - 0.5) < 4 * np.sqrt(0.25 / count)
    assert np.abs(shares[1:] - 0.1).max() < 4 * np.sqrt(0.09 / count)
    four = FaceDataset(images, FaceSettings(source="stored", numbers=(0, 1, 2, 3)))
    assert set(four.batch("train", rows, manipulated, 3, 0).numbers.tolist()) == {PHOTOGRAPH, 0, 1, 2, 3}
    assert abs(manipulated.mean() - dataset.draws("train", rows, 3, 1).mean()) < 0.05


def test_tags_are_those_of_the_photograph_whatever_was_made_of_it(faces: TrainingImages) -> None:
    batch = FaceDataset(faces, FaceSettings()).batch("train", ROWS[::-1], [True, False] * (COUNT // 2), 1, 0)
    assert batch.tags["iso"].tolist() == [i % 4 - 1 for i in ROWS[::-1]]
    assert batch.names == tuple(f"d{i}" for i in ROWS[::-1])
    assert (batch.numbers >= 0).tolist() == [True, False] * (COUNT // 2)


def test_without_landmarks_a_face_is_distorted_whole_or_given_what_needs_none(faces: TrainingImages) -> None:
    bare = ROWS[-6:] * 8
    for rule, wanted in (("whole_face", {0, 1, 2, 3, 4}), ("drop", {3})):
        dataset = FaceDataset(faces, FaceSettings(no_landmarks=rule))  # type: ignore[arg-type]
        found = {n for e in range(8) for n in dataset.batch("train", bare[:6], [True] * 6, 1, e).numbers.tolist()}
        assert found <= wanted
        assert len(found) > 1 or rule == "drop"
    none_fits = FaceDataset(faces, FaceSettings(no_landmarks="drop", numbers=(0, 2)))
    assert none_fits.batch("train", bare[:6], [True] * 6, 1, 0).numbers.tolist() == [PHOTOGRAPH] * 6


@pytest.mark.parametrize("side", [128, 96, 448])
def test_landmarks_at_224_reach_the_masks_whole(
    faces: TrainingImages, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    """Coordinates that are whole numbers at 224 must not fall below them on the way through another size."""
    whole = np.stack([np.linspace(50, 170, 68).round(), np.linspace(60, 180, 68).round()], axis=1)
    blank = np.zeros((side, side, 3), np.uint8)
    images = replace(faces, read=lambda split, i: blank, landmarks=lambda split, i: whole)
    seen: list[np.ndarray] = []

    def spy(pixels: np.ndarray, number: int, points: np.ndarray, rng: np.random.Generator, **options: Any) -> Any:
        seen.append(points)
        return manipulate_face(pixels, number, points, rng, **options)

    monkeypatch.setattr("harness.data.training.dataset.manipulate_face", spy)
    FaceDataset(images, FaceSettings(numbers=(0,))).face("train", 0, True, 1, 0)
    assert np.array_equal((seen[0] * (224 / side)).astype(int), whole.astype(int))


def test_stored_faces_are_used_where_they_are(faces: TrainingImages) -> None:
    dataset = FaceDataset(faces, FaceSettings(source="stored"))
    numbers = dataset.batch("train", ROWS, [True] * COUNT, 1, 0).numbers
    assert set(numbers[1::2].tolist()) <= {1, 2}
    assert set(numbers[::2].tolist()) == {PHOTOGRAPH}
    pixels, number = dataset.face("train", 1, True, 1, 0)
    assert number in (1, 2)
    assert np.array_equal(pixels, 255 - faces.read("train", 1))


def test_resampled_photographs_lose_what_manipulated_ones_lose(faces: TrainingImages) -> None:
    def energy(**changes: object) -> float:
        dataset = FaceDataset(replace(faces, boxes={}), FaceSettings(numbers=(0, 1, 2), **changes))  # type: ignore[arg-type]
        values = [dataset.face("train", row, bool(changes.get("photographic") is None), 1, 0)[0] for row in ROWS[:12]]
        return float(np.mean([np.abs(np.diff(v.astype(float), axis=1)).mean() for v in values]))

    manipulated, plain = energy(), energy(photographic=0.5)
    resampled = energy(photographic=0.5, resample=True)
    assert plain > manipulated * 1.01
    assert abs(resampled - manipulated) < 0.3 * (plain - manipulated)


@pytest.mark.parametrize("changes", [{"numbers": ()}, {"numbers": (0, 0)}, {"numbers": (5,)}, {"photographic": 1.0}])
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        FaceSettings(**changes)  # type: ignore[arg-type]


def test_the_released_layout_trains_as_it_is(fdf_root: Path) -> None:
    images = open_fdf(fdf_root).images(BladesPreprocess(64))
    for source in ("stored", "online"):
        dataset = FaceDataset(images, FaceSettings(numbers=(0, 1, 2, 3), source=source))  # type: ignore[arg-type]
        rows = range(images.count("train"))
        batch = dataset.batch("train", rows, dataset.draws("train", rows, 1, 0), 1, 0)
        assert batch.inputs.shape == (len(rows), 3, 64, 64)
        assert bool(torch.isfinite(batch.inputs).all())
        assert set(batch.tags) == set(images.tags["train"])

"""Annotations beside a suite's photographs: matched by name, in one scale, counted, and all of it in the digest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.api.errors import DataError
from harness.data.exif.labels import TAGS, TagLabels, write_labels
from harness.data.training.sidecars import read_annotations

PATHS = ["celeba-face/imgs/b.jpg", "celeba-face/imgs/a.jpg", "celeba-face/imgs/c.jpg"]
SIZES = [(128, 128), (128, 256), (224, 224)]


def labels(folder: Path, **changes: int) -> None:
    tags = {tag: np.array([0, 1], np.int16) for tag in TAGS}
    for tag, value in changes.items():
        tags[tag] = np.array([value, 1], np.int16)
    write_labels(folder / "exif_labels.json", TagLabels(("a", "b"), ("x/a.jpg", "x/b.jpg"), tags))


def points(value: float) -> list[list[float]]:
    return [[value, 2 * value]] * 68


def test_labels_and_landmarks_are_matched_by_name(tmp_path: Path) -> None:
    labels(tmp_path)
    (tmp_path / "landmarks.json").write_text(json.dumps({"a": points(10), "b": points(20), "z": points(1)}))
    known = read_annotations(tmp_path, PATHS, SIZES)
    assert known.tags["iso"].tolist() == [1, 0, -1]
    assert known.tag_levels == 3
    assert np.allclose(known.landmarks(0)[0], [20 * 224 / 128, 40 * 224 / 128])  # type: ignore[index]
    assert np.allclose(known.landmarks(1)[5], [10 * 224 / 128, 20 * 224 / 256])  # type: ignore[index]
    assert known.landmarks(2) is None
    assert known.notes == ("2 of 3 photographs have EXIF labels", "2 of 3 photographs have landmarks")
    part = known.take(np.array([1]))
    assert part.tags["iso"].tolist() == [0]
    assert np.array_equal(part.landmarks(0), known.landmarks(1))  # type: ignore[arg-type]


def test_released_landmarks_files_keep_their_coordinates(tmp_path: Path) -> None:
    (tmp_path / "landmarks").mkdir()
    value = np.random.default_rng(0).uniform(0, 224, (2, 68, 2)).astype(np.float32)
    np.save(tmp_path / "landmarks" / "a.npy", value)
    known = read_annotations(tmp_path, PATHS, SIZES)
    assert np.array_equal(known.landmarks(1), value[0])  # type: ignore[arg-type]
    assert known.landmarks(0) is None


def test_another_label_file_may_be_named_and_must_then_be_there(tmp_path: Path) -> None:
    labels(tmp_path, iso=2)
    (tmp_path / "exif_labels.json").rename(tmp_path / "mine.json")
    labels(tmp_path)
    assert read_annotations(tmp_path, PATHS, SIZES, "mine.json").tags["iso"].tolist() == [1, 2, -1]
    assert read_annotations(tmp_path, PATHS, SIZES).tags["iso"].tolist() == [1, 0, -1]
    with pytest.raises(DataError, match=r"the label file is not there[\s\S]*nobodys\.json"):
        read_annotations(tmp_path, PATHS, SIZES, "nobodys.json")


def test_nothing_there_is_nothing_known(tmp_path: Path) -> None:
    known = read_annotations(tmp_path, PATHS, SIZES)
    assert (known.tags, known.points, known.notes, known.digest()) == ({}, None, (), "")


def test_the_digest_follows_what_training_sees_and_nothing_else(tmp_path: Path) -> None:
    labels(tmp_path)
    (tmp_path / "landmarks.json").write_text(json.dumps({"a": points(10)}))
    first = read_annotations(tmp_path, PATHS, SIZES).digest()
    (tmp_path / "landmarks.json").write_text(json.dumps({"z": points(3), "a": points(10)}))
    assert read_annotations(tmp_path, PATHS, SIZES).digest() == first
    (tmp_path / "landmarks.json").write_text(json.dumps({"a": points(11)}))
    second = read_annotations(tmp_path, PATHS, SIZES).digest()
    labels(tmp_path, make=3)
    third = read_annotations(tmp_path, PATHS, SIZES).digest()
    assert len({first, second, third}) == 3


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 3}', '{"a": [[1, 2]]}', '{"a": "x"}'])
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "landmarks.json").write_text(text)
    with pytest.raises(DataError, match=r"landmarks\.json"):
        read_annotations(tmp_path, PATHS, SIZES)

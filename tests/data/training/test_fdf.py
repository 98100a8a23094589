"""The released training layout loads as it is, and says what it lacks."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from harness.api.errors import DataError
from harness.data.exif.labels import TAGS, TagLabels
from harness.data.exif.vocabulary import load_vocabulary
from harness.data.splits import SplitRule
from harness.data.training.fdf import find_fdf, labels_from_exif, open_fdf
from tests.data.training.conftest import LABELS, noise, save

ROOT = Path(__file__).resolve().parents[3]
HALVES = SplitRule(outer=0.2, select=0.2, report=0.2)


def test_faces_with_labels_and_an_image_are_matched_by_name(fdf_root: Path) -> None:
    table = open_fdf(fdf_root)
    assert table.ids == tuple(str(i) for i in range(100, 112))
    assert table.tags["iso"].tolist() == [i % 3 for i in range(100, 112)]
    assert set(table.tags["exposure_time"].tolist()) == {-1}
    assert table.tags["make"].tolist() == [i % 10 for i in range(100, 112)]
    assert np.array_equal(table.pixels(4), noise(104))
    assert "12 faces with labels; 1 items without an image, 1 images without labels" in table.notes


@pytest.mark.parametrize("inside", ["", "SSL_training_data"])
def test_the_folder_or_one_that_holds_it_may_be_named(fdf_root: Path, inside: str) -> None:
    assert find_fdf(fdf_root.parent / inside).root == fdf_root  # type: ignore[union-attr]


def test_boxes_landmarks_and_stored_faces_come_along_and_what_is_missing_is_said(fdf_root: Path) -> None:
    table = open_fdf(fdf_root)
    assert table.boxes is not None
    assert np.allclose(table.boxes[0], [0.25, 0.25, 0.75, 0.8])
    assert np.isnan(table.boxes[3]).all()
    points = table.landmarks(0)
    assert points is not None
    assert points.shape == (68, 2)
    assert table.landmarks(4) is None
    assert np.array_equal(table.manipulated(0, 2), noise(100_002))  # type: ignore[arg-type]
    assert table.manipulated(5, 0) is None
    assert table.manipulated(0, 4) is None
    said = "\n".join(table.notes)
    assert "1 faces without a bounding box: the whole image is used" in said
    assert "1 faces without a landmarks file" in said
    assert "_0: 11, _1: 11, _2: 11, _3: 11" in said
    assert "photographs by FDF/data/id_vs_fdfName.pkl" in said


def test_faces_of_one_photograph_share_a_split_and_splits_follow_from_the_hash_alone(fdf_root: Path) -> None:
    table = open_fdf(fdf_root, rule=HALVES)
    by_photo: dict[str, set[str]] = {}
    for photo, split in zip(table.photos, table.splits, strict=True):
        by_photo.setdefault(photo, set()).add(str(split))
    assert len(by_photo) == 6
    assert all(len(splits) == 1 for splits in by_photo.values())
    before = dict(zip(table.ids, table.splits, strict=True))
    (fdf_root / "FDF/data/fdf/images/128/107.png").unlink()
    after = open_fdf(fdf_root, rule=HALVES)
    assert all(before[name] == split for name, split in zip(after.ids, after.splits, strict=True))


def test_the_older_layout_goes_through_the_map_of_names(fdf_root: Path) -> None:
    (fdf_root / LABELS).unlink()
    (fdf_root / "fdf_ccby2_exif_update_filtered_v2").mkdir()

    def old(folder: Path) -> TagLabels:
        assert folder.name == "fdf_ccby2_exif_update_filtered_v2"
        tags = {tag: np.array([0, 1, 2], np.int16) for tag in TAGS}
        return TagLabels(("photo50", "photo51", "photo99"), ("photo50.json", "photo51.json", "photo99.json"), tags)

    table = open_fdf(fdf_root, old_labels=old)
    assert table.ids == ("100", "101", "102", "103")
    assert table.tags["iso"].tolist() == [0, 0, 1, 1]
    with pytest.raises(DataError, match="no labels"):
        open_fdf(fdf_root)
    (fdf_root / "FDF/data/id_vs_fdfName.pkl").unlink()
    with pytest.raises(DataError, match="map of face names"):
        open_fdf(fdf_root, old_labels=old)


def test_another_label_file_of_the_folder_can_be_named(fdf_root: Path) -> None:
    items = json.loads((fdf_root / LABELS).read_text())
    for item in items.values():
        item["EXIF_ordinal"] = {"ISO": "ultra-high"}
    (fdf_root / "five.json").write_text(json.dumps(items))
    table = open_fdf(fdf_root, labels="five.json")
    assert table.tag_levels == 5
    assert set(table.tags["iso"].tolist()) == {4}
    with pytest.raises(DataError, match="label file is not there"):
        open_fdf(fdf_root, labels="six.json")


def test_the_older_layouts_exif_becomes_levels_and_classes(fdf_root: Path) -> None:
    (fdf_root / LABELS).unlink()
    folder = fdf_root / "fdf_ccby2_exif_update_filtered_v2"
    folder.mkdir()
    for i in range(50, 56):
        exif = {"ISO Speed Ratings": str(100 * (i - 49)), "Exposure Time": f"1/{10 * (i - 49)} sec", "Make": "Canon"}
        (folder / f"photo{i}.json").write_text(json.dumps({"EXIF": exif}))
    vocabulary = load_vocabulary(ROOT / "suites" / "exif" / "blades.yaml")
    table = open_fdf(fdf_root, old_labels=labels_from_exif(vocabulary))
    assert table.tags["iso"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert table.tags["exposure_time"].tolist() == [2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0]
    assert set(table.tags["make"].tolist()) == {3}
    assert set(table.tags["aperture"].tolist()) == {-1}


def test_without_a_map_photographs_are_told_apart_by_the_metainfo_or_not_at_all(fdf_root: Path) -> None:
    (fdf_root / "FDF/data/id_vs_fdfName.pkl").unlink()
    assert open_fdf(fdf_root).photos == tuple(str(i) for i in range(100, 112))
    path = fdf_root / "FDF/data/fdf/fdf_metainfo.json"
    path.write_text(json.dumps({str(i): {"photo_url": f"u{i // 3}"} for i in range(100, 112)}))
    table = open_fdf(fdf_root)
    assert len(set(table.photos)) == 5
    assert any("photo_url" in note for note in table.notes)


@pytest.mark.parametrize(
    "box", [[0, 0, 1], "x", [0, 0, 0, 0], [0.5, 0, 0.2, 1], [0, 0, 1e9, 1], [None] * 4, [True] * 4]
)
def test_boxes_that_mean_nothing_count_as_none_and_are_said(fdf_root: Path, box: object) -> None:
    path = fdf_root / "FDF/data/fdf/fdf_metainfo.json"
    path.write_text(json.dumps({"100": {"bounding_box": box}, "101": {"bounding_box": [0, 0, 1, 1]}}))
    table = open_fdf(fdf_root)
    assert table.boxes is not None
    assert np.isnan(table.boxes[0]).all()
    assert table.boxes[1].tolist() == [0, 0, 1, 1]
    assert [p.kind for p in table.problems] == ["box"]


def test_a_face_that_cannot_be_read_is_left_out_and_said(fdf_root: Path) -> None:
    path = fdf_root / "FDF/data/fdf/images/128/107.png"
    path.unlink()
    path.symlink_to("/etc/hostname")
    assert "107" not in open_fdf(fdf_root).ids
    path.unlink()
    path.write_bytes(b"")
    table = open_fdf(fdf_root)
    assert "107" in table.ids or [p.kind for p in table.problems] == ["unreadable"]


def test_pixels_that_changed_are_not_trained_on(fdf_root: Path) -> None:
    table = open_fdf(fdf_root)
    path = fdf_root / table.paths[0]
    path.write_bytes((fdf_root / table.paths[1]).read_bytes())
    with pytest.raises(DataError, match="changed"):
        table.pixels(0)


def test_what_is_not_there_is_named(tmp_path: Path, fdf_root: Path) -> None:
    with pytest.raises(DataError, match="no released training layout"):
        open_fdf(tmp_path / "nowhere")
    (fdf_root / LABELS).write_text(json.dumps({"1": {"path": "a/1.png"}}))
    with pytest.raises(DataError, match="no item of the label file has an image"):
        open_fdf(fdf_root)
    (fdf_root / "FDF/data/id_vs_fdfName.pkl").write_bytes(pickle.dumps(["a"]))
    (fdf_root / LABELS).write_text(json.dumps({"1": {"path": "a/100.png"}}))
    with pytest.raises(DataError, match="dictionary of strings"):
        open_fdf(fdf_root)


def test_identity_follows_all_that_training_sees(fdf_root: Path) -> None:
    def identity() -> str:
        return open_fdf(fdf_root).identity("train")

    seen = [identity()]
    assert identity() == seen[0]
    train = [int(i) for i, s in zip(open_fdf(fdf_root).ids, open_fdf(fdf_root).splits, strict=True) if s == "train"]
    face = next(i for i in train if i not in (103, 104, 105))
    points = np.zeros((1, 68, 2), np.float32)
    np.save(fdf_root / f"FDF/data/fdf/landmarks/{face}.npy", points)
    seen.append(identity())
    save(fdf_root / f"FDF/data/face_dataaug_neg/{face}_4.png", noise(1))
    seen.append(identity())
    save(fdf_root / f"FDF/data/fdf/images/128/{face}.png", noise(2))
    seen.append(identity())
    path = fdf_root / "FDF/data/fdf/fdf_metainfo.json"
    path.write_text(json.dumps({str(face): {"bounding_box": [0, 0, 1, 1]}}))
    seen.append(identity())
    items = json.loads((fdf_root / LABELS).read_text())
    items[str(face)]["EXIF_ordinal"]["ISO"] = 1 + (items[str(face)]["EXIF_ordinal"]["ISO"] % 3)
    (fdf_root / LABELS).write_text(json.dumps(items))
    seen.append(identity())
    assert len(set(seen)) == 6


def test_the_head_of_a_split_is_its_first_faces(fdf_root: Path) -> None:
    table = open_fdf(fdf_root, rule=HALVES)
    short = table.head("train", 1)
    assert short.rows("train").tolist() == table.rows("train")[:1].tolist()
    assert short.rows("report").tolist() == table.rows("report").tolist()
    assert short.images(lambda p: p, ("train",)).count("train") == 1  # type: ignore[arg-type, return-value]

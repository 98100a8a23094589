"""JSON in the older layout and folders of anything: every photograph found once, every fault counted or named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.api.errors import DataError
from harness.data.exif.photos import Sources, read_json
from harness.data.exif.table import build_table
from harness.data.exif.vocabulary import Vocabulary

from .conftest import GOOD_EXIF, GOOD_IFD0, exif_block, write

OLDER: dict[str, Any] = {
    "EXIF": {
        "ISO Speed Ratings": "200", "Aperture Value": "F2.8", "Exposure Time": "1/60 sec", "Focal Length": "18.0 mm",
        "Make": "NIKON CORPORATION", "Metering Mode": "Multi-segment", "Exposure Mode": "Auto exposure",
        "White Balance Mode": "Auto white balance", "Exposure Program": "Program normal", "Flash": "Flash fired, auto",
        "Shutter Speed Value": "1/59 sec", "F-Number": "F2.8", "X Resolution": "300 dots per inch",
        "Resolution Unit": "Inch", "EXIF Version": "2.21", "Date/Time Original": "2013:03:28 04:20:46",
        "Custom Rendered": "Normal process", "Scene Capture Type": "Standard",
    }
}  # fmt: skip


def dump(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def test_a_folder_of_photographs_as_json(tmp_path: Path, vocabulary: Vocabulary) -> None:
    dump(tmp_path / "fdf_ccby2_exif_update_filtered_v2" / "10041902603.json", OLDER)
    table = build_table(Sources([tmp_path]), vocabulary)
    row = table.frame.iloc[0].to_dict()
    assert (row["id"], row["path"]) == ("10041902603", "fdf_ccby2_exif_update_filtered_v2/10041902603.json")
    expected = {
        "iso": 200, "aperture": 2.8, "exposure_time": 1 / 60, "focal_length": 18.0, "make": "Nikon",
        "metering_mode": "multi-segment", "exposure_mode": "auto", "white_balance": "auto",
        "exposure_program": "normal program", "flash": "Fired Auto", "shutter_speed": 1 / 59, "f_number": 2.8,
        "x_resolution": 300.0, "resolution_unit": "Inch", "exif_version": "2.21",
        "date_time_original": "2013:03:28 04:20:46", "custom_rendered": "Normal Process",
        "scene_capture_type": "Standard", "format": "JSON", "problems": "",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert table.problems == {}


def test_one_file_of_many_photographs(tmp_path: Path, vocabulary: Vocabulary) -> None:
    many = {
        "7.jpg": OLDER, "8": {"EXIF": {}}, "9": {"EXIF": None}, "x/10.png": {**OLDER, "path": "/data0/faces/10.png"},
        "11": {"path": "elsewhere/12.png", **OLDER}, "..": OLDER, "bad\ud800": OLDER, "comment": "made in 2020",
        "12": {"EXIF": {str(i): i for i in range(3000)}},
    }  # fmt: skip
    file = dump(tmp_path / "all.json", many)
    table = build_table(Sources([file]), vocabulary)
    rows = table.frame.set_index("id")
    assert list(rows.index) == ["7", "8", "9", "10", "11", "..", "bad?", "12"]
    assert (rows.loc["7", "path"], rows.loc["10", "path"], rows.loc["11", "path"]) == (
        "7.jpg",
        "/data0/faces/10.png",
        "11",
    )
    assert dict(table.problems) == {"no-camera-tags": 1, "no-exif": 1, "bad-name": 2, "exif-too-large": 1}


def test_folders_images_and_json_together_and_a_repeated_id(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "a" / "1.jpg", exif_block(GOOD_IFD0, GOOD_EXIF))
    write(tmp_path / "a" / "sub" / "2.jpg", exif_block(GOOD_IFD0, GOOD_EXIF))
    (tmp_path / "a" / "notes.txt").write_text("not looked at")
    (tmp_path / "a" / "broken.json").write_text("{")
    (tmp_path / "a" / "other.json").write_text('{"landmarks": [1, 2]}')
    sources = Sources([tmp_path / "a", dump(tmp_path / "2.json", OLDER)])
    table = build_table(sources, vocabulary)
    assert sources.num_files == 5
    assert list(table.frame["path"]) == ["1.jpg", "broken.json", "other.json", "sub/2.jpg", "2.json"]
    assert dict(table.problems) == {"not-json": 1, "no-exif": 1, "id-repeated": 1}
    assert table.examples["id-repeated"] == ["2"]


def test_large_json_in_a_folder_is_not_read(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.data.exif import photos

    monkeypatch.setattr(photos, "MAX_FOUND_BYTES", 100)
    file = dump(tmp_path / "in" / "1.json", OLDER)
    assert dict(build_table(Sources([tmp_path / "in"]), vocabulary).problems) == {"json-too-large": 1}
    assert build_table(Sources([file]), vocabulary).problems == {}


def test_what_cannot_be_read_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        Sources([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing to read"):
        Sources([tmp_path / "empty"])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        list(read_json(tmp_path / "broken.json", "broken.json"))
    labels = dump(tmp_path / "labels.json", {"1": {"path": "1.png", "EXIF_ordinal": {"ISO": 1}}})
    with pytest.raises(DataError, match="label file"):
        list(read_json(labels, "labels.json"))


def test_links_out_of_a_folder_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "outside" / "secret.jpg", None)
    write(tmp_path / "in" / "1.jpg", None)
    (tmp_path / "in" / "link.jpg").symlink_to(tmp_path / "outside" / "secret.jpg")
    sources = Sources([tmp_path / "in"])
    assert [photo.id for _, photo in sources] == ["1"]
    assert [p.kind for p in sources.problems] == ["leaves-root"]


plain = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12)
)
names = st.sampled_from([*OLDER["EXIF"], "x"])


exifs = st.dictionaries(names, plain | st.lists(plain, max_size=2), max_size=6)
items = st.dictionaries(st.sampled_from(["EXIF", "path", "x"]), plain | exifs, max_size=3)


@given(st.dictionaries(st.text(max_size=5), items, max_size=4))
def test_any_json_ends_in_rows(
    tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary, document: dict[str, Any]
) -> None:
    file = dump(tmp_path_factory.mktemp("j") / "all.json", document)
    table = build_table(Sources([file]), vocabulary)
    assert len(table) == max(1, len(document)) or "EXIF" in document
    table.frame.to_csv()

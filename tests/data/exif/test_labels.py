"""Label files: read in every form that is promised, refused with one clear error in every other, written as read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.api.errors import DataError
from harness.data.exif.labels import CATEGORICAL, LEVEL_NAMES, ORDINAL, TAGS, TagLabels, read_labels, write_labels


def item(path: str, ordinal: dict[str, Any], **categorical: Any) -> dict[str, Any]:
    classes = {CATEGORICAL[k]: {"cls_label": v} for k, v in categorical.items()}
    return {"path": path, "EXIF_ordinal": ordinal, "EXIF_categorical": classes}


def write(path: Path, document: Any) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def test_tags_are_the_pretext_tasks_in_order() -> None:
    from detectors.blades.tasks import LEVELS, TASK_NAMES

    assert TASK_NAMES[:9] == TAGS
    assert LEVEL_NAMES == LEVELS


def test_the_released_layout_with_the_authors_absolute_paths(tmp_path: Path) -> None:
    first = item(
        "/data0/Experiments/FDF/128/30/100000.png",
        {"ISO": 1, "Aperture": 2, "Focal Length": 3, "Exposure Time": 1},
        make=9, metering_mode=0, exposure_mode=6, white_balance=1, exposure_program=5,
    )  # fmt: skip
    labels = read_labels(write(tmp_path / "l.json", {"100000": first, "x": item(r"C:\faces\2.png", {"ISO": 2})}))
    assert labels.ids == ("100000", "2")
    assert labels.paths[0] == first["path"]
    assert labels.levels == 3
    told = {name: values.tolist() for name, values in labels.tags.items()}
    assert told == {
        "iso": [0, 1], "aperture": [1, -1], "exposure_time": [0, -1], "focal_length": [2, -1], "make": [9, -1],
        "metering_mode": [0, -1], "exposure_mode": [6, -1], "white_balance": [1, -1], "exposure_program": [5, -1],
    }  # fmt: skip
    assert all(values.dtype == np.int16 for values in labels.tags.values())


@pytest.mark.parametrize(
    ("levels", "num", "expected"),
    [
        ([0, 1, 2], 3, [0, 1, 2]),
        ([1, 2, 3], 3, [0, 1, 2]),
        ([1, 1, 2], 3, [0, 0, 1]),
        ([0, 1, 1], 3, [0, 1, 1]),
        ([0, 3, 4], 5, [0, 3, 4]),
        ([1, 3, 4], 5, [0, 2, 3]),
        (["low", "medium", "high"], 3, [0, 1, 2]),
        (["Low", "ULTRA HIGH", "medium"], 5, [1, 4, 2]),
        ([1.0, "2", None], 3, [0, 1, -1]),
        ([-1, 2, 1], 3, [-1, 1, 0]),
    ],
)
def test_levels_as_numbers_from_0_or_1_and_as_names(
    tmp_path: Path, levels: list[Any], num: int, expected: list[int]
) -> None:
    items = {str(i): item(f"{i}.jpg", {"ISO": level}) for i, level in enumerate(levels)}
    labels = read_labels(write(tmp_path / "l.json", items))
    assert labels.levels == num
    assert labels.tags["iso"].tolist() == expected


def test_numbering_is_decided_for_the_whole_file_and_can_be_stated(tmp_path: Path) -> None:
    file = write(tmp_path / "l.json", {"a": item("a.jpg", {"ISO": 1, "Aperture": 0}), "b": item("b.jpg", {"ISO": 2})})
    assert read_labels(file).tags["iso"].tolist() == [1, 2]
    file = write(tmp_path / "m.json", {"a": item("a.jpg", {"ISO": 1}), "b": item("b.jpg", {"ISO": 2})})
    assert read_labels(file, first_level=0).tags["iso"].tolist() == [1, 2]
    assert read_labels(file, levels=5).levels == 5


GOOD = item("a.jpg", {"ISO": 1})


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("", "not JSON"),
        ("[]", "holds a list"),
        ("{}", "no items"),
        ("[" * 100_000, "deep"),
        ('{"a": NaN}', "NaN"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON"),
        ('{"a": {"path": "a.jpg"}, "a": {"path": "b.jpg"}}', "stands twice"),
        ({"a": 3}, "no path"),
        ({"a": {"path": 3}}, "no path"),
        ({"a": {"path": "x\0.jpg"}}, "cannot be the path"),
        ({"a": {"path": "imgs/.."}}, "cannot be the path"),
        ({"a": {"path": "\ud800.jpg"}}, "cannot be the path"),
        ({"a": {"path": "a.jpg", "EXIF_ordinal": [1]}}, "no object"),
        ({"a": item("a.jpg", {"ISO": True})}, "no level"),
        ({"a": item("a.jpg", {"ISO": 1.5})}, "no level"),
        ({"a": item("a.jpg", {"ISO": "bright"})}, "no level"),
        ({"a": item("a.jpg", {"ISO": 7})}, "no level"),
        ({"a": item("a.jpg", {"ISO": -2})}, "no level"),
        ({"a": item("a.jpg", {"ISO": "low", "Aperture": 1})}, "as names and as numbers"),
        ({"a": item("a.jpg", {}, make="Canon")}, "no class number"),
        ({"a": item("a.jpg", {}, make=70000)}, "no class number"),
        ({"a": GOOD, "b": item("other/a.jpg", {})}, "two items"),
        ({"a": {**GOOD, "levels": 4}}, "no number of levels"),
        ({"a": {**GOOD, "levels": 5}, "b": item("b.jpg", {})}, "do not agree"),
    ],
)
def test_a_malformed_file_gets_one_clear_error_that_names_it(tmp_path: Path, document: Any, says: str) -> None:
    file = write(tmp_path / "l.json", document)
    with pytest.raises(DataError, match=says) as caught:
        read_labels(file)
    assert str(file) in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "l.json", {"a": GOOD})
    with pytest.raises(DataError, match="more than the 10 allowed"):
        read_labels(file, max_bytes=10)
    with pytest.raises(DataError, match="no such file"):
        read_labels(tmp_path)
    (tmp_path / "u.json").write_bytes(b"\xff\xfe{\0}\0")
    with pytest.raises(DataError, match="not UTF-8"):
        read_labels(tmp_path / "u.json")


names = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=12).filter(
    lambda text: text.strip(".") != ""
)


@st.composite
def labels_of_any_kind(draw: st.DrawFn) -> TagLabels:
    from pathlib import PurePosixPath

    levels = draw(st.sampled_from((3, 5)))
    files = draw(st.lists(names.map(lambda n: f"some folder/{n}.jpg"), min_size=1, max_size=12))
    paths = tuple({PurePosixPath(f).stem: f for f in files}.values())
    tops = dict.fromkeys(ORDINAL, levels - 1) | dict.fromkeys(CATEGORICAL, 255)
    column = {t: st.lists(st.integers(-1, top), min_size=len(paths), max_size=len(paths)) for t, top in tops.items()}
    tags = {t: np.array(draw(column[t]), np.int16) for t in TAGS}
    return TagLabels(tuple(PurePosixPath(p).stem for p in paths), paths, tags, levels)


@given(labels_of_any_kind())
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, labels: TagLabels) -> None:
    file = tmp_path_factory.mktemp("l") / "labels.json"
    write_labels(file, labels)
    assert read_labels(file) == labels


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["path", "EXIF_ordinal", "EXIF_categorical", "ISO", "Make",
                                                       "cls_label", "levels", "x"]), inner, max_size=5),
                    max_leaves=12))  # fmt: skip
def test_any_json_is_labels_or_one_error(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    file = write(tmp_path_factory.mktemp("l") / "labels.json", {"a": document})
    try:
        labels = read_labels(file)
    except DataError:
        return
    assert len(labels) == 1


def test_three_level_files_have_the_released_keys_and_no_others(tmp_path: Path) -> None:
    tags = {tag: np.array([0], np.int16) for tag in TAGS}
    file = write_labels(tmp_path / "new" / "l.json", TagLabels(("a",), ("imgs/a.jpg",), tags))
    [(key, value)] = json.loads(file.read_text()).items()
    assert key == "a"
    assert value["path"] == "imgs/a.jpg"
    assert value["EXIF_ordinal"] == {"ISO": 1, "Aperture": 1, "Exposure Time": 1, "Focal Length": 1}
    assert value["EXIF_categorical"]["Make"] == {"cls_label": 0}
    assert set(value) == {"path", "EXIF_ordinal", "EXIF_categorical"}
    assert [p.name for p in file.parent.iterdir()] == ["l.json"]


def test_inconsistent_labels_cannot_be_made() -> None:
    tags = {tag: np.array([0], np.int16) for tag in TAGS}
    with pytest.raises(DataError, match="each id once"):
        TagLabels(("a", "a"), ("a.jpg", "a.jpg"), {t: np.zeros(2, np.int16) for t in TAGS})
    with pytest.raises(DataError, match="int16"):
        TagLabels(("a",), ("a.jpg",), tags | {"iso": np.array([0])})
    with pytest.raises(DataError, match="leave"):
        TagLabels(("a",), ("a.jpg",), tags | {"iso": np.array([3], np.int16)})
    with pytest.raises(DataError, match="in this order"):
        TagLabels(("a",), ("a.jpg",), {"iso": tags["iso"]})
    taken = TagLabels(("a", "b"), ("a.jpg", "b.jpg"), {t: np.arange(2, dtype=np.int16) for t in TAGS}).take([1])
    assert (taken.ids, taken.tags["make"].tolist()) == (("b",), [1])

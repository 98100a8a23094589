"""Tables in either form: the same rows in the same order, the same bytes each time, nothing partial."""

from __future__ import annotations

import hashlib
import resource
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.api.errors import StoreError
from harness.data.tables import copy_table, is_table, read_table, table_columns, table_files, table_parts, write_table


def scores(rows: int, names: tuple[str, ...] = ("oc", "b c (50%)/d")) -> pd.DataFrame:
    each = np.arange(rows)
    frame = pd.DataFrame({
        "sha256": [hashlib.sha256(str(i).encode()).hexdigest() for i in each], "label": (each % 2).astype(np.int8),
        "detector": [names[int(i * len(names) // max(rows, 1))] for i in each],
        "score": np.where(each % 5, each, np.nan),
    })  # fmt: skip
    return frame.astype({"sha256": "str", "detector": "str"})


def pieces(frame: pd.DataFrame, cuts: list[int]):
    bounds = sorted({0, len(frame), *(c for c in cuts if c < len(frame))})
    return [frame.iloc[a:b] for a, b in pairwise(bounds)] or [frame]


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 40), st.lists(st.integers(1, 39), max_size=4), st.integers(1, 12), st.booleans(), st.booleans())
def test_a_table_comes_back_in_order_in_either_form(tmp_path_factory, rows, cuts, part, divided, whole) -> None:
    path, frame = tmp_path_factory.mktemp("t") / "scores.parquet", scores(rows)
    by = "detector" if divided else None
    write_table(pieces(frame, cuts), path, rows=rows, by=by, most_rows=rows if whole else -1, part_rows=part)
    assert path.is_file() == whole
    assert is_table(path) or rows == 0
    if rows == 0 and not whole and divided:
        return  # nothing to divide
    pd.testing.assert_frame_equal(read_table(path), frame)
    pd.testing.assert_frame_equal(pd.concat(table_parts(path), ignore_index=True), frame)
    assert all(pq.read_metadata(f).row_group(0).num_rows <= part for f in table_files(path) if rows)
    some = read_table(path, ["score", "sha256"], only=("detector", ["oc"]))
    expected = frame.loc[frame["detector"] == "oc", ["score", "sha256"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, expected)
    assert len(read_table(path, ["label"], only=("detector", ["another"]))) == 0


def test_one_file_has_the_bytes_that_pandas_writes(tmp_path: Path) -> None:
    frame = scores(3000)
    frame.to_parquet(tmp_path / "pandas.parquet", index=False)
    write_table(pieces(frame, [1, 1000, 2500]), tmp_path / "ours.parquet", rows=3000)
    assert (tmp_path / "ours.parquet").read_bytes() == (tmp_path / "pandas.parquet").read_bytes()


def test_a_dataset_has_the_same_bytes_however_its_pieces_were_cut(tmp_path: Path) -> None:
    frame = scores(100)
    one = write_table([frame], tmp_path / "one", rows=100, by="detector", most_rows=99, part_rows=30)
    two = write_table(pieces(frame, [7, 64]), tmp_path / "two", rows=100, by="detector", most_rows=99, part_rows=30)
    assert snapshot(one) == snapshot(two)
    assert len(snapshot(one)) == 4


def test_other_programs_read_a_dataset_as_one_table(tmp_path: Path) -> None:
    import pyarrow.dataset

    frame = scores(50)
    path = write_table([frame], tmp_path / "scores.parquet", rows=50, by="detector", most_rows=10, part_rows=9)
    found = pd.read_parquet(path).astype({"detector": "str"})[list(frame.columns)]
    left, right = (table.sort_values("sha256", ignore_index=True) for table in (found, frame))
    pd.testing.assert_frame_equal(left, right)
    only = pyarrow.dataset.dataset(path, partitioning="hive").to_table(
        filter=pyarrow.dataset.field("detector") == "oc", columns=["score"]
    )
    assert only.num_rows == (frame["detector"] == "oc").sum()


def test_parts_with_other_values_are_not_opened(tmp_path: Path) -> None:
    path = write_table([scores(50)], tmp_path / "t.parquet", rows=50, by="detector", most_rows=1)
    other = next(f for f in table_files(path) if f.parent.name != "detector=oc")
    data = other.read_bytes()
    other.write_bytes(data[:200] + bytes(100) + data[300:])  # its values, not its schema at the end
    assert len(read_table(path, ["score", "sha256"], only=("detector", ["oc"]))) == 25
    with pytest.raises((OSError, ValueError)):
        read_table(path)


def test_a_table_takes_the_place_of_the_one_before_in_any_form(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    for most, rows in ((10, 5), (2, 6), (2, 7), (10, 8)):
        write_table([scores(rows)], path, rows=rows, by="detector", most_rows=most)
        assert len(read_table(path)) == rows
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


@pytest.mark.parametrize("most", [0, 10**6])
def test_a_full_disk_is_an_error_that_leaves_what_was_there(tmp_path: Path, most: int) -> None:
    path = write_table([scores(3)], tmp_path / "t.parquet", rows=3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StoreError, match=r"cannot write t.parquet[\s\S]*free some space"):
            write_table([scores(20_000)], path, rows=20_000, by="detector", most_rows=most)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(read_table(path)) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_a_file_in_the_way_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(StoreError, match=r"cannot write t.parquet[\s\S]*taken"):
        write_table([scores(3)], tmp_path / "taken/t.parquet", rows=3)


def test_what_is_no_table_or_lacks_a_column_is_said(tmp_path: Path) -> None:
    assert not is_table(tmp_path)
    assert not is_table(tmp_path / "gone")
    with pytest.raises(ValueError, match="no part"):
        read_table(tmp_path)
    with pytest.raises(OSError, match="gone"):
        read_table(tmp_path / "gone")
    path = write_table([scores(3)], tmp_path / "t.parquet", rows=3, most_rows=1, by="detector")
    with pytest.raises(ValueError, match="'width' is missing"):
        read_table(path, ["width"])


@pytest.mark.parametrize("most", [0, 10**6])
def test_a_copied_table_has_the_same_files_and_nothing_else(tmp_path: Path, most: int) -> None:
    path = write_table([scores(50)], tmp_path / "t.parquet", rows=50, by="detector", most_rows=most, part_rows=9)
    before = snapshot(path) if path.is_dir() else path.read_bytes()
    assert sorted(table_columns(path)) == sorted(scores(1).columns)
    if path.is_dir():
        (path / "notes.txt").write_text("not a part")
    other = write_table([scores(3)], tmp_path / "new" / "t.parquet", rows=3, most_rows=2 if most else 10)
    copied = copy_table(path, other)
    assert (snapshot(copied) if copied.is_dir() else copied.read_bytes()) == before
    assert [p.name for p in other.parent.iterdir()] == ["t.parquet"]


def test_a_copy_that_cannot_be_made_leaves_what_was_there(tmp_path: Path) -> None:
    path = write_table([scores(3)], tmp_path / "t.parquet", rows=3)
    with pytest.raises(StoreError, match=r"cannot write t.parquet"):
        copy_table(tmp_path / "gone.parquet", path)
    assert len(read_table(path)) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]

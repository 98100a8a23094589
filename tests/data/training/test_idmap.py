"""The pickled map of face names: read whole, and nothing in it ever run."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.api.errors import DataError
from harness.data.training.idmap import read_id_map


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "id_vs_fdfName.pkl"
    path.write_bytes(data)
    return path


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.text(st.characters(exclude_categories=["Cs"])),
    ),
    st.sampled_from(range(pickle.HIGHEST_PROTOCOL + 1)),
)
def test_a_dictionary_of_strings_is_read_in_every_protocol(tmp_path_factory, mapping, protocol) -> None:  # type: ignore[no-untyped-def]
    path = written(tmp_path_factory.mktemp("p"), pickle.dumps(mapping, protocol))
    assert read_id_map(path) == mapping


class Evil:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_program_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    for value in (Evil(str(marker)), {"1": Evil(str(marker))}):
        with pytest.raises(DataError, match="only a dictionary of strings"):
            read_id_map(written(tmp_path, pickle.dumps(value, protocol)))
    assert not marker.exists()


@pytest.mark.parametrize(
    "value", [["a"], {"a": 1}, {1: "a"}, {"a": {"b": "c"}}, {"a": None}, "a", ({"a": "b"}, {"c": "d"})]
)
def test_other_values_are_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(DataError):
        read_id_map(written(tmp_path, pickle.dumps(value)))


@pytest.mark.parametrize("cut", [0, 1, 5, 30, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    with pytest.raises(DataError):
        read_id_map(written(tmp_path, pickle.dumps({"1": "2", "3": "4" * 40})[:cut]))


def test_claims_of_size_cost_no_memory(tmp_path: Path) -> None:
    huge_memo = b"\x80\x02}r\xff\xff\xff\x7fX\x01\x00\x00\x00aX\x01\x00\x00\x00bs."
    assert read_id_map(written(tmp_path, huge_memo)) == {"a": "b"}
    with pytest.raises(DataError):
        read_id_map(written(tmp_path, b"\x80\x04}\x8d" + (2**40).to_bytes(8, "little") + b"a."))
    with pytest.raises(DataError, match="larger than"):
        read_id_map(written(tmp_path, pickle.dumps({"a": "b"})), max_bytes=5)


@given(st.binary(max_size=80))
def test_any_bytes_give_a_dictionary_or_one_clear_error(tmp_path_factory, data) -> None:  # type: ignore[no-untyped-def]
    path = written(tmp_path_factory.mktemp("p"), data)
    with contextlib.suppress(DataError):
        assert all(isinstance(k, str) and isinstance(v, str) for k, v in read_id_map(path).items())

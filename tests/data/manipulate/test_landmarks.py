"""Landmarks of strangers: what is read, what stands for none, and what is refused without being unpickled."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.api.errors import ConfigError, DataError, HarnessError
from harness.data.manipulate import landmarks
from harness.data.manipulate.landmarks import Dlib, JsonFile, NpyFolder, open_landmarks, read_landmarks_npy

IMAGE = np.zeros((128, 64, 3), np.uint8)
POINTS = np.random.default_rng(0).uniform(0, 224, (68, 2))


class Bomb:
    def __reduce__(self):
        return (Path.write_text, (Path("bomb-went-off"), "x"))


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("bomb-went-off").exists()


def test_first_face_counts_and_is_scaled_to_the_image(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.stack([POINTS, POINTS + 1]))
    source = open_landmarks(tmp_path)
    found = source.points("a", IMAGE)
    assert found is not None
    np.testing.assert_allclose(found, POINTS * [64 / 224, 128 / 224], rtol=1e-6)
    assert found.dtype == np.float32
    assert source.points("b", IMAGE) is None


@pytest.mark.parametrize("nothing", [np.array(None), np.array(0.0), np.empty((0, 68, 2))])
def test_an_array_without_dimensions_or_faces_is_no_face(tmp_path: Path, nothing: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", nothing, allow_pickle=True)
    assert read_landmarks_npy(tmp_path / "a.npy") is None


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array(Bomb(), dtype=object), allow_pickle=True)
    assert read_landmarks_npy(path) is None  # known by its header
    np.save(path, np.array([Bomb()] * 136, dtype=object).reshape(1, 68, 2), allow_pickle=True)
    with pytest.raises(DataError, match="of object"):
        read_landmarks_npy(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="not a readable"):
        read_landmarks_npy(path)


def npy_that_claims(shape: str) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x07\x00" + b"x" * 200,
        npy_that_claims("(1, 68, 2)"),
        npy_that_claims("(10**15, 68, 2)"),
        npy_that_claims("(1000000000000, 68, 2)"),
        npy_that_claims("(-1, 68, 2)"),
        npy_that_claims("(" * 60),
    ],
)
def test_damaged_and_boasting_files_are_refused_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "face7.npy"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"face7\.npy"):
        read_landmarks_npy(path)


@pytest.mark.parametrize(
    "array",
    [POINTS, POINTS[None, :5], POINTS[None] + 1j, np.full((1, 68, 2), np.nan), np.full((1, 68, 2), 1e9),
     np.zeros((1, 68, 2), "U3"), np.zeros((1, 68, 2), bool)],
)  # fmt: skip
def test_arrays_that_are_no_landmarks_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match="landmarks"):
        read_landmarks_npy(tmp_path / "a.npy")


def test_large_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        file.truncate(landmarks.MAX_NPY_BYTES + 1)
    with pytest.raises(DataError, match="more than"):
        read_landmarks_npy(tmp_path / "a.npy")
    monkeypatch.setattr(landmarks, "MAX_JSON_BYTES", 10)
    (tmp_path / "l.json").write_text(json.dumps({"a": POINTS.tolist()}))
    with pytest.raises(DataError, match="more than the 10 allowed"):
        open_landmarks(tmp_path / "l.json")


@given(data=st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_landmarks_or_an_error_that_is_the_inputs_fault(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.npy"
    for prefix in (b"", b"\x93NUMPY\x01\x00"):
        path.write_bytes(prefix + data)
        try:
            found = read_landmarks_npy(path)
        except HarnessError:
            continue
        assert found is None or found.shape == (68, 2)


def write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_json_is_in_the_images_pixels_and_null_or_absent_is_no_face(tmp_path: Path) -> None:
    source = open_landmarks(write(tmp_path / "l.json", {"a": POINTS.tolist(), "b": None}))
    assert isinstance(source, JsonFile)
    found = source.points("a", IMAGE)
    assert found is not None
    np.testing.assert_allclose(found, POINTS, rtol=1e-6)
    assert source.points("b", IMAGE) is None
    assert source.points("c", IMAGE) is None
    assert set(source.part(["a", "c"]).table) == {"a"}
    assert source.known(["x", "b"])
    assert not source.known(["x"])


@pytest.mark.parametrize(
    "value", [[], [[1, 2]] * 67, [[1, 2]] * 67 + [[1]], "x", 3, {"x": 1}, [["1", "2"]] * 68, [[True, False]] * 68,
              [[1e300, 0]] * 68, [[10**400, 1]] * 68, [[[1, 2]]] * 68]
)  # fmt: skip
def test_json_that_is_no_landmarks_is_refused_when_it_is_asked_for(tmp_path: Path, value: object) -> None:
    source = open_landmarks(write(tmp_path / "l.json", {"bad": value, "good": POINTS.tolist()}))
    assert source.points("good", IMAGE) is not None
    with pytest.raises(DataError, match="'bad'"):
        source.points("bad", IMAGE)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000])
def test_json_files_that_are_no_objects_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "l.json").write_text(text)
    with pytest.raises(DataError, match=r"l\.json"):
        open_landmarks(tmp_path / "l.json")


def test_sources_are_known_by_what_a_path_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_landmarks(tmp_path), NpyFolder)
    with pytest.raises(DataError, match="not there"):
        open_landmarks(tmp_path / "none.json")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ConfigError, match="not a source"):
        open_landmarks(tmp_path / "x.txt")
    (tmp_path / "predictor.dat").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "dlib", None)  # import fails, as where it is not installed
    with pytest.raises(ConfigError, match="dlib, which is not installed") as refused:
        open_landmarks(tmp_path / "predictor.dat")
    assert "landmarks]" in str(refused.value.fix)


def test_dlib_refuses_a_file_that_is_no_predictor(tmp_path: Path) -> None:
    pytest.importorskip("dlib")
    (tmp_path / "predictor.dat").write_bytes(b"no predictor")
    source = open_landmarks(tmp_path / "predictor.dat")
    assert isinstance(source, Dlib)
    with pytest.raises(DataError, match="cannot read this predictor"):
        source.points("a", IMAGE)

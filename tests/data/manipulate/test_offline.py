"""The offline generator: names, bytes, resuming, what stands in, what is left out, and the command line."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.api.errors import ConfigError, DataError
from harness.api.training import stream
from harness.data.demo.corpus import take_photograph
from harness.data.manipulate import offline
from harness.data.manipulate.face import manipulate_face
from harness.data.manipulate.landmarks import JsonFile, NpyFolder
from harness.data.manipulate.offline import MARKER, Offline, face_files, is_whole, make_files

ROOT = Path(__file__).resolve().parents[3]
COUNT = 5
ALL = Offline(numbers=(0, 1, 2, 3, 4))


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `imgs` of demo photographs, and `landmarks.json` beside it, without those of the last."""
    base = tmp_path_factory.mktemp("faces")
    (base / "imgs").mkdir()
    points = {}
    for i in range(COUNT):
        taken = take_photograph(3, i, 64)
        Image.fromarray(taken.image).save(base / "imgs" / f"{i:03d}.png")
        points[f"{i:03d}"] = taken.landmarks.tolist() if i < COUNT - 1 else None
    (base / "landmarks.json").write_text(json.dumps(points))
    return base


@pytest.fixture
def source(faces: Path) -> JsonFile:
    return JsonFile.load(faces / "landmarks.json")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_files_are_the_manipulated_faces_under_the_released_names(
    faces: Path, source: JsonFile, tmp_path: Path
) -> None:
    counts = make_files(faces / "imgs", tmp_path / "out", source, ALL)
    made = contents(tmp_path / "out")
    assert list(made) == [f"{i:03d}_{n}.png" for i in range(COUNT) for n in range(5)]
    assert (counts.faces, counts.made, counts.skipped, counts.dropped, counts.bad) == (5, 25, 0, 0, ())
    assert (counts.without_landmarks, counts.fell_back) == (1, 4)
    data = (faces / "imgs" / "002.png").read_bytes()
    with Image.open(faces / "imgs" / "002.png") as image:
        pixels = np.asarray(image)
    rng = stream(2024, "manipulate", 1, hashlib.sha256(data).hexdigest())
    expected = manipulate_face(pixels, 1, source.points("002", pixels), rng)
    assert expected is not None
    with Image.open(tmp_path / "out" / "002_1.png") as image:
        assert image.format == "PNG"
        assert not image.info
        assert np.array_equal(np.asarray(image), expected.pixels)


def test_bytes_do_not_depend_on_workers_order_or_interruptions(
    faces: Path, source: JsonFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_files(faces / "imgs", tmp_path / "one", source, ALL)
    whole = contents(tmp_path / "one")
    monkeypatch.setattr(offline, "CHUNK", 1)
    seen: list[tuple[int, int]] = []
    counts = make_files(
        faces / "imgs", tmp_path / "two", source, ALL, workers=2, progress=lambda *done: seen.append(done)
    )
    assert contents(tmp_path / "two") == whole
    assert counts.made == 25
    assert seen[-1] == (5, 5)
    # half a run, another number first, a truncated file of someone else's, and the rest
    make_files(faces / "imgs", tmp_path / "three", source, Offline(numbers=(4,)))
    (tmp_path / "three" / "001_4.png").unlink()
    (tmp_path / "three" / "000_4.png").write_bytes(whole["000_4.png"][:-20])
    again = make_files(faces / "imgs", tmp_path / "three", source, ALL)
    assert contents(tmp_path / "three") == whole
    assert (again.made, again.skipped) == (22, 3)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "three").glob("*.png")}
    assert make_files(faces / "imgs", tmp_path / "three", source, ALL)._replace(bad=())[:3] == (5, 0, 25)
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_another_seed_gives_other_files(faces: Path, source: JsonFile, tmp_path: Path) -> None:
    for seed in (1, 2):
        make_files(faces / "imgs", tmp_path / str(seed), source, Offline(numbers=(3,), seed=seed))
    one, two = contents(tmp_path / "1"), contents(tmp_path / "2")
    assert all(one[name] != two[name] for name in one)


def test_without_landmarks_a_flip_is_dropped_when_asked(faces: Path, source: JsonFile, tmp_path: Path) -> None:
    counts = make_files(faces / "imgs", tmp_path, source, Offline(numbers=(0, 3), no_landmarks="drop"))
    assert (counts.made, counts.dropped, counts.fell_back, counts.without_landmarks) == (9, 1, 0, 1)
    assert not (tmp_path / "004_0.png").exists()
    assert (tmp_path / "004_3.png").exists()


def test_landmarks_of_npy_files_give_the_same_flips(faces: Path, source: JsonFile, tmp_path: Path) -> None:
    (tmp_path / "npy").mkdir()
    for i in range(COUNT):
        raw = source.table[f"{i:03d}"]
        value = np.array(None) if raw is None else np.array([raw]) * (224 / 64)
        np.save(tmp_path / "npy" / f"{i:03d}.npy", value, allow_pickle=True)
    one = make_files(faces / "imgs", tmp_path / "one", source, Offline())
    two = make_files(faces / "imgs", tmp_path / "two", NpyFolder(tmp_path / "npy"), Offline())
    assert one == two
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_folder_of_other_files_or_settings_is_refused(faces: Path, source: JsonFile, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds something else"):
        make_files(faces / "imgs", faces / "imgs", source, Offline())
    make_files(faces / "imgs", tmp_path, None, Offline(numbers=(3,)))
    make_files(faces / "imgs", tmp_path, source, Offline(numbers=(2, 3)))
    for other, key in ((Offline(seed=7), "seed"), (Offline(no_landmarks="drop"), "no_landmarks")):
        with pytest.raises(ConfigError, match=f"another {key}"):
            make_files(faces / "imgs", tmp_path, source, other)
    changed = JsonFile(source.path, source.table, "0" * 64)
    with pytest.raises(ConfigError, match="another landmarks"):
        make_files(faces / "imgs", tmp_path, changed, Offline())
    make_files(faces / "imgs", tmp_path, None, Offline(numbers=(3,)))
    (tmp_path / MARKER).write_text("[1]")
    with pytest.raises(DataError, match="not an object"):
        make_files(faces / "imgs", tmp_path, source, Offline())


def test_flips_need_landmarks_that_are_of_these_faces(faces: Path, source: JsonFile, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="flips need landmarks"):
        make_files(faces / "imgs", tmp_path / "out", None, Offline())
    for other in (JsonFile(source.path, {"x": []}, "0"), NpyFolder(tmp_path)):
        with pytest.raises(DataError, match="no face has landmarks there"):
            make_files(faces / "imgs", tmp_path / "out", other, Offline())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_faces_stop_the_work_or_are_left_out_and_listed(
    faces: Path, source: JsonFile, tmp_path: Path, workers: int
) -> None:
    folder = tmp_path / "imgs"
    folder.mkdir()
    for name in ("000.png", "001.png", "002.png"):
        (folder / name).write_bytes((faces / "imgs" / name).read_bytes())
    (folder / "003.png").write_bytes((faces / "imgs" / "003.png").read_bytes()[:300])
    table = {**source.table, "001": [[1, 2]]}
    bad = JsonFile(source.path, table, "0")
    with pytest.raises(DataError, match=r"key '001'|003\.png"):
        make_files(folder, tmp_path / "stop", bad, Offline(), workers=workers)
    counts = make_files(folder, tmp_path / "skip", bad, Offline(on_bad="skip"), workers=workers)
    assert counts.made == 8
    assert [line.split(":")[0] for line in counts.bad] == ["001.png", "003.png"]
    assert not list((tmp_path / "skip").glob(".tmp*"))


def test_faces_are_the_images_of_the_folder_itself_one_an_id(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not there"):
        face_files(tmp_path / "none")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "x.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    with pytest.raises(DataError, match="no images"):
        face_files(tmp_path)
    for name in ("b.JPG", "a.png", "a.b.png"):
        (tmp_path / name).write_bytes(b"x")
    assert face_files(tmp_path) == ["a.b.png", "a.png", "b.JPG"]
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="would be one face"):
        face_files(tmp_path)


def test_settings_that_cannot_be_meant_are_refused() -> None:
    for wrong in ({"numbers": ()}, {"numbers": (1, 1)}, {"numbers": (5,)}, {"no_landmarks": "x"}, {"on_bad": "x"}):
        with pytest.raises(ConfigError):
            Offline(**wrong)


def test_whole_is_a_png_with_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert not is_whole(path)
    path.mkdir()
    assert not is_whole(path)
    path.rmdir()
    data = offline.png(np.zeros((4, 4, 3), np.uint8))
    path.write_bytes(data)
    assert is_whole(path)
    for cut in (b"", data[:5], data[:-1]):
        path.write_bytes(cut)
        assert not is_whole(path)


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "harness", "data", "manipulate", *map(str, words)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def command(*words: object) -> tuple[int, str, str]:
    process = start(*words)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_command_makes_counts_and_says_what_is_wrong(faces: Path, tmp_path: Path) -> None:
    base = (faces / "imgs", "--out", tmp_path / "out", "--landmarks", faces / "landmarks.json")
    code, out, err = command(*base)
    assert (code, err) == (0, "")
    assert "wrote 20 files of 5 faces" in out
    assert "without landmarks: 1 faces" in out
    assert "in place of a flip (the flip's label is wrong): 3 files" in out
    code, out, _ = command(*base, "--json", "--numbers", "3,1")
    document = json.loads(out)
    assert code == 0
    assert (document["numbers"], document["made"], document["skipped"]) == ([1, 3], 0, 10)
    code, _, err = command(*base, "--numbers", "mouth")
    assert code == 2
    assert "--numbers cannot be 'mouth'" in err


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_made_and_the_command_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "imgs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(1500):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png", compress_level=0)
    words = (folder, "--out", tmp_path / "out", "--numbers", "3", "--workers", "2")
    process, deadline = start(*words), time.monotonic() + 60
    while len(list((tmp_path / "out").glob("*.png"))) < 50:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from there" in err
    assert "Traceback" not in err
    kept = len(contents(tmp_path / "out"))
    assert not list((tmp_path / "out").glob(".tmp*"))
    code, out, _ = command(*words, "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["skipped"], document["made"]) == (kept, 1500 - kept)
    assert 0 < kept < 1500

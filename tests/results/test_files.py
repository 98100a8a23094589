"""Files are there whole or not at all, and the first writer wins."""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from harness.api.errors import StoreError
from harness.results.files import locked, to_json, write_atomic, write_once


def test_the_first_writer_wins(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    assert write_once(path, b"first")
    assert not write_once(path, b"second")
    assert path.read_bytes() == b"first"


def test_write_atomic_replaces_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_a_file_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match=r"cannot write[\s\S]*taken"):
        write_once(tmp_path / "taken" / "file", b"x")


@pytest.mark.parametrize("write", [write_once, write_atomic])
def test_a_full_disk_is_an_error_with_a_fix_and_leaves_nothing(tmp_path: Path, write) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StoreError, match=r"free some space; what was computed before is kept"):
            write(tmp_path / "file", b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_write_killed_at_any_moment_leaves_the_whole_file_or_none(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from harness.results.files import write_once\n"
        "print('ready', flush=True)\n"
        "for i in range(100000): write_once(pathlib.Path(sys.argv[1]) / str(i), b'x' * 300000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    while len(list(tmp_path.iterdir())) < 5:
        assert process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()
    written = [p for p in tmp_path.iterdir() if not p.name.startswith(".tmp-")]
    assert len(written) >= 4
    assert {p.stat().st_size for p in written} == {300000}


def _hold(path: str, inside, leave) -> None:
    with locked(Path(path)):
        inside.set()
        leave.wait(30)


def test_a_lock_keeps_others_out_and_dies_with_its_holder(tmp_path: Path) -> None:
    import fcntl

    context = multiprocessing.get_context("spawn")
    inside, leave = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path / "a.lock"), inside, leave))
    holder.start()
    assert inside.wait(30)
    with (tmp_path / "a.lock").open("a") as handle, pytest.raises(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert holder.pid is not None
    os.kill(holder.pid, 9)
    holder.join()
    with locked(tmp_path / "a.lock"):
        pass


def test_json_has_one_spelling() -> None:
    assert to_json({"b": 1, "a": "é"}) == to_json({"a": "é", "b": 1}) == '{\n  "a": "é",\n  "b": 1\n}\n'.encode()

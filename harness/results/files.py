"""Files that are either there whole or not there: temporary file, fsync, link or rename."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.api.errors import StoreError


def _refuse(error: OSError, path: Path) -> StoreError:
    full = error.errno in (28, 27, 122)  # ENOSPC, EFBIG, EDQUOT
    fix = "free some space; what was computed before is kept" if full else "check the folder's permissions"
    return StoreError(f"cannot write: {error.strerror}", where=path, fix=fix)


def _temporary(path: Path, data: bytes) -> Path:
    """A synced temporary file beside ``path``; never left behind on failure."""
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_once(path: Path, data: bytes) -> bool:
    """Write a file unless it exists: the first writer wins. True when this call wrote it.

    Raises:
        StoreError: the folder cannot be written or the disk is full; nothing partial is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path, data)
        try:
            os.link(temporary, path)
            return True
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _refuse(error, path) from error


def write_numbered(folder: Path, number: int, suffixes: tuple[str, ...], data: bytes) -> int:
    """Write ``NUMBER{suffixes[0]}`` (eight digits) under the first number from ``number`` on that has no file with any
    of the suffixes, in a folder that is there; the number. Two writers never share one.

    Raises:
        StoreError: as :func:`write_once`.
    """
    path = folder / f"{number:08d}{suffixes[0]}"
    try:
        temporary = _temporary(path, data)
        try:
            while True:
                path = folder / f"{number:08d}{suffixes[0]}"
                with contextlib.suppress(FileExistsError):
                    if not any(path.with_suffix(other).exists() for other in suffixes[1:]):
                        os.link(temporary, path)
                        return number
                number += 1
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _refuse(error, path) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write or replace a file in one step.

    Raises:
        StoreError: as :func:`write_once`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _temporary(path, data).replace(path)
    except OSError as error:
        raise _refuse(error, path) from error


def require_writable(path: Path) -> None:
    """Refuse early where ``path`` could not be written; nothing is made or left.

    Raises:
        StoreError: as :func:`write_once`.
    """
    folder = path.parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        _temporary(folder / path.name, b"").unlink()
    except OSError as error:
        raise _refuse(error, path) from error


def to_json(value: Any) -> bytes:
    """JSON text with sorted keys, for people and for diffs."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file (made if absent) between processes; released even by kill -9."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)

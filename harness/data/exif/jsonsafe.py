"""JSON of strangers: one object, bounded, each key once; and text files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any, NoReturn

from harness.api.errors import DataError


def load_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        DataError: no regular file, larger than `max_bytes`, not UTF-8, not JSON (NaN and Infinity are not), nested
            too deep, a key twice in one object, or no object; names the file.
    """
    try:
        if not path.is_file():
            raise DataError("there is no such file", path, "check the path")
        size = path.stat().st_size
        if size > max_bytes:
            raise DataError(f"the JSON file has {size:,} bytes, more than the {max_bytes:,} allowed", path, "split it")
        with path.open("rb") as stream:
            data = stream.read(max_bytes)
    except (OSError, ValueError) as error:
        raise DataError(f"the file cannot be read ({getattr(error, 'strerror', None) or error})", path) from error
    return parse_object(data, str(path))


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """As `load_object`, for bytes at hand."""
    fix = "name a JSON file in the documented layout"
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise DataError(f"the JSON file is not UTF-8 (byte {error.start})", where, fix) from None
    except RecursionError:
        raise DataError("the JSON is nested too deep", where, fix) from None
    except ValueError as error:
        raise DataError(f"not JSON that is read here: {str(error)[:200]}", where, fix) from None
    if not isinstance(value, dict):
        raise DataError(f"the JSON file holds a {type(value).__name__}, not an object", where, fix)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key[:80]!r} stands twice in one object")
            seen.add(key)
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def write_bytes(path: Path, data: bytes) -> Path:
    """Write or replace a file in one step; `DataError` where the folder cannot be written."""
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot write: {error.strerror}", path, "check the folder and free space") from error
    return path


def write_text(path: Path, text: str) -> Path:
    """As `write_bytes`, UTF-8."""
    return write_bytes(path, text.encode("utf-8"))

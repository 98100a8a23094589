"""EXIF blocks byte for byte, images that carry them, and the shipped vocabulary."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness.data.exif.vocabulary import Vocabulary, load_vocabulary

ROOT = Path(__file__).resolve().parents[3]
ASCII, SHORT, LONG, RATIONAL, UNDEFINED, SRATIONAL = 2, 3, 4, 5, 7, 10
GOOD_IFD0 = {0x010F: (ASCII, b"Canon\0"), 0x0110: (ASCII, b"EOS\0")}
GOOD_EXIF: dict[int, tuple[int, Any]] = {
    0x829A: (RATIONAL, (1, 60)), 0x829D: (RATIONAL, (28, 10)), 0x8827: (SHORT, 200), 0x920A: (RATIONAL, (50, 1)),
    0x9207: (SHORT, 5), 0xA402: (SHORT, 0), 0xA403: (SHORT, 1), 0x8822: (SHORT, 3),
}  # fmt: skip


def _entry(kind: int, value: Any) -> bytes:
    if kind in (ASCII, UNDEFINED):
        return bytes(value)
    if kind == SHORT:
        return struct.pack("<H", value)
    if kind == LONG:
        return struct.pack("<L", value)
    return struct.pack("<ll" if kind == SRATIONAL else "<LL", *value)


def _directory(tags: dict[int, tuple[int, Any]], start: int) -> bytes:
    """One directory that stands at `start` of the block, with its data behind it."""
    head, tail = struct.pack("<H", len(tags)), b""
    where = start + 2 + 12 * len(tags) + 4
    for code, (kind, value) in sorted(tags.items()):
        data = _entry(kind, value)
        count = len(data) if kind in (ASCII, UNDEFINED) else 1
        if len(data) <= 4:
            head += struct.pack("<HHL4s", code, kind, count, data)
        else:
            head += struct.pack("<HHLL", code, kind, count, where + len(tail))
            tail += data + b"\0" * (len(data) % 2)
    return head + struct.pack("<L", 0) + tail


def exif_block(ifd0: dict[int, tuple[int, Any]], exif: dict[int, tuple[int, Any]] | None = None) -> bytes:
    """An EXIF block (after ``Exif\\0\\0``): little-endian TIFF with one directory, and the EXIF directory."""
    tags = dict(ifd0)
    if exif is None:
        return b"II*\0\x08\0\0\0" + _directory(tags, 8)
    tags[0x8769] = (LONG, 0)
    second = 8 + len(_directory(tags, 8))
    tags[0x8769] = (LONG, second)
    return b"II*\0\x08\0\0\0" + _directory(tags, 8) + _directory(exif, second)


def picture(kind: str, block: bytes | None) -> bytes:
    """A small image with an EXIF block as it stands."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {} if block is None else {"exif": b"Exif\0\0" + block}
    Image.new("RGB", (16, 12), (120, 90, 60)).save(buffer, kind, **options)
    return buffer.getvalue()


def write(path: Path, block: bytes | None, kind: str = "JPEG") -> Path:
    """An image file with an EXIF block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(kind, block))
    return path


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return load_vocabulary(ROOT / "suites" / "exif" / "blades.yaml")

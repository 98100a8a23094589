"""Images of every format that carries EXIF, good and bad: read, or counted as a problem by kind, never an exception."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from harness.data.exif.photos import Sources
from harness.data.exif.read import read_image
from harness.data.exif.table import ExifTable, build_table
from harness.data.exif.vocabulary import Vocabulary

from .conftest import ASCII, GOOD_EXIF, GOOD_IFD0, RATIONAL, SHORT, SRATIONAL, UNDEFINED, exif_block, picture, write

GOOD = exif_block(GOOD_IFD0, GOOD_EXIF)


def table_of(folder: Path, vocabulary: Vocabulary) -> ExifTable:
    return build_table(Sources([folder]), vocabulary)


def row_of(block: bytes | None, tmp_path: Path, vocabulary: Vocabulary) -> tuple[dict[str, Any], set[str]]:
    write(tmp_path / "one" / "photo.jpg", block)
    table = table_of(tmp_path / "one", vocabulary)
    return table.frame.iloc[0].to_dict(), set(table.problems)


@pytest.mark.parametrize(("kind", "ending"), [("JPEG", "jpg"), ("WEBP", "webp"), ("PNG", "png"), ("TIFF", "tif")])
def test_every_format(kind: str, ending: str, tmp_path: Path, vocabulary: Vocabulary) -> None:
    if kind == "TIFF":  # its own directory is the first one
        exif = Image.Exif()
        exif.load(GOOD)
        Image.new("RGB", (8, 8)).save(tmp_path / "a.tif", exif=exif)
    else:
        write(tmp_path / f"a.{ending}", GOOD, kind)
    table = table_of(tmp_path, vocabulary)
    row = table.frame.iloc[0]
    assert (row["id"], row["path"], row["format"], table.problems) == ("a", f"a.{ending}", kind, {})
    assert row["exposure_time"] == pytest.approx(1 / 60)
    assert (row["aperture"], row["focal_length"], row["iso"]) == (2.8, 50.0, 200)
    assert (row["make"], row["maker"], row["make_raw"]) == ("Canon", "Canon", "Canon")
    assert row["metering_mode"] == "multi-segment"
    assert (row["exposure_mode"], row["white_balance"]) == ("auto", "manual")
    assert row["exposure_program"] == "aperture priority"


def test_a_pngs_exif_behind_its_pixels_is_read(tmp_path: Path, vocabulary: Vocabulary) -> None:
    data = picture("PNG", GOOD)
    at = data.index(b"eXIf") - 4
    size = struct.unpack(">L", data[at : at + 4])[0] + 12
    chunk, rest = data[at : at + size], data[:at] + data[at + size :]
    (tmp_path / "a.png").write_bytes(rest[:-12] + chunk + rest[-12:])
    assert table_of(tmp_path, vocabulary).frame["iso"].tolist() == [200]


def test_a_heic_file_is_read_with_its_package_and_named_without(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.data.exif import photos, read

    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    monkeypatch.setattr(read, "heic_available", lambda: False)
    monkeypatch.setattr(photos, "heic_available", lambda: False)
    sources = Sources([tmp_path])
    assert "pip install pillow-heif" in sources.problems[0].text()
    assert set(build_table(sources, vocabulary).problems) == {"no-heic-reader"}
    monkeypatch.undo()
    heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    heif.register_heif_opener()
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "HEIF", exif=b"Exif\0\0" + GOOD)
    (tmp_path / "a.heic").write_bytes(buffer.getvalue())
    assert table_of(tmp_path, vocabulary).frame["aperture"].tolist() == [2.8]


def test_apex_values_stand_in_where_only_they_are_there(tmp_path: Path, vocabulary: Vocabulary) -> None:
    apex = {0x9201: (SRATIONAL, (-1, 1)), 0x9202: (RATIONAL, (3, 1))}
    row, problems = row_of(exif_block(GOOD_IFD0, apex), tmp_path, vocabulary)
    assert (row["exposure_time"], row["exposure_time_from"]) == (2.0, "ShutterSpeedValue")
    assert row["aperture"] == pytest.approx(2**1.5)
    assert row["aperture_from"] == "ApertureValue"
    assert row["f_number"] != row["f_number"]  # NaN
    assert problems == set()


def test_a_zero_denominator_is_counted_and_the_apex_value_taken(tmp_path: Path, vocabulary: Vocabulary) -> None:
    tags = GOOD_EXIF | {0x829A: (RATIONAL, (1, 0)), 0x9201: (SRATIONAL, (6, 1)), 0x920A: (RATIONAL, (0, 0))}
    row, problems = row_of(exif_block(GOOD_IFD0, tags), tmp_path, vocabulary)
    assert row["exposure_time"] == 1 / 64
    assert problems == {"zero-denominator:exposure_time", "zero-denominator:focal_length"}


def test_a_lens_without_contacts_has_no_aperture(tmp_path: Path, vocabulary: Vocabulary) -> None:
    tags = GOOD_EXIF | {0x829D: (RATIONAL, (0, 1)), 0x9202: (RATIONAL, (0, 1))}
    row, problems = row_of(exif_block(GOOD_IFD0, tags), tmp_path, vocabulary)
    assert row["aperture"] != row["aperture"]
    assert problems == {"out-of-range:aperture", "out-of-range:f_number"}


def test_iso_0_and_iso_65535(tmp_path: Path, vocabulary: Vocabulary) -> None:
    row, problems = row_of(exif_block(GOOD_IFD0, GOOD_EXIF | {0x8827: (SHORT, 0)}), tmp_path, vocabulary)
    assert problems == {"out-of-range:iso"}
    assert not isinstance(row["iso"], int)
    large = GOOD_EXIF | {0x8827: (SHORT, 65535), 0x8832: (4, 102400)}
    row, problems = row_of(exif_block(GOOD_IFD0, large), tmp_path, vocabulary)
    assert (row["iso"], row["iso_from"], problems) == (102400, "RecommendedExposureIndex", set())


@pytest.mark.parametrize(
    ("maker", "shown", "problems"),
    [
        ("华为".encode() + b"\0", "华为", {"not-ascii:make"}),
        (b"NIKON CORPORATION\0\0\0\0", "NIKON CORPORATION", {"padded-text:make"}),
        (b"Canon\0" + b"\0" * 60_000, "Canon", {"padded-text:make"}),
        (b"\0\0\0\0\0\0", None, set()),
    ],
)
def test_makers(maker: bytes, shown: str | None, problems: set[str], tmp_path: Path, vocabulary: Vocabulary) -> None:
    row, found = row_of(exif_block({0x010F: (ASCII, maker)}, GOOD_EXIF), tmp_path, vocabulary)
    assert (row["make_raw"] if isinstance(row["make_raw"], str) else None) == shown
    assert found == problems


def test_position_alone_is_no_camera_tag(tmp_path: Path, vocabulary: Vocabulary) -> None:
    block = exif_block({0x8825: (4, 26)})
    _, problems = row_of(block + struct.pack("<HHHL4sL", 1, 1, ASCII, 2, b"N\0\0\0", 0), tmp_path, vocabulary)
    assert problems == {"no-camera-tags"}


def test_without_exif(tmp_path: Path, vocabulary: Vocabulary) -> None:
    for kind, ending in (("JPEG", "jpg"), ("WEBP", "webp"), ("PNG", "png")):
        write(tmp_path / f"{ending}.{ending}", None, kind)
    assert dict(table_of(tmp_path, vocabulary).problems) == {"no-exif": 3}


def test_a_truncated_block_gives_what_it_still_has(tmp_path: Path, vocabulary: Vocabulary) -> None:
    seen = set()
    for end in range(0, len(GOOD), 3):
        row, problems = row_of(GOOD[:end], tmp_path, vocabulary)
        assert problems
        assert {p.partition(":")[0] for p in problems} <= {"corrupt-exif", "no-exif", "no-camera-tags", "blank"}
        seen.add(row["make_raw"] if isinstance(row["make_raw"], str) else "")
    assert seen == {"", "Canon"}


def test_ten_megabytes_of_padding(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "big.png", GOOD + b"\0" * 10_000_000, "PNG")
    write(tmp_path / "large.webp", GOOD + b"\0" * 10_000_000, "WEBP")
    (tmp_path / "behind.jpg").write_bytes(picture("JPEG", GOOD) + b"\0" * 10_000_000)
    comments = b"\xff\xfe\xff\xff" + b" " * 65533
    plain = picture("JPEG", GOOD)
    (tmp_path / "before.jpg").write_bytes(plain[:2] + comments * 160 + plain[2:])
    table = table_of(tmp_path, vocabulary)
    assert dict(table.problems) == {"exif-too-large": 2}
    read = table.frame.set_index("id")["iso"]
    assert (read["behind"], read["before"]) == (200, 200)


def test_values_of_wrong_kinds_are_counted(tmp_path: Path, vocabulary: Vocabulary) -> None:
    tags = {
        0x829A: (ASCII, b"soon\0\0"), 0x829D: (UNDEFINED, b"\xff\xfe\xfd\xfc\xfb"), 0x8827: (ASCII, b"auto\0\0"),
        0x9207: (RATIONAL, (1, 3)), 0xA402: (SHORT, 77), 0x9000: (SHORT, 220), 0x9003: (ASCII, b"yesterday 1\0"),
    }  # fmt: skip
    row, problems = row_of(exif_block({0x010F: (SHORT, 7)}, tags), tmp_path, vocabulary)
    assert problems == {
        "not-a-number:exposure_time", "not-a-number:aperture", "not-a-number:f_number", "not-a-number:iso",
        "not-a-code:metering_mode", "not-a-text:exif_version", "not-a-date:date_time_original",
    }  # fmt: skip
    assert row["exposure_mode_raw"] == "77"
    assert not isinstance(row["exposure_mode"], str)


def test_files_that_are_no_images(tmp_path: Path, vocabulary: Vocabulary) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(picture("PNG", GOOD)[:30])
    (tmp_path / "bomb.png").write_bytes(_png_of_claimed_size(200_000, 200_000))
    (tmp_path / "large.png").write_bytes(_png_of_claimed_size(12_000, 12_000))
    table = table_of(tmp_path, vocabulary)
    assert dict(table.problems) == {"empty": 1, "not-an-image": 2, "too-large": 2}
    assert table.frame["make"].isna().all()


def _png_of_claimed_size(width: int, height: int) -> bytes:
    import zlib

    header = b"IHDR" + struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = struct.pack(">L", 4) + b"IDAT\0\0\0\0" + struct.pack(">L", zlib.crc32(b"IDAT\0\0\0\0"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">L", 13) + header + struct.pack(">L", zlib.crc32(header)) + pixels


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "p.jpg")
    assert read_image(tmp_path / "p.jpg", "p.jpg").problems == ("unreadable",)


@given(st.binary(max_size=200), st.integers(0, len(GOOD)), st.sampled_from(("JPEG", "WEBP", "PNG")))
def test_any_bytes_in_an_exif_block_end_in_a_row(
    tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary, junk: bytes, at: int, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    write(folder / "a.jpg", GOOD[:at] + junk + GOOD[at + len(junk) :], kind)
    table = table_of(folder, vocabulary)
    assert len(table) == 1


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6))
def test_changed_bytes_of_a_block_end_in_a_row(
    tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary, changes: list[tuple[int, int]]
) -> None:
    block = bytearray(GOOD)
    for at, value in changes:
        block[at] = value
    folder = tmp_path_factory.mktemp("fuzz")
    write(folder / "a.jpg", bytes(block))
    assert len(table_of(folder, vocabulary)) == 1

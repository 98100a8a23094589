"""Decoding: the released code's pixels, and one clear error for every hostile file."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.api.errors import DataError
from harness.api.images import (
    MAX_FILE_BYTES,
    decode,
    estimate_jpeg_quality,
    inspect_image,
    read_image_file,
)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(height: int = 40, width: int = 56, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", body) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def pillow_rgb(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


MODES = {
    "rgb": photo(),
    "grey": photo().convert("L"),
    "palette": photo().quantize(16),
    "alpha": Image.merge("RGBA", [*photo().split(), photo(seed=1).convert("L")]),
    "grey with alpha": photo().convert("LA"),
    "one bit": photo().convert("1"),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_png_mode_gives_the_pixels_of_the_released_conversion(mode: str) -> None:
    data = encoded(MODES[mode])
    pixels = decode(data, name="a.png")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (40, 56, 3)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, pillow_rgb(data))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_every_format_gives_the_pixels_of_the_released_conversion(kind: str) -> None:
    data = encoded(photo(), kind)
    np.testing.assert_array_equal(decode(data, name="a"), pillow_rgb(data))
    facts = inspect_image(data)
    assert (facts.width, facts.height, facts.format, facts.frames) == (56, 40, kind, 1)


def test_cmyk_jpeg_is_converted_as_pillow_does() -> None:
    data = encoded(photo().convert("CMYK"), "JPEG")
    assert inspect_image(data).mode == "CMYK"
    np.testing.assert_array_equal(decode(data, name="a.jpg"), pillow_rgb(data))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_keeps_its_high_byte(kind: str) -> None:
    values = (np.arange(40 * 56, dtype=np.uint32).reshape(40, 56) * 29 % 65536).astype(np.uint16)
    pixels = decode(encoded(Image.fromarray(values), kind), name="a")
    np.testing.assert_array_equal(pixels, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_float_pixels_are_refused_because_their_range_is_unknown() -> None:
    with pytest.raises(DataError, match="floating-point"):
        decode(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), name="a.tif")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [photo(seed=i).quantize(16, dither=Image.Dither.NONE).convert("RGB") for i in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert inspect_image(data).frames == 3
    np.testing.assert_array_equal(decode(data, name="a"), np.asarray(frames[0]))


def test_exif_rotation_is_ignored_unless_asked_for() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(), "JPEG", exif=exif)
    upright, rotated = decode(data, name="a"), decode(data, name="a", rotate=True)
    assert upright.shape == (40, 56, 3)
    np.testing.assert_array_equal(rotated, np.rot90(upright, -1))


def test_a_huge_header_is_refused_before_decoding() -> None:
    for size in [(50_000, 50_000), (10_000, 10_000)]:
        with pytest.raises(DataError, match="pixels allowed"):
            decode(png_header(*size), name="bomb.png")
        with pytest.raises(DataError, match=r"bomb\.png"):
            inspect_image(png_header(*size), name="bomb.png")


def test_the_pixel_limit_is_a_setting() -> None:
    data = encoded(photo())
    decode(data, name="a", max_pixels=40 * 56)
    with pytest.raises(DataError, match="56x40"):
        decode(data, name="a", max_pixels=40 * 56 - 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_an_error_that_names_it(kind: str, share: float) -> None:
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noisy, kind)
    with pytest.raises(DataError, match="cut me"):
        decode(data[: int(len(data) * share)], name="cut me.img")


@pytest.mark.parametrize("data", [b"", b"\0", b"I am text\n" * 50, b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_an_error_that_names_it(data: bytes) -> None:
    for call in (lambda: decode(data, name="note.jpg"), lambda: inspect_image(data, name="note.jpg")):
        with pytest.raises(DataError) as caught:
            call()
        assert caught.value.where == "note.jpg"
        assert caught.value.fix


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12),
    st.floats(0, 1),
)
def test_damaged_files_give_pixels_or_one_error_and_nothing_else(
    kind: str, hits: list[tuple[float, int]], keep: float
) -> None:
    data = bytearray(encoded(photo(16, 16), kind))
    for place, value in hits:
        data[int(place**2 * (len(data) - 1))] = value
    damaged = bytes(data[: max(1, int(len(data) * max(keep, 0.2)))])
    for call in (lambda: decode(damaged, name="x", max_pixels=10**6), lambda: inspect_image(damaged, name="x")):
        with contextlib.suppress(DataError):
            call()


@given(st.binary(max_size=300))
def test_random_bytes_never_raise_anything_but_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError):
        decode(b"\x00" + data, name="x")


@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_quality_is_found_for_every_setting_of_libjpeg(subsampling: int) -> None:
    image = photo(16, 16)
    found = [
        inspect_image(encoded(image, "JPEG", quality=q, subsampling=subsampling)).jpeg_quality for q in range(1, 101)
    ]
    assert found == list(range(1, 101))


def test_jpeg_quality_of_grey_and_of_other_formats() -> None:
    assert inspect_image(encoded(photo().convert("L"), "JPEG", quality=83)).jpeg_quality == 83
    assert inspect_image(encoded(photo(), "PNG")).jpeg_quality == -1
    assert estimate_jpeg_quality({}) == -1
    assert estimate_jpeg_quality({0: [1, 2, 3]}) == -1


def test_facts_from_a_path_equal_those_from_bytes(tmp_path: Path) -> None:
    data = encoded(photo(), "JPEG", quality=70)
    (tmp_path / "ä ö.jpg").write_bytes(data)
    assert inspect_image(tmp_path / "ä ö.jpg") == inspect_image(data)
    assert read_image_file(tmp_path / "ä ö.jpg") == data


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "empty", "nul"])
def test_paths_that_are_no_image_files_are_errors_and_never_hang(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.jpg"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    elif kind == "nul":
        path = tmp_path / "x\0.jpg"
    with pytest.raises(DataError):
        inspect_image(path)
    if kind != "empty":
        with pytest.raises(DataError):
            read_image_file(path)


def test_a_file_larger_than_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    with path.open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(DataError, match="bytes"):
        read_image_file(path)


def test_real_images_decode_as_the_released_code_does(shared_data: Path) -> None:
    for path in sorted((shared_data / "faces").rglob("*.*g"))[::40] + sorted((shared_data / "exif").glob("*.jpg"))[:3]:
        data = path.read_bytes()
        pixels = decode(data, name=path.name)
        np.testing.assert_array_equal(pixels, pillow_rgb(data))
        assert inspect_image(data).width == pixels.shape[1]

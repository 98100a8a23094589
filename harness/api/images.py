"""Bytes of an image file to RGB pixels, and the facts that its header states.

The one place where files of strangers are opened: every failure is a `DataError` that names the file, and a
header that claims more pixels than allowed is refused before anything is decoded.
"""

from __future__ import annotations

import functools
import io
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from harness.api.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PIXELS = 89_478_485
"""Pixels that a header may claim (Pillow's own warning level); more is refused before decoding."""

MAX_FILE_BYTES = 512 * 2**20
"""Bytes that an image file may have."""

READABLE = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Formats that are opened (a multi-picture JPEG counts as JPEG); formats that run programs are not among them."""

_ENDINGS = ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pnm .avif .jp2"
SUFFIXES = frozenset(_ENDINGS.split())
"""File name endings, in lower case, by which a folder's images are known."""

_RE_SAVE = "replace the file by an intact one, or leave it out (--on-bad-image skip)"

# Annex K of the JPEG standard, luminance, in natural order: what libjpeg scales by quality.
_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    dtype=np.int32,
).reshape(64)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a file's header states, without decoding its pixels.

    Attributes:
        width, height: pixels, as stored (EXIF rotation is not applied).
        format: Pillow's name of the format ("JPEG", "PNG", "WEBP", "MPO", ...).
        jpeg_quality: estimate 1..100 from the quantisation table; -1 when the file is no JPEG.
        mode: Pillow's pixel mode ("RGB", "L", "P", "RGBA", "CMYK", "I;16", ...).
        frames: number of frames or pages; 1 for a still image.
    """

    width: int
    height: int
    format: str
    jpeg_quality: int
    mode: str
    frames: int


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in READABLE if name in Image.OPEN)


@functools.cache
def _quality_tables() -> NDArray[np.int32]:
    """[100, 64] libjpeg's luminance tables at quality 1..100 (jpeg_quality_scaling, jpeg_add_quant_table)."""
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((_LUMINANCE[None] * scale[:, None] + 50) // 100, 1, 255).astype(np.int32)


def estimate_jpeg_quality(tables: Mapping[int, Sequence[int]]) -> int:
    """Quality 1..100 whose libjpeg luminance table is nearest (sum of absolute differences) to a file's.

    Args:
        tables: quantisation tables by number, 64 values each in natural order, as Pillow gives them.

    Exact for files that libjpeg wrote with its standard tables; the nearest setting for other encoders (their
    own scales have no common number). -1 when there is no table.
    """
    if not tables:
        return -1
    table = np.asarray(tables[min(tables)], dtype=np.int32)
    if table.shape != (64,):
        return -1
    return int(np.abs(_quality_tables() - table).sum(axis=1).argmin()) + 1


def _open(stream: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(stream, formats=_formats())
    except UnidentifiedImageError as error:
        raise DataError(
            "not an image in a format that is read here", name, f"formats: {', '.join(_formats())}; {_RE_SAVE}"
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(str(error), name, max_pixels) from error
    except Exception as error:  # a decoder can fail in any way on a hostile header; all of it is the file's fault
        raise DataError(f"the image header cannot be read ({_reason(error)})", name, _RE_SAVE) from error
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(f"the header claims {width}x{height} pixels", name, max_pixels)
    if width < 1 or height < 1:
        raise DataError(f"the header claims {width}x{height} pixels", name, _RE_SAVE)
    return image


def _too_large(what: str, name: str, max_pixels: int) -> DataError:
    return DataError(
        f"{what}: more than the {max_pixels:,} pixels allowed; not decoded",
        name,
        "scale the image down, or leave it out",
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    mode = image.mode
    if mode == "RGB":
        return image
    if mode.startswith("I"):
        high = np.clip(np.asarray(image), 0, 65535).astype(np.uint16) >> 8
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    if mode == "F":
        raise DataError("floating-point pixels have no stated range", name, "save the image with 8 bits a channel")
    return image.convert("RGB")


def decode(data: bytes, *, name: str, rotate: bool = False, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3] uint8 (C-contiguous, writable) of an encoded image.

    Args:
        data: the file's bytes.
        name: what errors call the file.
        rotate: apply the EXIF orientation; by default it is ignored, as the released code ignores it.
        max_pixels: refuse a header that claims more (Pillow's own limit of 178,956,970 stays above it).

    Equal to Pillow's ``Image.open(...).convert("RGB")`` of the released code: grey is repeated three times, a
    palette is looked up, alpha is dropped (not blended), CMYK is converted naively (Adobe's inversion minded),
    colour profiles are ignored, an animation gives its first frame.
    *Deviation*: 16-bit grey keeps its high byte (Pillow's conversion would clip nearly all of it to white; 16-bit
    colour PNG already keeps the high byte).

    Raises:
        DataError: empty, truncated, undecodable or too large; names the file.
    """
    if not data:
        raise DataError("the file is empty (0 bytes)", name, _RE_SAVE)
    with _open(io.BytesIO(data), name, max_pixels) as image:
        try:
            image.load()
            upright = ImageOps.exif_transpose(image) if rotate else image
            return np.array(_to_rgb(upright, name))
        except DataError:
            raise
        except Exception as error:  # see _open: truncation and corruption surface as many types
            truncated = "truncated" in str(error).lower()
            what = "the image is truncated" if truncated else "the image cannot be decoded"
            raise DataError(f"{what} ({_reason(error)})", name, _RE_SAVE) from error


def inspect_image(
    source: bytes | str | os.PathLike[str], *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> ImageFacts:
    """Size, format, mode, frames and JPEG quality of an image, from its headers only.

    Args:
        source: the file's bytes, or a path (then little more than the header is read).
        name: what errors call the file; the path where one is given.

    Raises:
        DataError: no such file, empty, not an image, or a header that claims too many pixels.
    """
    if isinstance(source, bytes):
        if not source:
            raise DataError("the file is empty (0 bytes)", name or "bytes", _RE_SAVE)
        with _open(io.BytesIO(source), name or "bytes", max_pixels) as image:
            return _facts(image)
    path = Path(source)
    label = name or str(path)
    if check_file(path, label) == 0:
        raise DataError("the file is empty (0 bytes)", label, _RE_SAVE)
    with path.open("rb") as stream, _open(stream, label, max_pixels) as image:
        return _facts(image)


def _facts(image: Image.Image) -> ImageFacts:
    tables: Any = getattr(image, "quantization", None)
    is_jpeg = image.format in ("JPEG", "MPO")
    try:
        frames = int(getattr(image, "n_frames", 1))
    except Exception:  # a damaged later frame is no reason to refuse the first one, which is all that is used
        frames = 1
    return ImageFacts(
        width=image.size[0],
        height=image.size[1],
        format=image.format or "",
        jpeg_quality=estimate_jpeg_quality(tables) if is_jpeg and tables else -1,
        mode=image.mode,
        frames=frames,
    )


def check_file(path: Path, name: str) -> int:
    """Size in bytes of a regular file of bounded size; `DataError` for anything else (a pipe would hang a read)."""
    try:
        facts = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"the file cannot be read ({reason})", name, "check the path and its permissions") from error
    if not stat.S_ISREG(facts.st_mode):
        raise DataError("not a regular file", name, "name an image file")
    if facts.st_size > MAX_FILE_BYTES:
        raise DataError(
            f"the file has {facts.st_size:,} bytes, more than the {MAX_FILE_BYTES:,} allowed", name, "leave it out"
        )
    return facts.st_size


def read_image_file(path: str | os.PathLike[str], *, name: str | None = None) -> bytes:
    """All bytes of a regular file of at most `MAX_FILE_BYTES`; `DataError` that names it otherwise."""
    path = Path(path)
    label = name or str(path)
    check_file(path, label)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the file cannot be read ({error.strerror or error})", label, "check the path and its permissions"
        ) from error

"""Raw EXIF of an image file: the values of Table 8's tags, and what was wrong with it, never an exception.

Only headers are read, with Pillow's decoders of the formats that carry EXIF; pixels are decoded for PNG alone,
whose EXIF may follow them.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

from harness.api.errors import DataError
from harness.api.images import MAX_PIXELS, check_file
from harness.data.exif.tags import CODES

FORMATS: tuple[str, ...] = ("JPEG", "TIFF", "WEBP", "PNG")
"""Pillow's formats that are opened (a multi-picture JPEG counts as JPEG); with the package pillow-heif also HEIF."""
IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".webp", ".png"])
HEIC_SUFFIXES = frozenset((".heic", ".heif", ".hif"))
MAX_EXIF_BYTES = 4 * 2**20
"""Bytes that an EXIF block may have (a JPEG segment holds 64 KiB; others can hold gigabytes)."""
_DAMAGE = ("EXIF", "Tag ", "Truncated")  # of Pillow's warnings; it reads on, or leaves the rest of a directory out
NO_HEIC = "HEIC needs the package pillow-heif: pip install pillow-heif (the extra heic)"


@dataclass(frozen=True, slots=True)
class Photo:
    """The raw tags of one photograph.

    Attributes:
        id: file stem, or key in a JSON file.
        path: as it is to be named in a label file.
        format: "JPEG", "TIFF", "WEBP", "PNG", "HEIF" or "JSON"; "" when it could not be read.
        raw: tags by EXIF number (from an image) or by lower-case name (from JSON).
        problems: kinds of what is wrong with the file as a whole.
    """

    id: str
    path: str
    format: str
    raw: Mapping[int | str, Any]
    problems: tuple[str, ...] = ()


@functools.cache
def heic_available() -> bool:
    """Whether pillow-heif is installed; then it is registered with Pillow."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def read_image(path: Path, name: str) -> Photo:
    """Raw tags of the image at `path`.

    Args:
        name: path to be kept, relative to the folder it was found in.

    Problems are ``unreadable``, ``empty``, ``not-an-image``, ``too-large``, ``no-heic-reader``, ``no-exif``,
    ``exif-too-large``, ``corrupt-exif`` (what could be read is kept) and ``no-camera-tags``.
    """
    stem = Path(name).stem
    formats = FORMATS
    if path.suffix.lower() in HEIC_SUFFIXES:
        if not heic_available():
            return Photo(stem, name, "", {}, ("no-heic-reader",))
        formats = (*FORMATS, "HEIF")
    try:
        if check_file(path, name) == 0:
            return Photo(stem, name, "", {}, ("empty",))
    except DataError:
        return Photo(stem, name, "", {}, ("unreadable",))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kind, raw, problems = _tags(path, formats)
    if any(word in str(w.message) for w in said for word in _DAMAGE):
        problems = [*problems, "corrupt-exif"]
    if kind and not raw and not problems:
        problems = ["no-camera-tags"]
    return Photo(stem, name, kind, raw, tuple(dict.fromkeys(problems)))


def _tags(path: Path, formats: tuple[str, ...]) -> tuple[str, dict[int | str, Any], list[str]]:
    """Format, raw tags and problems."""
    try:
        with Image.open(path, formats=formats) as image:
            kind = "JPEG" if image.format == "MPO" else str(image.format)
            if image.width * image.height > MAX_PIXELS:
                return "", {}, ["too-large"]
            return kind, *_of_image(image)
    except Image.DecompressionBombError:
        return "", {}, ["too-large"]
    except UnidentifiedImageError:
        return "", {}, ["not-an-image"]
    except OSError as error:
        return "", {}, ["unreadable" if error.errno is not None else "not-an-image"]
    except Exception:  # decoders of hostile headers fail in any way
        return "", {}, ["not-an-image"]


def _of_image(image: Image.Image) -> tuple[dict[int | str, Any], list[str]]:
    block = image.info.get("exif") or b""
    if len(block) > MAX_EXIF_BYTES or len(image.info.get("Raw profile type exif", "")) > 2 * MAX_EXIF_BYTES:
        return {}, ["exif-too-large"]
    try:
        exif = image.getexif()
        if len(image.info.get("exif") or b"") > MAX_EXIF_BYTES:  # a PNG's block may follow its pixels
            return {}, ["exif-too-large"]
        num_tags = len(exif)
    except Exception:  # not a TIFF header, or a PNG that cannot be decoded
        return {}, ["corrupt-exif"]
    problems: list[str] = []
    raw = _pick(exif, problems)
    try:
        inner = exif.get_ifd(ExifTags.IFD.Exif)
    except Exception:  # one value of an impossible kind spoils the whole directory
        return raw, ["corrupt-exif"]
    raw |= _pick(inner, problems)
    if not num_tags and not inner and image.format != "TIFF":
        problems.append("corrupt-exif" if block else "no-exif")
    return raw, problems


def _pick(tags: Any, problems: list[str]) -> dict[int | str, Any]:
    raw: dict[int | str, Any] = {}
    for code in CODES:
        try:
            if code in tags:
                raw[code] = tags[code]
        except Exception:
            problems.append("corrupt-exif")
    return raw

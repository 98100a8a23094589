"""Photographs whose EXIF is read: images of folders, and JSON in the older layout.

The older layout is a JSON file a photograph, ``{"EXIF": {"ISO Speed Ratings": "200", "Aperture Value": "F2.8",
"Exposure Time": "1/60 sec", "Focal Length": "18.0 mm", ...}}``, named by the photograph's id
(``fdf_ccby2_exif_update_filtered_v2``); or one file, id → such an object.

Source: AIGFD_EXIF at 38033ae; METHOD "File formats of the released data".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from harness.api.errors import DataError
from harness.data.exif.jsonsafe import load_object
from harness.data.exif.labels import MAX_BYTES
from harness.data.exif.read import HEIC_SUFFIXES, IMAGE_SUFFIXES, NO_HEIC, Photo, heic_available, read_image
from harness.data.lists import is_utf8, scan_images
from harness.data.problems import Problem, about

SUFFIXES = IMAGE_SUFFIXES | HEIC_SUFFIXES | {".json"}
MAX_FOUND_BYTES = 64 * 2**20
"""Bytes that a JSON file may have that was found in a folder, not named by the user."""
_MAX_ENTRIES = 2000
_MAX_ID = 255


class Sources:
    """The photographs of folders, images and JSON files, each folder in sorted order.

    Args:
        paths: folders (searched with their sub-folders; links that leave one are not followed), image files, or
            JSON files.
        allow_outside: follow links out of a folder.

    Attributes:
        num_files: how many files there are to read.
        problems: links left out and names that cannot be kept.

    Raises:
        DataError: a path that is not there, or nothing to read at all.
    """

    def __init__(self, paths: Sequence[Path], *, allow_outside: bool = False) -> None:
        self._files: list[tuple[Path, str]] = []
        self._lone: set[Path] = set()
        problems: list[Problem] = []
        for path in paths:
            if path.is_dir():
                root = path.resolve()
                scan = scan_images(root, root, allow_outside=allow_outside, suffixes=SUFFIXES)
                self._files += [(root / name, name) for name in scan.files]
                problems += scan.problems
            elif path.is_file():
                if not is_utf8(path.name):
                    raise DataError("the file name is not UTF-8", ascii(str(path)), "rename the file")
                self._files.append((path, path.name))
                self._lone.add(path)
            else:
                raise DataError("there is no such file or folder", path, "name folders, images or JSON files")
        if not self._files:
            endings = " ".join(sorted(SUFFIXES))
            raise DataError("nothing to read EXIF from", ", ".join(map(str, paths)), f"files end in {endings}")
        heic = [name for file, name in self._files if file.suffix.lower() in HEIC_SUFFIXES]
        if heic and not heic_available():
            problems += about("no-heic-reader", "warning", "{n} HEIC files cannot be read", "here", NO_HEIC, heic)
        self.problems: tuple[Problem, ...] = tuple(problems)
        self.num_files = len(self._files)

    def __iter__(self) -> Iterator[tuple[int, Photo]]:
        """Each photograph with the number of files begun."""
        for i, (file, name) in enumerate(self._files, 1):
            if file.suffix.lower() == ".json":
                for photo in read_json(file, name, alone=file in self._lone):
                    yield i, photo
            else:
                yield i, read_image(file, name)


def read_json(path: Path, name: str, *, alone: bool = True) -> Iterator[Photo]:
    """The photographs of one JSON file.

    Args:
        name: what they are called in a label file, where the JSON holds one photograph.
        alone: the file was named by the user, so it may be large and a fault in it is an error; in a folder of many
            it is a problem of that photograph (``not-json``, ``json-too-large``, ``no-exif``).

    Raises:
        DataError: a lone file that is unreadable, or a label file, which holds no EXIF values.
    """
    try:
        document = load_object(path, MAX_BYTES if alone else MAX_FOUND_BYTES)
    except DataError:
        if alone:
            raise
        large = path.stat().st_size > MAX_FOUND_BYTES
        yield Photo(path.stem, name, "", {}, ("json-too-large" if large else "not-json",))
        return
    if isinstance(document.get("EXIF"), dict) or not document:
        yield _photo(path.stem, name, document)
        return
    items = {key: value for key, value in document.items() if isinstance(value, dict)}
    if any("EXIF_ordinal" in item for item in items.values()):
        raise DataError(
            "this is a label file: it holds levels, not EXIF values", path, "name images, or JSON with EXIF values"
        )
    if not items:
        yield Photo(path.stem, name, "JSON", {}, ("no-exif",))
    for key, item in items.items():
        yield _photo(PurePosixPath(key.replace("\\", "/")).stem, key, item)


def _photo(key: str, path: str, item: dict[str, Any]) -> Photo:
    exif, said = item.get("EXIF"), item.get("path")
    if isinstance(said, str) and PurePosixPath(said.replace("\\", "/")).stem == key:
        path = said
    clean = path.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")
    if clean != path or key in ("", ".", "..") or len(path) > _MAX_ID * 8 or len(key) > _MAX_ID:
        return Photo(key[:_MAX_ID].encode("utf-8", "replace").decode(), clean[:_MAX_ID], "JSON", {}, ("bad-name",))
    if not isinstance(exif, dict):
        return Photo(key, path, "JSON", {}, ("no-exif",))
    if len(exif) > _MAX_ENTRIES:
        return Photo(key, path, "JSON", {}, ("exif-too-large",))
    raw: dict[int | str, Any] = {name.strip().lower(): value for name, value in exif.items()}
    return Photo(key, path, "JSON", raw)

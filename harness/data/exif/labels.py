"""The label file of EXIF-supervised pretraining: levels and classes of nine tags, a row a photograph.

The released layout is one JSON object, item → ``path``, ``EXIF_ordinal`` {ISO, Aperture, Focal Length,
Exposure Time: level} and ``EXIF_categorical`` {Make, Metering Mode, Exposure Mode, White Balance Mode,
Exposure Program: {cls_label: int}}.

The values of the released levels are not published, so a reader accepts names (low, medium, high; with five levels
ultra-low .. ultra-high) and whole numbers. Numbers count from 0 when a 0 stands anywhere in the file, else from 1.
The writer counts from 1, which reads back as written. Only the order of levels enters a ranking loss.

Source: AIGFD_BLO at 5f26ede, ``dataset/SSL_training_dataset.py``; METHOD "EXIF".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.api.errors import DataError
from harness.data.exif.jsonsafe import load_object, write_text
from harness.data.lists import is_utf8

ORDINAL: dict[str, str] = {
    "iso": "ISO", "aperture": "Aperture", "exposure_time": "Exposure Time", "focal_length": "Focal Length",
}  # fmt: skip
"""Ordinal tags in task order → their names in a label file."""
CATEGORICAL: dict[str, str] = {
    "make": "Make", "metering_mode": "Metering Mode", "exposure_mode": "Exposure Mode",
    "white_balance": "White Balance Mode", "exposure_program": "Exposure Program",
}  # fmt: skip
"""Categorical tags in task order → their names in a label file."""
TAGS: tuple[str, ...] = (*ORDINAL, *CATEGORICAL)
LEVEL_NAMES: dict[int, tuple[str, ...]] = {
    3: ("low", "medium", "high"),
    5: ("ultra-low", "low", "medium", "high", "ultra-high"),
}
MAX_BYTES = 512 * 2**20
"""Bytes a label file may have (the released one is said to hold about 200,000 items)."""
_MAX_CLASS = 255
_MAX_PATH = 4096
_UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class TagLabels:
    """Levels and classes of nine EXIF tags.

    Attributes:
        ids: [N] file stems, each once.
        paths: [N] as the file has them; authors' files hold absolute paths of other machines, so match by file name.
        tags: tag → int16 [N], keys as `TAGS`; levels (0 = lowest) and classes from 0, -1 = not known.
        levels: how many levels an ordinal tag has, 3 or 5.
    """

    ids: tuple[str, ...]
    paths: tuple[str, ...]
    tags: dict[str, NDArray[np.int16]]
    levels: int = 3

    def __post_init__(self) -> None:
        if self.levels not in LEVEL_NAMES:
            raise DataError(f"ordinal tags have 3 or 5 levels, not {self.levels}")
        if tuple(self.tags) != TAGS:
            raise DataError(f"labels need the tags {', '.join(TAGS)}, in this order; there are: {', '.join(self.tags)}")
        num = len(self.ids)
        if len(self.paths) != num or len(set(self.ids)) != num:
            raise DataError("labels need a path for each id, and each id once")
        for name, values in self.tags.items():
            if values.shape != (num,) or values.dtype != np.int16:
                raise DataError(f"labels of {name} are {values.dtype} {values.shape}, not int16 ({num},)")
            top = self.levels - 1 if name in ORDINAL else _MAX_CLASS
            if num and (values.min() < _UNKNOWN or values.max() > top):
                raise DataError(f"labels of {name} leave -1..{top}")

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TagLabels):
            return NotImplemented
        same = (self.ids, self.paths, self.levels) == (other.ids, other.paths, other.levels)
        return same and all(np.array_equal(self.tags[name], other.tags[name]) for name in TAGS)

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> TagLabels:
        """The labels of some rows, in the order given."""
        index = np.asarray(rows, dtype=np.intp)
        return TagLabels(
            tuple(self.ids[i] for i in index), tuple(self.paths[i] for i in index),
            {name: values[index] for name, values in self.tags.items()}, self.levels,
        )  # fmt: skip


def read_labels(
    path: str | os.PathLike[str], *, levels: int | None = None, first_level: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> TagLabels:  # fmt: skip
    """Labels of a file in the released layout, in the file's order.

    Args:
        path: the JSON file.
        levels: how many levels there are; None: what the items state, else 5 where a level beyond three is used,
            else 3.
        first_level: the number of the lowest level, 0 or 1; None: 0 where a 0 stands anywhere, else 1.
        max_bytes: a larger file is refused unread.

    A tag that an item lacks, or holds as null or -1, is -1. Ids are the stems of the paths' file names.

    Raises:
        DataError: unreadable, too large, not JSON, another layout, a level or class that cannot be, levels written
            as names and as numbers, or a file name used twice; names the file and the item.
    """
    path = Path(path)
    items = load_object(path, max_bytes)
    if not items:
        raise DataError("the label file has no items", path, _REWRITE)
    rows = [_row(key, item, path) for key, item in items.items()]
    num_levels, columns = _levels(
        [row.ordinal for row in rows], _stated(rows, path) if levels is None else levels, first_level, path
    )
    tags = {name: np.array(columns[name], np.int16) for name in ORDINAL}
    tags |= {name: np.array([row.categorical[name] for row in rows], np.int16) for name in CATEGORICAL}
    ids = tuple(PurePosixPath(row.path.replace("\\", "/")).stem for row in rows)
    twice = _first_repeated(ids)
    if twice is not None:
        raise DataError(f"two items have the file name {twice!r}", path, "keep one of them: names are the keys")
    return TagLabels(ids, tuple(row.path for row in rows), tags, num_levels)


def write_labels(path: str | os.PathLike[str], labels: TagLabels) -> Path:
    """Write labels in the released layout; `read_labels` gives them back. Returns the path.

    Levels are numbers from 1, tags that are not known are left out. With five levels each item also states
    ``levels``. The file replaces an older one in one step.

    Raises:
        DataError: the folder cannot be written, or an id is not its path's stem.
    """
    document = {}
    for i, (name, where) in enumerate(zip(labels.ids, labels.paths, strict=True)):
        if PurePosixPath(where.replace("\\", "/")).stem != name:
            raise DataError(f"id {name!r} is not the stem of {where!r}")
        known = {tag: int(values[i]) for tag, values in labels.tags.items() if values[i] != _UNKNOWN}
        item: dict[str, Any] = {
            "path": where,
            "EXIF_ordinal": {said: known[tag] + 1 for tag, said in ORDINAL.items() if tag in known},
            "EXIF_categorical": {said: {"cls_label": known[tag]} for tag, said in CATEGORICAL.items() if tag in known},
        }
        if labels.levels != 3:
            item["levels"] = labels.levels
        document[name] = item
    return write_text(Path(path), json.dumps(document, ensure_ascii=False, indent=1) + "\n")


_REWRITE = "write it with `harness data exif`"


@dataclass(frozen=True, slots=True)
class _Row:
    path: str
    ordinal: dict[str, int | str]
    categorical: dict[str, int]
    levels: int | None


def _row(key: str, item: Any, file: Path) -> _Row:
    where = f"{file}, item {key[:80]!r}"
    if not isinstance(item, dict) or not isinstance(item.get("path"), str):
        raise DataError("an item of the label file has no path", where, "each item is {path, EXIF_ordinal, ...}")
    ordinal, categorical = (_part(item, name, where) for name in ("EXIF_ordinal", "EXIF_categorical"))
    levels = item.get("levels")
    if levels is not None and (type(levels) is not int or levels not in LEVEL_NAMES):
        raise DataError(f"{str(levels)[:40]!r} is no number of levels", where, "write 3 or 5, or leave it out")
    return _Row(
        _checked_path(item["path"], where),
        {tag: _level(ordinal.get(said), f"{where}, {said}") for tag, said in ORDINAL.items()},
        {tag: _class(categorical.get(said), f"{where}, {said}") for tag, said in CATEGORICAL.items()},
        levels,
    )


def _part(item: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    part = item.get(name, {})
    if not isinstance(part, dict):
        raise DataError(f"{name} is no object", where, _REWRITE)
    return part


def _checked_path(text: str, where: str) -> str:
    name = PurePosixPath(text.replace("\\", "/")).name
    if "\0" in text or len(text) > _MAX_PATH or not is_utf8(text) or name in ("", ".", ".."):
        raise DataError(f"{text[:80]!r} cannot be the path of an image", where, _REWRITE)
    return text


def _whole(value: Any) -> int | None:
    """A whole number written as one, as 2.0, or as "2"; None for anything else (true and false among it)."""
    if isinstance(value, str) and value.strip().lstrip("-").isascii() and value.strip().lstrip("-").isdigit():
        value = value.strip()
        return int(value) if len(value) < 8 else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _level(value: Any, where: str) -> int | str:
    """A level as it stands: a number, a lower-case name, or -1."""
    if value is None:
        return _UNKNOWN
    number = _whole(value)
    if number is not None:
        return number
    name = value.strip().lower().replace(" ", "-").replace("_", "-") if isinstance(value, str) else ""
    if name in LEVEL_NAMES[5]:
        return name
    raise DataError(f"{str(value)[:40]!r} is no level", where, f"write {', '.join(LEVEL_NAMES[5])}, or a number")


def _class(value: Any, where: str) -> int:
    if isinstance(value, dict):
        value = value.get("cls_label")
    if value is None:
        return _UNKNOWN
    number = _whole(value)
    if number is None or not _UNKNOWN <= number <= _MAX_CLASS:
        raise DataError(f"{str(value)[:40]!r} is no class number", where, f"write cls_label as 0..{_MAX_CLASS}")
    return number


def _stated(rows: Iterable[_Row], file: Path) -> int | None:
    stated = {row.levels for row in rows}
    if len(stated) > 1:
        raise DataError("the items do not agree on the number of levels", file, "state one number, or none")
    return stated.pop()


def _levels(
    rows: list[dict[str, int | str]], levels: int | None, first: int | None, file: Path
) -> tuple[int, dict[str, list[int]]]:
    """The number of levels, and for each ordinal tag the levels from 0."""
    values = {value for row in rows for value in row.values() if value != _UNKNOWN}
    names = {value for value in values if isinstance(value, str)}
    numbers = {value for value in values if isinstance(value, int)}
    if names and numbers:
        raise DataError("levels are written as names and as numbers", file, "write all of them one way")
    if first not in (None, 0, 1):
        raise DataError(f"the lowest level is numbered 0 or 1, not {first}", file)
    base = first if first is not None else 0 if 0 in numbers else 1
    if levels is None:
        beyond = any(n - base >= 3 for n in numbers) or any(n.startswith("ultra-") for n in names)
        levels = 5 if beyond else 3
    if levels not in LEVEL_NAMES:
        raise DataError(f"ordinal tags have 3 or 5 levels, not {levels}", file)
    code: dict[int | str, int] = {name: i for i, name in enumerate(LEVEL_NAMES[levels])}
    code |= {base + i: i for i in range(levels)}
    code[_UNKNOWN] = _UNKNOWN
    wrong = sorted(map(str, values - code.keys()))
    if wrong:
        fix = f"with {levels} levels: {', '.join(LEVEL_NAMES[levels])}, or {base}..{base + levels - 1}"
        raise DataError(f"{wrong[0][:40]!r} is no level", file, fix)
    return levels, {name: [code[row[name]] for row in rows] for name in ORDINAL}


def _first_repeated(ids: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            return name
        seen.add(name)
    return None

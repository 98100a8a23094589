"""The tidy table of EXIF: one row a photograph, values in stated units, every oddity counted by kind.

Columns: ``id``, ``path``, ``format``; for each number of Table 8 a float64 (NaN: not known; ``iso`` is a nullable
integer): ``exposure_time`` and ``shutter_speed`` in s, ``aperture``, ``f_number`` and ``aperture_value`` as F-numbers,
``focal_length`` in mm, ``x_resolution`` and ``y_resolution`` in pixels a unit; ``NAME_from``: the EXIF tag that gave
``aperture`` (FNumber, else ApertureValue), ``exposure_time`` (ExposureTime, else ShutterSpeedValue) and ``iso``; for
each category its class
(empty: not known) and ``NAME_raw``, the value as it stands; ``maker``: one spelling a maker; dates and the EXIF
version as texts; ``problems``: kinds, separated by semicolons.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.exif import values
from harness.data.exif.jsonsafe import write_bytes
from harness.data.exif.read import Photo
from harness.data.exif.tags import APERTURE_VALUE, TAGS, Kind, Source, Tag
from harness.data.exif.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pandas as pd

NUMBERS: tuple[Tag, ...] = (*(tag for tag in TAGS if tag.kind is Kind.NUMBER), APERTURE_VALUE)
CATEGORIES: tuple[Tag, ...] = tuple(tag for tag in TAGS if tag.kind is Kind.CATEGORY)
TEXTS: tuple[Tag, ...] = tuple(tag for tag in TAGS if tag.kind is Kind.TEXT)
NUM_EXAMPLES = 5
_ID_REPEATED = "id-repeated"


@dataclass
class ExifTable:
    """What the photographs of a corpus say.

    Attributes:
        frame: the tidy table; rows in the order of the sources.
        present: tag → on how many photographs it stands, whatever its value.
        problems: kind, or kind:tag → how many photographs have it.
        examples: the same key → first few ids.
        meanings: categorical tag → (how, raw value as shown) → count, for values that no class lists.
    """

    frame: pd.DataFrame
    present: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    meanings: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frame)


def build_table(
    photos: Iterable[tuple[int, Photo]], vocabulary: Vocabulary, progress: Callable[[int], None] | None = None
) -> ExifTable:
    """The table of some photographs.

    Args:
        photos: (files begun, photograph), as `photos.Sources` gives them.
        progress: called with the files begun.

    A photograph whose id an earlier one has is kept, with the problem ``id-repeated``.
    """
    import pandas as pd

    table = ExifTable(pd.DataFrame(), meanings={tag.name: Counter() for tag in CATEGORIES})
    columns: dict[str, list[Any]] = {name: [] for name in _columns()}
    seen: set[str] = set()
    for begun, photo in photos:
        row, problems = _row(photo, vocabulary, table)
        if photo.id in seen:
            problems.append(_ID_REPEATED)
        seen.add(photo.id)
        for problem in dict.fromkeys(problems):
            table.problems[problem] += 1
            said = table.examples.setdefault(problem, [])
            if len(said) < NUM_EXAMPLES:
                said.append(photo.id)
        row["problems"] = ";".join(dict.fromkeys(problems))
        for name, cells in columns.items():
            cells.append(row.get(name))
        if progress is not None:
            progress(begun)
    table.frame = _frame(columns)
    return table


def _row(photo: Photo, vocabulary: Vocabulary, table: ExifTable) -> tuple[dict[str, Any], list[str]]:
    problems = list(photo.problems)
    row: dict[str, Any] = {"id": photo.id, "path": photo.path, "format": photo.format}
    num_present = 0
    for tag in TAGS:
        there = any(_raw(photo, source) is not None for source in tag.sources)
        table.present[tag.name] += there
        num_present += there
        if tag.kind is Kind.CATEGORY:
            _categorise(tag, photo, vocabulary, table, row, problems)
        else:
            row[tag.name], row[f"{tag.name}_from"] = _value(tag, photo, problems)
    row[APERTURE_VALUE.name], _ = _value(APERTURE_VALUE, photo, [])
    if photo.format == "JSON" and not num_present and not photo.problems:
        problems.append("no-camera-tags")
    return row, problems


def _raw(photo: Photo, source: Source) -> Any:
    if photo.format != "JSON":
        return photo.raw.get(source.code)
    for name in source.names:
        found = photo.raw.get(name)
        if found is not None and found != "":
            return found
    return None


def _value(tag: Tag, photo: Photo, problems: list[str]) -> tuple[Any, str | None]:
    """The value of the first source that has one, and its name; faults met on the way become problems."""
    for source in tag.sources:
        raw = _raw(photo, source)
        if raw is None or source.read is None:
            continue
        try:
            return source.read(raw), source.name
        except values.Fault as fault:
            if fault.kind != "blank":
                problems.append(f"{fault.kind}:{tag.name}")
    return None, None


def _categorise(
    tag: Tag, photo: Photo, vocabulary: Vocabulary, table: ExifTable, row: dict[str, Any], problems: list[str]
) -> None:
    words = vocabulary.tags[tag.name]
    raw = _raw(photo, tag.sources[0])
    row[tag.name] = row[f"{tag.name}_raw"] = None
    if tag.name == "make":
        row["maker"] = None
    if raw is None:
        return
    try:
        meaning = words.find(raw)
    except values.Fault as fault:
        if fault.kind != "blank":
            problems.append(f"{fault.kind}:{tag.name}")
        return
    problems += [f"{odd}:{tag.name}" for odd in meaning.odd]
    row[f"{tag.name}_raw"] = meaning.shown
    if meaning.number >= 0:
        row[tag.name] = words.names[meaning.number]
    if meaning.how != "mapped":
        table.meanings[tag.name][meaning.how, meaning.shown] += 1
    if tag.name == "make":
        row["maker"] = words.plain(meaning)


def _columns() -> list[str]:
    """The table's columns in order."""
    names = ["id", "path", "format"]
    for tag in (*TAGS, APERTURE_VALUE):
        names += [tag.name, f"{tag.name}_raw"] if tag.kind is Kind.CATEGORY else [tag.name]
        names += ["maker"] if tag.name == "make" else []
        names += [f"{tag.name}_from"] if len(tag.sources) > 1 else []
    return [*names, "problems"]


def _frame(columns: dict[str, list[Any]]) -> pd.DataFrame:
    import pandas as pd

    kinds = dict.fromkeys(columns, "string") | {tag.name: "float64" for tag in NUMBERS} | {"iso": "Int64"}
    return pd.DataFrame(columns, dtype=object).astype(kinds)


def write_table(table: ExifTable, folder: Path) -> tuple[Path, Path]:
    """Write ``exif.parquet`` and ``exif.csv`` into a folder; the same table twice.

    Raises:
        DataError: the folder cannot be written.
    """
    parquet = io.BytesIO()
    table.frame.to_parquet(parquet, index=False)
    csv = table.frame.to_csv(index=False, lineterminator="\n")
    return (
        write_bytes(folder / "exif.parquet", parquet.getvalue()),
        write_bytes(folder / "exif.csv", csv.encode("utf-8")),
    )


def read_table(path: Path) -> pd.DataFrame:
    """The table of an ``exif.parquet``."""
    import pandas as pd

    return pd.read_parquet(path)


def same_value(first: float, second: float) -> bool:
    """Whether two readings say the same: within 10 %, well below a third of a stop; 1/30 s is stored as 2^-5 = 1/32."""
    return math.isclose(first, second, rel_tol=0.1)

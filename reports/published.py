"""The published numbers: CSV files in `published/` with the columns table, row, column, value, unit, source.

They hold the results, counts and settings printed in the material at hand (`source` names the file and the place)
and nothing else. Not taken over: years, addresses, numbers of equations, figures and references, example values.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.api.errors import ConfigError

FOLDER = Path(__file__).parent / "published"
COLUMNS = ["table", "row", "column", "value", "unit", "source"]
AVERAGE = "Avg."
NINE = ("stylegan2", "vqgan", "ldm", "ddim", "sdv21", "freedom", "hps", "midjourney", "sdxl")
"""The paper's generators (supplement D), over which its averages are taken; its tables print only some of them."""


@dataclass(frozen=True)
class PublishedNumber:
    """One printed number. `text` is as printed, without thousands separators; `unit` says what it counts."""

    table: str
    row: str
    column: str
    text: str
    unit: str
    source: str

    @property
    def value(self) -> float:
        """The number in its unit."""
        return float(self.text)

    @property
    def fraction(self) -> float:
        """The number as a fraction: percentages divided by 100.

        Raises:
            ConfigError: it is neither a percentage nor a fraction.
        """
        if self.unit not in ("%", "fraction"):
            raise ConfigError(f"published {self.row} / {self.column} is no share but {self.unit!r}", where=self.table)
        return self.value / 100 if self.unit == "%" else self.value


def names() -> tuple[str, ...]:
    """The published tables at hand."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.csv")))


@cache
def numbers(table: str) -> tuple[PublishedNumber, ...]:
    """Every number of one table, in printed order.

    Raises:
        ConfigError: there is no such table, or its file is damaged.
    """
    if table not in names():
        raise ConfigError(f"no published table {table!r}", fix=f"one of {', '.join(names())}")
    path = FOLDER / f"{table}.csv"
    with path.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        if reader.fieldnames != COLUMNS:
            raise ConfigError(f"columns are {reader.fieldnames}, not {COLUMNS}", where=path)
        rows = list(reader)
    return tuple(PublishedNumber(r["table"], r["row"], r["column"], r["value"], r["unit"], r["source"]) for r in rows)


def plain(name: str) -> str:
    """A name without case and punctuation, for matching ("SDv2.1" and "sdv21", "BLADES-OC" and "blades-oc")."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def _index(table: str) -> dict[tuple[str, str], PublishedNumber]:
    return {(plain(n.row), plain(n.column)): n for n in numbers(table)}


def find(table: str | None, row: str, column: str) -> PublishedNumber | None:
    """The published number of a row and column, names matched by `plain`; None where nothing is published."""
    return None if table is None else _index(table).get((plain(row), plain(column)))


def rows_of(table: str | None) -> list[str]:
    """The rows of a published table, in printed order."""
    return [] if table is None else list(dict.fromkeys(n.row for n in numbers(table)))

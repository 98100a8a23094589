"""Raw EXIF values and the texts that programs show for them, to numbers in stated units and clean texts.

A raw value is what Pillow gives (a rational, a number, a text, bytes, a tuple of these) or a text such as
"1/60 sec". What cannot be used is a `Fault` whose kind is counted.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

MAX_TEXT = 200
"""Characters that are kept of a text value."""

_QUANTITY = re.compile(
    r"(?P<prefix>f\s*/?|iso)?\s*(?P<top>-?\d{1,12}(?:\.\d{1,20})?(?:e[+-]?\d{1,2})?)(?:\s*/\s*(?P<bottom>\d{1,12}(?:\.\d{1,20})?))?"
    r"\s*(?P<unit>[a-z ]{0,20})",
    re.IGNORECASE,
)
_SECONDS = ("s", "sec", "secs", "second", "seconds")
_DATE = re.compile(r"\d{4}[:/-]\d{2}[:/-]\d{2}(?:[ T]\d{2}:\d{2}:\d{2}\S{0,12})?")


class Fault(Exception):
    """A value that cannot be used; `kind` is the short stable name under which it is counted."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Quantity(NamedTuple):
    """A number with what its text said beside it.

    Attributes:
        value: finite.
        ratio: written as a fraction (in a text) or stored as a rational.
        inverse: that fraction is one over something.
        unit: what stands behind it ("sec", "mm"), or the prefix "f"; "" for none.
    """

    value: float
    ratio: bool = False
    inverse: bool = False
    unit: str = ""

    def needs(self, *units: str) -> Quantity:
        """Itself where it has no unit or one of `units`; `Fault("unit")` otherwise."""
        if self.unit and self.unit not in units:
            raise Fault("unit")
        return self


def quantity(raw: Any) -> Quantity:
    """The number of a raw value; of several the first.

    Raises:
        Fault: ``zero-denominator``, or ``not-a-number``.
    """
    if isinstance(raw, (tuple, list)) and raw:
        return quantity(raw[0])
    if isinstance(raw, bytes):
        raw = raw.decode("latin-1")
    if isinstance(raw, str):
        return _of_text(raw)
    if isinstance(raw, bool) or raw is None:
        raise Fault("not-a-number")
    bottom = getattr(raw, "denominator", 1)
    if bottom == 0:
        raise Fault("zero-denominator")
    try:
        value = float(raw)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        raise Fault("not-a-number") from None
    if not math.isfinite(value):
        raise Fault("not-a-number")
    return Quantity(value, ratio=not isinstance(raw, (int, float)))


def _of_text(raw: str) -> Quantity:
    match = _QUANTITY.fullmatch(re.split("[\0,(]", raw[:MAX_TEXT], maxsplit=1)[0].strip())
    if match is None:
        raise Fault("not-a-number")
    top, bottom = float(match["top"]), float(match["bottom"] or 1)
    if bottom == 0:
        raise Fault("zero-denominator")
    ratio = match["bottom"] is not None
    unit = (match["unit"].strip() or (match["prefix"] or "").strip(" /")).lower()
    return Quantity(top / bottom, ratio, ratio and top == 1, unit)


def within(value: float, low: float, high: float) -> float:
    """`value` where low <= value <= high; `Fault("out-of-range")` otherwise."""
    if not low <= value <= high:
        raise Fault("out-of-range")
    return value


def seconds(raw: Any) -> float:
    """A duration in s, 1e-7 .. 1e6 ("1/60 sec" is 1/60)."""
    return within(quantity(raw).needs(*_SECONDS).value, 1e-7, 1e6)


def seconds_from_apex(raw: Any) -> float:
    """A duration in s from ShutterSpeedValue: 2 to the power −value (EXIF 2.32, 4.6.5, APEX).

    Of a text that shows a duration ("1/60 sec", "1/60", "0.5") that duration; "189/32" is an APEX value.
    """
    number = quantity(raw).needs(*_SECONDS)
    if isinstance(raw, str) and (number.unit or number.inverse or not number.ratio):
        return within(number.value, 1e-7, 1e6)
    return within(2.0 ** -within(number.value, -20, 24), 1e-7, 1e6)


def f_number(raw: Any) -> float:
    """An F-number, 0.1 .. 1000 ("F2.8", "f/2.8")."""
    return within(quantity(raw).needs("f").value, 0.1, 1000)


def f_number_from_apex(raw: Any) -> float:
    """An F-number from ApertureValue: 2 to the power value/2 (EXIF 2.32, 4.6.5, APEX).

    Of a text that shows an F-number ("F2.8", "2.8") that number; "95/32" is an APEX value.
    """
    number = quantity(raw).needs("f")
    if isinstance(raw, str) and (number.unit or not number.ratio):
        return within(number.value, 0.1, 1000)
    return within(2.0 ** (within(number.value, -6, 19) / 2), 0.1, 1000)


def millimetres(raw: Any) -> float:
    """A focal length in mm, 0.01 .. 100000 ("18.0 mm")."""
    return within(quantity(raw).needs("mm").value, 0.01, 1e5)


def iso_speed(raw: Any) -> int:
    """An ISO speed, 1 .. 10 million, rounded to a whole number."""
    return int(within(round(quantity(raw).needs("iso").value), 1, 10_000_000))


def resolution(raw: Any) -> float:
    """Pixels a unit of length, above 0 ("72 dots per inch" is 72)."""
    return within(quantity(raw).value, 1e-6, 1e9)


def text(raw: Any) -> tuple[str, list[str]]:
    """A clean text and what was odd about it: ``padded-text`` (NUL within), ``not-ascii`` (against the standard).

    Text ends at the first NUL, white space is made single, at most `MAX_TEXT` characters are kept. Bytes beyond
    ASCII are read as UTF-8 where they are that, else as Latin-1.

    Raises:
        Fault: ``not-a-text`` for numbers, ``blank`` where nothing is left.
    """
    if isinstance(raw, (tuple, list)) and raw and all(isinstance(part, str) for part in raw):
        raw = raw[0]
    if isinstance(raw, str):
        data = _bytes_of(raw)
    elif isinstance(raw, bytes):
        data = raw
    else:
        raise Fault("not-a-text")
    head, nul, _ = data[: 64 * MAX_TEXT].partition(b"\0")
    odd = ["padded-text"] if nul else []
    try:
        found = head.decode("utf-8")
    except UnicodeDecodeError:
        found = head.decode("latin-1")
    found = " ".join("".join(c if c.isprintable() else " " for c in found).split())[:MAX_TEXT]
    if not found:
        raise Fault("blank")
    return found, odd if found.isascii() else [*odd, "not-ascii"]


def _bytes_of(raw: str) -> bytes:
    """The bytes of a text that Pillow read as Latin-1; a text from JSON is what it is."""
    try:
        return raw.encode("latin-1")
    except UnicodeEncodeError:
        return raw.encode("utf-8", "replace")


def date_time(raw: Any) -> str:
    """A date as it stands, "2013:03:28 04:20:46"; `Fault("blank")` for zeros and spaces, ``not-a-date`` otherwise."""
    found, _ = text(raw)
    if not re.search("[1-9]", found):
        raise Fault("blank")
    if _DATE.fullmatch(found) is None:
        raise Fault("not-a-date")
    return found


def exif_version(raw: Any) -> str:
    """An EXIF version: b"0221" is "2.21"; a text that is "2.21" already stays."""
    found, _ = text(raw)
    match = re.fullmatch(r"(\d\d)(\d\d)", found)
    if match is not None:
        return f"{int(match[1])}.{match[2]}"
    if re.fullmatch(r"\d{1,2}\.\d{1,2}", found):
        return found
    raise Fault("not-a-version")


def show_seconds(value: float) -> str:
    """ "1/60 sec" for short durations that are near such a fraction, else "0.6 sec"."""
    inverse = 1 / value
    if value < 0.4 and abs(inverse - round(inverse)) < 0.02 * inverse:
        return f"1/{round(inverse)} sec"
    return f"{value:.4g} sec" if value < 1000 else f"{value:.0f} sec"

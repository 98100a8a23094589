"""The 21 tags of Table 8: where each stands in EXIF and in JSON, and how its value is read.

Source: supplement B, Table 8; EXIF 2.32 (CIPA DC-008-2019), tables 4 to 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from harness.data.exif import values


class Kind(StrEnum):
    """What a tag's value is."""

    NUMBER = "number"
    CATEGORY = "category"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Source:
    """One place a tag's value may stand in.

    Attributes:
        name: EXIF's name of it; "" where a tag has but one source.
        code: EXIF tag number.
        names: names in JSON, in lower case.
        read: raw value → value; raises `values.Fault`. None for categories: a vocabulary reads them.
    """

    code: int
    names: tuple[str, ...]
    read: Callable[[Any], Any] | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag of Table 8.

    Attributes:
        name: column of the tidy table.
        title: name in Table 8.
        kind: number, category or text.
        sources: the first that gives a value counts.
        show: value → text of an example.
    """

    name: str
    title: str
    kind: Kind
    sources: tuple[Source, ...]
    show: Callable[[Any], str] = str


def _category(name: str, title: str, code: int, *names: str) -> Tag:
    return Tag(name, title, Kind.CATEGORY, (Source(code, (title.lower(), *names)),))


def _date(name: str, title: str, code: int, *names: str) -> Tag:
    return Tag(name, title, Kind.TEXT, (Source(code, (title.lower(), *names), values.date_time),))


def _resolution(name: str, title: str, code: int) -> Tag:
    names = (title.lower(), title.lower().replace(" ", ""), title.lower().replace(" ", "-"))
    return Tag(name, title, Kind.NUMBER, (Source(code, names, values.resolution),), lambda v: f"{v:g} dots per unit")


_F_NUMBER = Source(0x829D, ("f-number", "fnumber", "f number"), values.f_number, "FNumber")
_APERTURE = Source(0x9202, ("aperture value", "aperturevalue", "aperture"), values.f_number_from_apex, "ApertureValue")
_EXPOSURE = Source(0x829A, ("exposure time", "exposuretime", "exposure"), values.seconds, "ExposureTime")
_SHUTTER = Source(
    0x9201, ("shutter speed value", "shutterspeedvalue", "shutter speed"), values.seconds_from_apex, "ShutterSpeedValue"
)
_ISO_NAMES = ("iso speed ratings", "isospeedratings", "iso speed", "iso", "photographic sensitivity")


def _aperture_if_set(raw: Any) -> float:
    """As F-number from APEX; 0 is what lenses without contacts write, so it does not stand in for an F-number."""
    found = values.f_number_from_apex(raw)
    if found <= 1.0:
        raise values.Fault("blank")
    return found


def _iso_if_stated(raw: Any) -> int:
    """ISOSpeedRatings; 65535 means that another tag has the number (EXIF 2.32, table 8)."""
    found = values.iso_speed(raw)
    if found == 65535:
        raise values.Fault("blank")
    return found


_ISO = (
    Source(0x8827, _ISO_NAMES, _iso_if_stated, "ISOSpeedRatings"),
    Source(0x8833, (), values.iso_speed, "ISOSpeed"),
    Source(0x8832, (), values.iso_speed, "RecommendedExposureIndex"),
    Source(0x8831, (), values.iso_speed, "StandardOutputSensitivity"),
)


def _f(value: float) -> str:
    return f"F{value:.3g}"


TAGS: tuple[Tag, ...] = (
    Tag("aperture", "Aperture", Kind.NUMBER,
        (_F_NUMBER, Source(_APERTURE.code, _APERTURE.names, _aperture_if_set, _APERTURE.name)), _f),
    _category("exposure_mode", "Exposure Mode", 0xA402, "exposuremode"),
    _category("exposure_program", "Exposure Program", 0x8822, "exposureprogram"),
    Tag("exposure_time", "Exposure Time", Kind.NUMBER, (_EXPOSURE, _SHUTTER), values.show_seconds),
    Tag("focal_length", "Focal Length", Kind.NUMBER,
        (Source(0x920A, ("focal length", "focallength"), values.millimetres),), lambda v: f"{v:.4g} mm"),
    Tag("iso", "ISO Speed", Kind.NUMBER, _ISO, lambda v: f"{v:g}"),
    _category("make", "Make", 0x010F, "camera make"),
    _category("metering_mode", "Metering Mode", 0x9207, "meteringmode"),
    _category("white_balance", "White Balance Mode", 0xA403, "white balance", "whitebalance"),
    _category("custom_rendered", "Custom Rendered", 0xA401, "customrendered"),
    _date("date_time", "Date/Time", 0x0132, "datetime", "date and time", "modifydate"),
    _date("date_time_digitized", "Date/Time Digitized", 0x9004, "datetimedigitized", "createdate"),
    _date("date_time_original", "Date/Time Original", 0x9003, "datetimeoriginal"),
    Tag("exif_version", "EXIF Version", Kind.TEXT,
        (Source(0x9000, ("exif version", "exifversion"), values.exif_version),)),
    _category("flash", "Flash", 0x9209),
    Tag("f_number", "F-Number", Kind.NUMBER, (_F_NUMBER,), _f),
    _category("resolution_unit", "Resolution Unit", 0x0128, "resolutionunit"),
    _category("scene_capture_type", "Scene Capture Type", 0xA406, "scenecapturetype"),
    Tag("shutter_speed", "Shutter Speed", Kind.NUMBER, (_SHUTTER,), values.show_seconds),
    _resolution("x_resolution", "X Resolution", 0x011A),
    _resolution("y_resolution", "Y Resolution", 0x011B),
)  # fmt: skip
"""In Table 8's order: the nine kept tags, then the others."""

BY_NAME: dict[str, Tag] = {tag.name: tag for tag in TAGS}
APERTURE_VALUE = Tag("aperture_value", "Aperture Value", Kind.NUMBER, (_APERTURE,), _f)
"""ApertureValue alone, as an F-number: kept beside `aperture` to measure how often the two say the same."""
CODES: frozenset[int] = frozenset(source.code for tag in TAGS for source in tag.sources)

"""Raw values become numbers in stated units, whatever program wrote them; what cannot be used is named."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL.TiffImagePlugin import IFDRational

from harness.data.exif import values
from harness.data.exif.values import Fault

READERS = (
    values.seconds, values.seconds_from_apex, values.f_number, values.f_number_from_apex, values.millimetres,
    values.iso_speed, values.resolution, values.text, values.date_time, values.exif_version,
)  # fmt: skip


@pytest.mark.parametrize(
    ("read", "raw", "expected"),
    [
        (values.seconds, IFDRational(1, 60), 1 / 60),
        (values.seconds, (IFDRational(10, 600),), 1 / 60),
        (values.seconds, "1/60 sec", 1 / 60),
        (values.seconds, "1/125", 1 / 125),
        (values.seconds, "2 sec", 2.0),
        (values.seconds, "0.017 sec (1/60)", 0.017),
        (values.seconds, "3/10 s", 0.3),
        (values.seconds_from_apex, IFDRational(6, 1), 1 / 64),
        (values.seconds_from_apex, -1.0, 2.0),
        (values.seconds_from_apex, "189/32", 2 ** (-189 / 32)),
        (values.seconds_from_apex, "1/60 sec", 1 / 60),
        (values.seconds_from_apex, "1/60", 1 / 60),
        (values.f_number, IFDRational(28, 10), 2.8),
        (values.f_number, "F2.8", 2.8),
        (values.f_number, "f/5.6", 5.6),
        (values.f_number_from_apex, IFDRational(3, 1), 2**1.5),
        (values.f_number_from_apex, "95/32", 2 ** (95 / 64)),
        (values.f_number_from_apex, "F3.5", 3.5),
        (values.f_number_from_apex, "3.5", 3.5),
        (values.millimetres, "18.0 mm", 18.0),
        (values.millimetres, IFDRational(346, 32), 10.8125),
        (values.iso_speed, "200", 200),
        (values.iso_speed, (200, 0), 200),
        (values.iso_speed, "ISO 400", 400),
        (values.iso_speed, "100, 100", 100),
        (values.resolution, "72 dots per inch", 72.0),
        (values.exif_version, b"0221", "2.21"),
        (values.exif_version, "2.30", "2.30"),
        (values.exif_version, b"0100", "1.00"),
        (values.date_time, "2013:03:28 04:20:46", "2013:03:28 04:20:46"),
        (values.date_time, b"2013:03:28 04:20:46\0", "2013:03:28 04:20:46"),
    ],
)
def test_values(read: Any, raw: Any, expected: Any) -> None:
    found = read(raw)
    assert found == expected or math.isclose(found, expected, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("read", "raw", "kind"),
    [
        (values.seconds, IFDRational(1, 0), "zero-denominator"),
        (values.seconds, IFDRational(0, 0), "zero-denominator"),
        (values.seconds, "1/0 sec", "zero-denominator"),
        (values.seconds, IFDRational(0, 1), "out-of-range"),
        (values.seconds, IFDRational(2**32 - 1, 1), "out-of-range"),
        (values.seconds, "F2.8", "unit"),
        (values.seconds_from_apex, IFDRational(2**31 - 1, 1), "out-of-range"),
        (values.f_number, "2.8 sec", "unit"),
        (values.f_number, "F", "not-a-number"),
        (values.f_number_from_apex, 1e300, "out-of-range"),
        (values.millimetres, "18.0 inches", "unit"),
        (values.millimetres, IFDRational(0, 10), "out-of-range"),
        (values.iso_speed, 0, "out-of-range"),
        (values.iso_speed, -100, "out-of-range"),
        (values.iso_speed, "auto", "not-a-number"),
        (values.iso_speed, (), "not-a-number"),
        (values.iso_speed, True, "not-a-number"),
        (values.iso_speed, float("nan"), "not-a-number"),
        (values.iso_speed, {"raw": 1}, "not-a-number"),
        (values.date_time, "0000:00:00 00:00:00", "blank"),
        (values.date_time, "    :  :     :  :  ", "blank"),
        (values.date_time, "yesterday 1", "not-a-date"),
        (values.exif_version, b"\x02\x02\x01\0", "blank"),
        (values.exif_version, "2.2.1", "not-a-version"),
        (values.text, b"\0\0\0", "blank"),
        (values.text, "   ", "blank"),
        (values.text, 5, "not-a-text"),
    ],
)
def test_what_cannot_be_used_is_named(read: Any, raw: Any, kind: str) -> None:
    with pytest.raises(Fault) as caught:
        read(raw)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("raw", "expected", "odd"),
    [
        ("PENTAX Corporation \0", "PENTAX Corporation", ["padded-text"]),
        ("Trust.\0\0Gemini11\0H", "Trust.", ["padded-text"]),
        ("华为".encode().decode("latin-1"), "华为", ["not-ascii"]),  # as Pillow gives UTF-8 bytes
        ("华为", "华为", ["not-ascii"]),  # as JSON gives them
        (b"Caf\xe9", "Café", ["not-ascii"]),
        ("A\r\n  B\tC", "A B C", []),
        ("x" * 10_000_000, "x" * 200, []),
    ],
)
def test_texts(raw: str | bytes, expected: str, odd: list[str]) -> None:
    assert values.text(raw) == (expected, odd)


anything = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.binary(max_size=30)
    | st.builds(IFDRational, st.integers(-(2**31), 2**32), st.integers(0, 2**32))
    | st.tuples(st.integers(), st.text(max_size=3)) | st.lists(st.floats(), max_size=2)
)  # fmt: skip


@given(st.sampled_from(READERS), anything)
def test_anything_is_a_value_in_range_or_a_fault(read: Any, raw: Any) -> None:
    try:
        found = read(raw)
    except Fault:
        return
    if isinstance(found, (int, float)):
        assert math.isfinite(found)
        assert found > 0


@given(st.floats(-10, 20))
def test_apex_and_its_inverse(value: float) -> None:
    assert math.isclose(-math.log2(values.seconds_from_apex(value)), value, abs_tol=1e-9)


@given(st.floats(1e-6, 1e4))
def test_shown_durations_are_near(value: float) -> None:
    assert math.isclose(values.seconds(values.show_seconds(value)), value, rel_tol=0.021)

"""Every decoded value of 75 camera files against another program's reading of the same bytes."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.data.exif.photos import Sources
from harness.data.exif.table import ExifTable, build_table
from harness.data.exif.vocabulary import Vocabulary, load_vocabulary

ROOT = Path(__file__).resolve().parents[3]
EXIF, IFD0 = "ExifIFD", "IFD0"
NUMBERS = {
    "f_number": (EXIF, "FNumber"), "aperture_value": (EXIF, "ApertureValue"),
    "shutter_speed": (EXIF, "ShutterSpeedValue"), "focal_length": (EXIF, "FocalLength"), "iso": (EXIF, "ISO"),
    "x_resolution": (IFD0, "XResolution"), "y_resolution": (IFD0, "YResolution"),
}  # fmt: skip
CODES = {
    "metering_mode": (EXIF, "MeteringMode"), "exposure_mode": (EXIF, "ExposureMode"),
    "white_balance": (EXIF, "WhiteBalance"), "exposure_program": (EXIF, "ExposureProgram"),
    "custom_rendered": (EXIF, "CustomRendered"), "flash": (EXIF, "Flash"),
    "resolution_unit": (IFD0, "ResolutionUnit"), "scene_capture_type": (EXIF, "SceneCaptureType"),
}  # fmt: skip
DATES = {
    "date_time": (IFD0, "ModifyDate"), "date_time_original": (EXIF, "DateTimeOriginal"),
    "date_time_digitized": (EXIF, "CreateDate"),
}  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary(ROOT / "suites" / "exif" / "blades.yaml")


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "exif"


@pytest.fixture(scope="module")
def table(folder: Path, vocabulary: Vocabulary) -> ExifTable:
    return build_table(Sources([folder]), vocabulary)


@pytest.fixture(scope="module")
def exiftool(folder: Path) -> dict[str, dict[str, Any]]:
    """id → "group:tag" → value, as exiftool reads it with numbers for codes."""
    program = shutil.which("exiftool")
    if program is None:
        pytest.skip("exiftool is not installed (Debian: libimage-exiftool-perl)")
    command = [program, "-j", "-n", "-G1", "-a", "-EXIF:All", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {Path(row["SourceFile"]).stem: row for row in json.loads(done.stdout)}


def theirs_of(row: dict[str, Any], group: str, tag: str) -> Any:
    """Their value; a camera (exif_ianare_0023) may write tags of the EXIF directory into the first one instead."""
    return row.get(f"{group}:{tag}", row.get(f"{IFD0}:{tag}"))


def test_all_75_files_are_read_by_both(table: ExifTable, exiftool: dict[str, dict[str, Any]]) -> None:
    assert len(table) == 75
    assert set(table.frame["id"]) == set(exiftool)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_agree(name: str, table: ExifTable, exiftool: dict[str, dict[str, Any]]) -> None:
    compared = 0
    for key, ours in zip(table.frame["id"], table.frame[name], strict=True):
        theirs = theirs_of(exiftool[key], *NUMBERS[name])
        if pd.isna(ours):  # ISO 0 says that it is not known; exiftool shows it as it stands
            assert theirs is None or (name, theirs) == ("iso", 0), key
            continue
        assert math.isclose(float(ours), float(theirs), rel_tol=1e-8), key
        compared += 1
    assert compared == int(table.frame[name].notna().sum()) > 40


def test_exposure_times_agree_and_come_from_apex_where_only_that_is_there(
    table: ExifTable, exiftool: dict[str, dict[str, Any]]
) -> None:
    for _, row in table.frame.iterrows():
        tag = "ExposureTime" if row["exposure_time_from"] == "ExposureTime" else "ShutterSpeedValue"
        theirs = exiftool[row["id"]]
        assert (f"{EXIF}:ExposureTime" in theirs) == (tag == "ExposureTime")
        assert math.isclose(row["exposure_time"], float(theirs[f"{EXIF}:{tag}"]), rel_tol=1e-8), row["id"]
    assert table.frame["exposure_time_from"].value_counts().to_dict() == {"ExposureTime": 67, "ShutterSpeedValue": 8}


@pytest.mark.parametrize("name", CODES)
def test_codes_of_categories_agree(name: str, table: ExifTable, exiftool: dict[str, dict[str, Any]]) -> None:
    for key, ours in zip(table.frame["id"], table.frame[f"{name}_raw"], strict=True):
        theirs = theirs_of(exiftool[key], *CODES[name])
        assert (None if pd.isna(ours) else int(ours)) == theirs, key
    assert table.frame[f"{name}_raw"].notna().sum() >= 35


def test_codes_are_classes_as_exiftool_names_them(table: ExifTable, folder: Path, vocabulary: Vocabulary) -> None:
    """Its own words for each code, sent through our texts, name the class that our codes name."""
    program = shutil.which("exiftool")
    if program is None:
        pytest.skip("exiftool is not installed (Debian: libimage-exiftool-perl)")
    done = subprocess.run([program, "-j", "-G1", "-EXIF:All", str(folder)], capture_output=True, text=True, check=False)
    words = {Path(row["SourceFile"]).stem: row for row in json.loads(done.stdout)}
    compared = 0
    for name, place in CODES.items():
        for key, ours in zip(table.frame["id"], table.frame[name], strict=True):
            said = theirs_of(words[key], *place)
            if said is None:
                continue
            number = vocabulary.tags[name].find(said).number
            assert (None if pd.isna(ours) else ours) == (vocabulary.tags[name].names[number] if number >= 0 else None)
            compared += 1
    assert compared > 400


@pytest.mark.parametrize("name", DATES)
def test_dates_agree(name: str, table: ExifTable, exiftool: dict[str, dict[str, Any]]) -> None:
    for key, ours in zip(table.frame["id"], table.frame[name], strict=True):
        theirs = theirs_of(exiftool[key], *DATES[name])
        if pd.isna(ours):  # a clock that was never set
            assert theirs in (None, "0000:00:00 00:00:00"), key
        else:
            assert ours == theirs, key


def test_makers_and_versions_agree(table: ExifTable, exiftool: dict[str, dict[str, Any]]) -> None:
    for _, row in table.frame.iterrows():
        theirs = exiftool[row["id"]]
        assert row["make_raw"] == theirs[f"{IFD0}:Make"].strip()
        version = theirs.get(f"{EXIF}:ExifVersion")
        if version is None:
            assert pd.isna(row["exif_version"])
        else:
            assert row["exif_version"] == f"{int(version[:2])}.{version[2:]}"  # theirs as stored: 0220


def test_19_makers_without_case_are_15_without_the_words_for_a_company(table: ExifTable) -> None:
    assert table.frame["make_raw"].nunique() == 21
    assert table.frame["make_raw"].str.casefold().nunique() == 19
    assert table.frame["maker"].nunique() == 15

"""The shipped vocabulary is the tasks' and complete; any vocabulary means one thing a value, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from harness.api.errors import ConfigError
from harness.data.exif.tags import BY_NAME, TAGS, Kind
from harness.data.exif.values import Fault
from harness.data.exif.vocabulary import Vocabulary, load_vocabulary, normalise

from .conftest import ROOT

SHIPPED = ROOT / "suites" / "exif" / "blades.yaml"


def test_classes_are_the_pretext_tasks_in_order(vocabulary: Vocabulary) -> None:
    from detectors.blades.tasks import Kind as TaskKind
    from detectors.blades.tasks import task_table

    tasks = [task for task in task_table() if task.kind is TaskKind.CATEGORICAL]
    assert vocabulary.label_classes == {task.name: task.classes for task in tasks}
    assert [len(c) for c in vocabulary.label_classes.values()] == [10, 8, 7, 2, 6]  # Table 8's unique entries


@pytest.mark.parametrize(
    ("tag", "codes"),
    [
        ("metering_mode", {0: "", 1: "average", 2: "centerweighted", 3: "spot", 4: "multi-spot", 5: "multi-segment",
                           6: "partial", 255: "others", 7: ""}),
        ("exposure_mode", {0: "auto", 1: "manual", 2: "auto-bracketing", 3: ""}),
        ("white_balance", {0: "auto", 1: "manual", 2: ""}),
        ("exposure_program", {0: "", 1: "manual control", 2: "normal program", 3: "aperture priority",
                              4: "shutter priority", 5: "", 6: "", 7: "portrait mode", 8: "landscape mode", 9: ""}),
    ],
)  # fmt: skip
def test_codes_of_the_standard(tag: str, codes: dict[int, str], vocabulary: Vocabulary) -> None:
    words = vocabulary.tags[tag]
    for code, expected in codes.items():
        for raw in (code, str(code), (code,)):
            number = words.find(raw).number
            assert ("" if number < 0 else words.names[number]) == expected


@pytest.mark.parametrize(
    ("tag", "text", "expected", "how"),
    [
        ("make", "NIKON CORPORATION", "Nikon", "mapped"),
        ("make", "FUJI PHOTO FILM CO., LTD.", "FUJIFILM", "mapped"),
        ("make", "Matsushita", "Panasonic", "mapped"),
        ("make", "Sony Ericsson", "others", "mapped"),
        ("make", "OLYMPUS", "others", "default"),
        ("make", "华为", "others", "default"),
        ("make", "Applecart", "others", "default"),
        ("metering_mode", "Center-weighted average", "centerweighted", "mapped"),
        ("metering_mode", "Evaluative", "evaluative", "mapped"),
        ("metering_mode", "(Other)", "others", "mapped"),
        ("metering_mode", "Unknown (17)", "", "unknown"),
        ("metering_mode", "Lunar", "", "unmapped"),
        ("exposure_mode", "Easy shooting", "easy-shooting", "mapped"),
        ("exposure_mode", "Tv-priority", "shutter-priority", "mapped"),
        ("exposure_mode", "Av-priority", "aperture-priority", "mapped"),
        ("exposure_mode", "A-DEP", "", "unmapped"),
        ("exposure_program", "Program creative (slow program)", "", "unmapped"),
        ("exposure_program", "Not Defined", "", "unknown"),
        ("white_balance", "AUTO white balance", "auto", "mapped"),
        ("flash", "Off, Did not fire", "Unfired", "mapped"),
        ("flash", "No Flash", "Unfired", "mapped"),
        ("flash", "No flash function", "", "unknown"),
        ("flash", "Auto, Fired, Return detected", "Fired Auto", "mapped"),
    ],
)
def test_texts(tag: str, text: str, expected: str, how: str, vocabulary: Vocabulary) -> None:
    found = vocabulary.tags[tag].find(text)
    assert ("" if found.number < 0 else vocabulary.tags[tag].names[found.number], found.how) == (expected, how)


def test_every_class_is_reached_by_its_own_name(vocabulary: Vocabulary) -> None:
    for name, words in vocabulary.tags.items():
        for i, word in enumerate(words.names):
            assert words.find(word).number == i, (name, word)


@given(st.sampled_from([t.name for t in TAGS if t.kind is Kind.CATEGORY]),
       st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.tuples(st.integers())
       | st.tuples() | st.lists(st.none(), max_size=2))  # fmt: skip
@example("make", b"\xb2")  # a superscript 2 is a digit and no number
def test_anything_has_one_meaning_or_is_a_fault(vocabulary: Vocabulary, tag: str, raw: Any) -> None:
    words = vocabulary.tags[tag]
    try:
        found = words.find(raw)
    except Fault:
        return
    assert -1 <= found.number < len(words.names)
    assert (found.number >= 0) == (found.how in ("mapped", "default"))
    assert words.plain(found)


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def changed(path: Path, change: Any) -> Path:
    document = yaml.safe_load(SHIPPED.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["tags"].pop("make"), "no vocabulary for make"),
        (lambda d: d["tags"].update(iso={"classes": [{"name": "low"}]}), "'iso' is no such tag"),
        (lambda d: d.update(extra=1), "Extra inputs"),
        (lambda d: d["tags"]["make"].update(default="Leica"), "'Leica' is no class"),
        (lambda d: d["tags"]["make"]["classes"].append({"name": "Nikon"}), "class name stands twice"),
        (lambda d: d["tags"]["metering_mode"]["classes"][0]["codes"].append(2), "codes stands twice"),
        (lambda d: d["tags"]["make"]["classes"][1]["prefixes"].append("NIKON"), "prefixes stands twice"),
        (lambda d: d["tags"]["make"]["classes"][1]["prefixes"].append("--"), "no letter"),
        (lambda d: d["tags"]["flash"]["classes"][0]["prefixes"].append(False), "valid string"),
        (lambda d: d["selection"].update(presence=2), "less than or equal to 1"),
        (lambda d: d["selection"]["redundant"].update(iso="grain"), "'grain' is no such tag"),
    ],
)
def test_a_vocabulary_that_cannot_be_meant_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    file = changed(tmp_path / "v.yaml", change)
    with pytest.raises(ConfigError, match=says) as caught:
        load_vocabulary(file)
    assert str(file) in str(caught.value)


def test_rules_of_the_shipped_file_are_about_tags_of_table_8(vocabulary: Vocabulary) -> None:
    rules = vocabulary.selection
    assert {*rules.irrelevant, *rules.redundant} <= set(BY_NAME)
    assert rules.redundant == {"f_number": "aperture", "shutter_speed": "exposure_time"}

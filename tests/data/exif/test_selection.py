"""Table 8 and the supplement's criteria: each rule alone decides where it should, and says why."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.exif.read import Photo
from harness.data.exif.selection import TagRow, markdown, table_8, tex, write_tables
from harness.data.exif.table import ExifTable, build_table
from harness.data.exif.tags import BY_NAME, TAGS
from harness.data.exif.vocabulary import Selection, Vocabulary


def corpus(vocabulary: Vocabulary, *columns: tuple[str, list[Any]]) -> ExifTable:
    """Photographs whose JSON has these columns; None leaves a tag out."""
    num = len(columns[0][1])
    photos = [
        (i, Photo(str(i), f"{i}.jpg", "JSON", {n.lower(): v[i] for n, v in columns if v[i] is not None}))
        for i in range(num)
    ]
    return build_table(photos, vocabulary)


def row(table: ExifTable, name: str, rules: Selection) -> TagRow:
    return next(r for r in table_8(table, rules) if r.name == name)


def test_counts_examples_and_shares(vocabulary: Vocabulary) -> None:
    table = corpus(vocabulary, ("Exposure Time", ["1/60 sec", "1/125", "0.008", "1/60 sec", "0", None]))
    found = row(table, "exposure_time", Selection())
    assert (found.examples, found.unique, found.count) == (("1/125 sec", "1/60 sec"), 2, 5)
    assert (found.presence, found.unknown, found.single) == pytest.approx((5 / 6, 2 / 6, 2 / 4))
    assert found.stays


def test_presence_is_more_than_half(vocabulary: Vocabulary) -> None:
    half = corpus(vocabulary, ("ISO", [100, 200, None, None]), ("Focal Length", [5, 6, 7, None]))
    assert row(half, "iso", Selection()).criterion == "presence"
    assert row(half, "focal_length", Selection()).stays
    assert row(half, "make", Selection()).criterion == "presence"


def test_relevance_names_its_reason(vocabulary: Vocabulary) -> None:
    table = corpus(vocabulary, ("EXIF Version", ["2.21", "2.20"]))
    found = row(table, "exif_version", vocabulary.selection)
    assert (found.stays, found.criterion) == (False, "relevance")
    assert vocabulary.selection.irrelevant["exif_version"] in found.reason


def test_richness_unknown_as_with_the_papers_flash(vocabulary: Vocabulary) -> None:
    """Three quarters missing or unknown, as the supplement says of flash: out; at one quarter it stays."""
    poor = corpus(vocabulary, ("Flash", ["Unknown (4)", None, "Unknown", "Fired"] * 2))
    found = row(poor, "flash", vocabulary.selection)
    assert (found.criterion, found.unknown) == ("richness", 0.75)
    assert "75.0%" in found.reason
    rich = corpus(vocabulary, ("Flash", ["Fired", None, "Off", "Fired"] * 2))
    assert row(rich, "flash", vocabulary.selection).stays


def test_richness_one_value(vocabulary: Vocabulary) -> None:
    table = corpus(vocabulary, ("White Balance", ["Auto"] * 39 + ["Manual"]))
    assert row(table, "white_balance", Selection(single_max=0.95)).criterion == "richness"
    assert row(table, "white_balance", Selection(single_max=0.98)).stays


def test_redundancy_says_how_often_the_two_agree(vocabulary: Vocabulary) -> None:
    table = corpus(
        vocabulary,
        ("F-Number", ["F2.8", "F4", "F8", "F5.6"]), ("Aperture Value", ["F2.8", "F4.1", "F2", None]),
        ("Exposure Time", ["1/60", "1/125", "1/8", None]), ("Shutter Speed", ["1/64 sec", "1/128", "1/8", "1/4 sec"]),
    )  # fmt: skip
    found = row(table, "f_number", vocabulary.selection)
    assert (found.criterion, found.reason) == (
        "redundancy",
        "says what Aperture says: equal within 10 % on 2 of 3 photographs that have both",
    )
    assert "3 of 3" in row(table, "shutter_speed", vocabulary.selection).reason  # not the one that stands in
    assert row(table, "aperture", vocabulary.selection).stays


def test_a_redundant_tag_stays_where_its_twin_is_absent(vocabulary: Vocabulary) -> None:
    table = corpus(vocabulary, ("Flash", ["Fired", "Off", "Fired"]))
    rules = Selection(redundant={"flash": "make"})
    assert row(table, "flash", rules).stays


def test_all_21_tags_of_table_8_are_rows_in_its_order(vocabulary: Vocabulary, shared_seeds: Any) -> None:
    table = corpus(vocabulary, ("ISO", [100]))
    titles = [r.title for r in table_8(table, vocabulary.selection)]
    text = next(p for p in sorted(shared_seeds.iterdir()) if "Table 8. Overview of EXIF" in p.read_text()).read_text()
    lines = text.split("EXIF tag\tExample value\t#Unique entries\tCount\n")[1].split("\n\n")[0].splitlines()
    assert [line.split("\t")[0].replace("Makes", "Make") for line in lines] == titles
    assert len(titles) == 21


def test_the_papers_nine_stay_on_camera_files(shared_data: Any, vocabulary: Vocabulary) -> None:
    from harness.data.exif.labels import TAGS as NINE
    from harness.data.exif.photos import Sources

    table = build_table(Sources([shared_data / "exif"]), vocabulary)
    verdicts = {r.name: r.criterion for r in table_8(table, vocabulary.selection)}
    assert {name for name, why in verdicts.items() if not why} == {*NINE, "flash"}
    assert verdicts["custom_rendered"] == "presence"
    assert verdicts["f_number"] == verdicts["shutter_speed"] == "redundancy"
    assert sum(why == "relevance" for why in verdicts.values()) == 8


def test_no_photographs_is_no_table(vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match="without photographs"):
        table_8(build_table([], vocabulary), Selection())


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["Canon", "a|b", "50% & _x_ #1 {$} ~^\\", "Ñandú", None]), min_size=1, max_size=9))
def test_every_text_survives_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary, makers: list[str | None]
) -> None:
    table = corpus(vocabulary, ("Make", makers))
    rows = table_8(table, vocabulary.selection)
    folder = tmp_path_factory.mktemp("t")
    assert [p.name for p in write_tables(rows, folder)] == ["exif_tags.md", "exif_tags.csv", "exif_tags.tex"]
    assert markdown(rows).count("\n") == len(rows) + 2
    read = list(csv.DictReader(io.StringIO((folder / "exif_tags.csv").read_text())))
    assert [r["name"] for r in read] == [r.name for r in rows]
    assert [r["stays"] for r in read] == [str(r.stays) for r in rows]
    assert sum(line.endswith(r" \\") for line in tex(rows).splitlines()) == len(rows) + 1


def test_tex_escapes_what_latex_reads(vocabulary: Vocabulary) -> None:
    assert r"\#Unique" in tex(table_8(corpus(vocabulary, ("ISO", [100])), vocabulary.selection))


def test_tags_have_names_of_their_own() -> None:
    assert len(BY_NAME) == len(TAGS) == len({t.title for t in TAGS})
    places = [(s.code, s.name) for t in TAGS for s in t.sources if t.name not in ("f_number", "shutter_speed")]
    assert len(set(places)) == len(places)

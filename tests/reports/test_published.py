"""Every number of the seeds is in the published tables, and nothing is there that is not in the seeds."""

from __future__ import annotations

import itertools
import re

import pytest

from harness.api.errors import ConfigError
from reports import published

SUMMARY = "001_80a4ed9e216056e9.txt"
SUPPLEMENT = "004_9823e039fd678e3d.txt"
WORDS = {"two": 2, "three": 3, "four": 4, "nine": 9}


def _stored(table):
    return {(n.row, n.column): n.text for n in published.numbers(table)}


def _markdown(text, heading):
    """A Markdown table below a heading: {(row, column): printed text}."""
    after = text.split(heading, 1)[1].splitlines()[1:]
    block = itertools.takewhile(lambda line: line.startswith("|"), after)
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in block]
    head = [c.rstrip("↑↓") for c in rows[0]]
    return {(r[0], head[i]): r[i] for r in rows[2:] for i in range(1, len(head))}


@pytest.mark.parametrize(
    ("table", "heading", "count"),
    [
        ("cross_generator", "Main Results", 40),
        ("separability", "Ablation Study", 30),
        ("sensitivity", "Sensitivity Analysis¶", 15),
    ],
)
def test_each_printed_table_is_held_whole_and_nothing_more(shared_seeds, table, heading, count):
    printed = _markdown((shared_seeds / SUMMARY).read_text(encoding="utf-8"), heading)
    assert len(printed) == count
    assert _stored(table) == printed


def test_the_supplements_counts_are_held_whole_and_nothing_more(shared_seeds):
    lines = (shared_seeds / SUPPLEMENT).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.count("\t") == 3]
    assert rows[0][2:] == ["#Unique entries", "Count"]
    printed = {}
    for tag, _, unique, count in rows[1:]:
        printed[tag, "#Unique entries"] = unique.replace(",", "")
        printed[tag, "Count"] = count.replace(",", "")
    assert len(printed) == 42
    assert _stored("exif_tags") == printed


def _numbers_in(text):
    """Numbers a quotation states, powers of ten, thousands and number words included."""
    text = re.sub(r"(\d+) \\times 10\^\{(-?\d+)\}", r"\1e\2", text)
    text = re.sub(r"10\^\{(-?\d+)\}", r"1e\1", text)
    text = re.sub(r"(\d+)K\b", r"\g<1>000", text)
    found = [float(m) for m in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)]
    return found + [v for word, v in WORDS.items() if re.search(rf"\b{word}\b", text, re.IGNORECASE)]


def test_each_number_of_the_running_text_is_quoted_from_its_file(shared_seeds):
    for number in published.numbers("running_text"):
        file, quotation = re.fullmatch(r'seeds/(\S+): "(.+)"', number.source).groups()
        assert quotation in (shared_seeds / file).read_text(encoding="utf-8"), number
        assert number.value in _numbers_in(quotation), number


def test_no_number_of_the_summarys_running_text_is_left_out(shared_seeds):
    text = (shared_seeds / SUMMARY).read_text(encoding="utf-8")
    prose = [line for line in text.splitlines()[2:] if not line.startswith("|")]
    prose = [re.sub(r"\\\(.*?\\\)", _keep_values, line) for line in prose]
    names = r"ResNet-50|GPT-2|ICCV 2025|StyleGAN2|FreeDoM|\(1\)|\(2\)"  # names and list numbers, no results
    left = [v for line in prose for v in _numbers_in(re.sub(names, "", line))]
    held = {n.value for n in published.numbers("running_text")}
    words = {float(v) for v in WORDS.values()}
    assert {v for v in left if v not in words} <= held


def _keep_values(formula):
    """A formula's value where it states one (γ = 2); nothing of a definition, whose digits are indices."""
    inner = formula.group(0)
    return inner if re.search(r"(gamma|alpha|beta)=|224", inner) else ""


@pytest.mark.parametrize("command", ["--batch_size 48", "--lr 1e-5", "--cosineTmax 20", "--autol_lr 3e-4"])
def test_the_settings_of_the_training_command_are_held(command):
    option, value = command.split()
    assert published.find("running_text", "BLADES training command", option).text == value


def test_every_number_has_a_unit_and_a_source_and_stands_once():
    for table in published.names():
        rows = published.numbers(table)
        assert len({(n.row, n.column) for n in rows}) == len(rows)
        assert all(n.table == table and n.unit and n.source.startswith("seeds/") for n in rows)
        assert all(n.value >= 0 for n in rows)


def test_names_match_without_case_and_punctuation():
    assert published.find("cross_generator", "blades-oc", "sdv21").text == "80.70"
    assert published.find("cross_generator", "blades-oc", published.AVERAGE).fraction == pytest.approx(0.8801)
    assert published.find("sensitivity", "blades_bc", "f-score").fraction == 0.91
    assert published.find("cross_generator", "mine", "ldm") is None
    assert published.find(None, "blades-oc", "ldm") is None


def test_unknown_tables_and_counts_taken_for_shares_are_errors():
    with pytest.raises(ConfigError, match="no published table"):
        published.numbers("table_9")
    with pytest.raises(ConfigError, match="no share"):
        _ = published.numbers("exif_tags")[0].fraction

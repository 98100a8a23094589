"""`data check`: all problems at once, for people and for machines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.api.errors import DataError
from harness.data.check import check_data
from harness.data.layouts import DataSpec
from harness.data.splits import SplitRule

from .conftest import fill, write_lines

SMALL = DataSpec(splits=SplitRule(train_lines=20))


def test_a_sound_root_has_no_problems(root: Path) -> None:
    report = check_data(root, SMALL)
    assert report.ok
    assert report.problems == ()
    assert "no problems found" in report.text()
    assert report.counts["images"].sum() == 54
    assert [s.warns for s in report.separations] == [False, False]


def test_every_kind_of_problem_is_listed_at_once(root: Path) -> None:
    (root / "ddim" / "01000.jpg").write_bytes(b"")
    (root / "ddim" / "01001.jpg").write_text("text")
    shutil.copy(root / "celeba-face" / "imgs" / "00031.jpg", root / "ddim" / "real.jpg")
    shutil.copy(root / "celeba-face" / "imgs" / "00032.jpg", root / "celeba-face" / "imgs" / "00001.jpg")
    with (root / "celeba-face" / "train.txt").open("a") as handle:
        handle.write("nope.jpg\n../../etc/none.jpg\n/etc/passwd\n")
    report = check_data(root, DataSpec(generators=("ddim", "freedom", "sdxl")))
    kinds = [p.kind for p in report.problems]
    assert set(kinds) == {
        "missing-folder", "missing-file", "leaves-root", "empty", "undecodable", "both-classes", "leak", "short-list",
    }  # fmt: skip
    severities = [p.severity for p in report.problems]
    assert severities == sorted(severities)
    assert not report.ok
    text = report.text()
    for problem in report.problems:
        assert problem.message in text
        assert problem.fix in text


def test_fast_reads_headers_only_and_says_so(root: Path) -> None:
    path = root / "ddim" / "01000.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    assert check_data(root, SMALL, fast=True).ok
    assert "--fast" in check_data(root, SMALL, fast=True).text()
    assert [p.kind for p in check_data(root, SMALL).problems] == ["undecodable"]


def test_formats_that_give_the_class_away_are_a_loud_warning(root: Path) -> None:
    fill(root / "sdxl", 10, 5000, kind="PNG")
    report = check_data(root, SMALL)
    assert {s.test_set: s.warns for s in report.separations} == {"ddim": False, "freedom": False, "sdxl": True}
    assert "WARNING: file metadata alone" in report.text()
    assert "--match-format" in report.text()


def test_the_json_form_holds_everything(root: Path) -> None:
    (root / "ddim" / "01000.jpg").write_bytes(b"")
    data = json.loads(json.dumps(check_data(root).to_json(), allow_nan=False))
    assert data["ok"] is False
    assert data["images"] == 53
    assert {p["kind"] for p in data["problems"]} == {"empty", "short-list"}
    assert {"label", "name", "split", "images"} == set(data["counts"][0])
    assert {s["test_set"] for s in data["format_audit"]} == {"ddim", "freedom"}


def test_short_lists_are_warnings_with_numbers(root: Path) -> None:
    fill(root / "sdxl", 20, 5000)
    messages = [p.message for p in check_data(root).problems]
    assert any("30 photographs for training" in m and "25,000" in m for m in messages)
    assert any("10 photographs for testing" in m and "20" in m for m in messages)


def test_an_empty_root_and_a_root_without_photographs_are_reported(tmp_path: Path) -> None:
    report = check_data(tmp_path)
    assert [p.kind for p in report.problems] == ["missing-folder", "no-generators"]
    fill(tmp_path / "ddim", 2, 0)
    assert [p.kind for p in check_data(tmp_path).problems] == ["missing-folder"]
    with pytest.raises(DataError, match="does not exist"):
        check_data(tmp_path / "nowhere")


def test_names_with_control_characters_are_printed_escaped(root: Path) -> None:
    (root / "ddim" / "a\x1b[31mb\n.jpg").write_bytes(b"")
    text = check_data(root).text()
    assert "\x1b" not in text
    assert "\\x1b[31mb\\n.jpg" in text


def test_lists_with_windows_line_ends_change_nothing(root: Path) -> None:
    lines = (root / "celeba-face" / "train.txt").read_text().split()
    before = check_data(root, SMALL).table
    write_lines(root / "celeba-face" / "train.txt", ["", *lines, ""], end="\r\n")
    after = check_data(root, SMALL).table
    assert before.drop(columns="order").equals(after.drop(columns="order"))

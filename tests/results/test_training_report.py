"""The report in a training folder: written where it was asked for, read back, kept with its weights and no longer."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from training_support import KEY, entry, report

from harness.api.errors import DataError
from harness.results.training import read_training, verdict, write_training


@pytest.mark.parametrize(
    ("low", "high", "chance", "said"),
    [
        (0.51, 0.7, 0.5, "above chance"),
        (0.5, 0.7, 0.5, "at chance"),
        (0.3, 0.5, 0.5, "at chance"),
        (0.3, 0.49, 0.5, "below chance"),
        (0.3, 0.49, None, ""),
        (math.nan, math.nan, 0.5, ""),
    ],
)
def test_the_verdict_follows_from_the_interval(low: float, high: float, chance: float | None, said: str) -> None:
    assert verdict(low, high, chance) == said


def test_a_report_is_read_back_with_verdicts_and_what_it_is_of(tmp_path: Path) -> None:
    rows = (("iso", "concordance", 0.8, 0.7, 0.9, 0.5), ("face_coarse", "accuracy_untouched", 0.9, 0.8, 1.0, None))
    written = write_training(tmp_path, KEY, entry(), report=report(*rows))
    read = read_training(tmp_path)
    assert read.report.equals(written.report) or read.report.to_dict() == written.report.to_dict()
    assert read.record.reported_on == ["d4" * 32]
    assert read.report["verdict"].tolist() == ["above chance", ""]
    assert read.report["value"].tolist() == [0.8, 0.9]
    assert math.isnan(read.report["chance"][1])


def test_without_a_report_there_is_no_file_and_no_rows(tmp_path: Path) -> None:
    write_training(tmp_path, KEY, entry())
    assert not (tmp_path / "report.csv").exists()
    assert len(read_training(tmp_path).report) == 0
    assert read_training(tmp_path).record.reported_on == []


def test_a_report_stays_with_its_weights_and_goes_with_others(tmp_path: Path) -> None:
    write_training(tmp_path, KEY, entry(), report=report())
    before = (tmp_path / "report.csv").read_bytes()
    write_training(tmp_path, KEY, entry())
    assert (tmp_path / "report.csv").read_bytes() == before
    assert read_training(tmp_path).record.reported_on == ["d4" * 32]
    write_training(tmp_path, KEY, entry(sha256="e4" * 32))
    assert not (tmp_path / "report.csv").exists()
    assert read_training(tmp_path).record.reported_on == []


def test_a_folder_that_cannot_be_read_is_written_anew(tmp_path: Path) -> None:
    write_training(tmp_path, KEY, entry(), report=report())
    (tmp_path / "training.json").write_text("{")
    write_training(tmp_path, KEY, entry())
    assert len(read_training(tmp_path).report) == 0


@pytest.mark.parametrize(
    "text",
    [
        "task,metric,value\na,b,1\n",
        "task,metric,value,low,high,chance,images,verdict\na,b,high,0,1,0.5,3,\n",
        "task,metric,value,low,high,chance,images,verdict\na,b,1,0,1,often,3,\n",
        "task,metric,value,low,high,chance,images,verdict\n,b,1,0,1,0.5,3,\n",
        "task,metric,value,low,high,chance,images,verdict\na,b,1,0,1,0.5,3,\na,b,1,0,1,0.5,3,\n",
        "task,metric,value,low,high,chance,images,verdict\na,b,,0,1,0.5,3,\n",
    ],
    ids=["short", "word", "chance", "nameless", "twice", "empty"],
)
def test_a_damaged_report_is_named(tmp_path: Path, text: str) -> None:
    write_training(tmp_path, KEY, entry(), report=report())
    (tmp_path / "report.csv").write_text(text)
    with pytest.raises(DataError, match=r"report\.csv"):
        read_training(tmp_path)

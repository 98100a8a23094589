"""Reports of several trainings as one table: seeds taken together, intervals by Student's t, what differs said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from training_support import entry, report

from harness.results.training import TrainingFolder, read_training, write_training
from reports.training import make_training_figures, report_text
from reports.trainings import markdown, summarise, t_interval, write_summary

CHANCE = ("make", "balanced_accuracy", 0.2, 0.1, 0.3, 0.25)


def training(
    folder: Path, value: float, seed: int, name: str = "lam", inputs: list[str] | None = None, **recipe: Any
) -> TrainingFolder:
    made = entry()
    made["recipe"] |= {"recipe": name, "seed": seed, **recipe}
    found = report(("face_coarse", "accuracy", value, value - 0.1, value + 0.1, 0.5), CHANCE)
    key = f"{abs(hash((name, seed, str(recipe)))):064x}"[-64:]
    place = folder / f"{name}-{seed}-{'-'.join(map(str, recipe.values()))}"
    write_training(place, key, made, ["DEMO", f"CHANGED: seed={seed}"], {**found, "inputs": inputs or found["inputs"]})
    return read_training(place)


def row(table: pd.DataFrame, recipe: str, metric: str = "accuracy") -> Any:
    (found,) = table[(table["recipe"] == recipe) & (table["metric"] == metric)].itertuples()
    return found


def test_trainings_that_differ_in_seed_alone_are_one_row_with_students_interval(tmp_path: Path) -> None:
    values = (0.7, 0.75, 0.77)
    summary = summarise([training(tmp_path, v, seed) for seed, v in enumerate(values)])
    assert summary is not None
    found = row(summary.table, "lam")
    assert found.seeds == 3
    assert found.mean == pytest.approx(np.mean(values))
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.verdict == "above chance"
    assert row(summary.table, "lam", "balanced_accuracy").verdict == "below chance"  # the same below chance each time
    assert summary.notes == ["DEMO"]


def test_one_seed_has_no_interval_and_no_verdict(tmp_path: Path) -> None:
    summary = summarise([training(tmp_path, 0.9, 1)])
    assert summary is not None
    found = row(summary.table, "lam")
    assert (found.mean, found.seeds, found.verdict) == (0.9, 1, "")
    assert np.isnan(found.low)
    assert all(np.isnan(t_interval([0.3])))
    assert "| lam | 1 | 0.900 |" in markdown(summary)


def test_recipes_of_one_name_say_what_differs_and_a_seed_named_twice_counts_once(tmp_path: Path) -> None:
    first = training(tmp_path, 0.7, 1)
    trainings = [first, training(tmp_path, 0.6, 1, lr=0.5), training(tmp_path, 0.8, 2, "other"), first]
    summary = summarise(trainings)
    assert summary is not None
    assert list(dict.fromkeys(summary.table["recipe"])) == ["lam (lr=0.001)", "lam (lr=0.5)", "other"]
    assert row(summary.table, "lam (lr=0.001)").seeds == 1
    assert any("seed 1: named twice" in note for note in summary.notes)


def test_other_images_are_said(tmp_path: Path) -> None:
    two = [training(tmp_path, 0.7, 1), training(tmp_path, 0.7, 1, "other", inputs=["e5" * 32])]
    summary = summarise(two)
    assert summary is not None
    assert any("different images" in note for note in summary.notes)


def test_trainings_without_a_report_are_left_out_and_named(tmp_path: Path) -> None:
    bare = write_training(tmp_path / "bare", "ab" * 32, entry())
    assert summarise([bare]) is None
    summary = summarise([bare, training(tmp_path, 0.7, 1)])
    assert summary is not None
    assert any(str(tmp_path / "bare") in note for note in summary.notes)


def test_the_table_is_written_twice_alike_with_chance_beside_it(tmp_path: Path) -> None:
    trainings = [training(tmp_path, 0.7 + seed / 50, seed, name) for seed in (1, 2) for name in ("lam", "fixed")]
    summary = summarise(trainings)
    assert summary is not None
    one, two = write_summary(summary, tmp_path / "a"), write_summary(summary, tmp_path / "b")
    assert [p.name for p in one] == ["trainings.md", "trainings.csv"]
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    assert "| *chance* | | 0.500 | 0.250 |" in one[0].read_text()
    assert "Nothing published stands beside this table" in one[0].read_text()
    pd.testing.assert_frame_equal(pd.read_csv(one[1]).fillna({"verdict": ""}), summary.table)


def test_the_report_of_one_training_is_drawn_and_told(tmp_path: Path) -> None:
    found = training(tmp_path, 0.7, 1)
    figures = {path.name for path, _ in make_training_figures(found.folder)}
    assert "report.png" in figures
    text = report_text(found.report)
    assert "face_coarse accuracy" in text
    assert "0.700  [0.600, 0.800]  0.500" in text
    assert text.splitlines()[1].endswith("above chance")
    write_training(found.folder, found.record.key, entry(sha256="e4" * 32))
    assert "report.png" not in {path.name for path, _ in make_training_figures(found.folder)}
    assert not (found.folder / "figures" / "report.png").exists()

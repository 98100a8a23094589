"""Figures of a training: drawn from its folder alone, with the numbers of its tables, and only where there are any."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from training_support import KEY, TASKS, entry, history

from harness.api.errors import DataError
from harness.results.training import HISTORY, read_training, write_training
from reports import training
from reports.hypergradient import audit_rows
from reports.report import make_report
from reports.training import audit_figure, audits, averaged, lambda_figure, losses_figure, make_training_figures


def drawn(folder: Path) -> dict[str, str]:
    """Figures by name, with captions."""
    return {path.stem: caption for path, caption in make_training_figures(folder)}


def write(folder: Path, **changes: object) -> Path:
    return write_training(folder, KEY, entry(**changes), ["DEMO: not the paper's data"]).folder


def test_losses_weights_and_audits_are_drawn_from_the_tables_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", audit=3)
    assert set(drawn(folder)) == {"losses", "lambda", "hypergradient"}
    moved = tmp_path / "moved"
    for name in ("training.json", "history.csv", "speed.csv", "select.csv"):
        moved.mkdir(exist_ok=True)
        shutil.copy(folder / name, moved / name)
    assert drawn(moved) == drawn(folder)
    for name in ("losses", "lambda", "hypergradient"):
        data = (folder / "figures" / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        assert data == (moved / "figures" / f"{name}.png").read_bytes()


def test_what_is_not_there_is_not_drawn_and_an_old_figure_of_it_goes(tmp_path: Path) -> None:
    folder = write(tmp_path, audit=3)
    drawn(folder)
    write(tmp_path, weights=False)
    assert set(drawn(folder)) == {"losses"}
    assert [p.name for p in (folder / "figures").iterdir()] == ["losses.png"]


def test_the_trajectory_of_each_weight_is_drawn_and_the_number_of_steps_said(tmp_path: Path) -> None:
    read = read_training(write(tmp_path))
    figure = lambda_figure(read)
    assert figure is not None
    (ax,) = figure.axes
    assert "12 steps" in ax.get_title()
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert set(lines) == set(TASKS)
    for task, line in lines.items():
        assert line.get_ydata().tolist() == read.history[f"lambda/{task}"].tolist()
        assert line.get_xdata().tolist() == list(range(1, 13))
    assert any("DEMO" in text.get_text() for text in figure.texts)


def test_losses_show_the_weighted_loss_the_rate_and_every_task(tmp_path: Path) -> None:
    read = read_training(write(tmp_path))
    left, right, rates = losses_figure(read).axes
    assert left.get_lines()[0].get_ydata().tolist() == read.history["loss"].tolist()
    assert rates.get_lines()[0].get_ydata().tolist() == read.history["lr"].tolist()
    assert [line.get_label() for line in right.get_lines()] == list(TASKS)


def test_long_trainings_are_averaged_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "POINTS", 5)
    read = read_training(write(tmp_path, steps=12))
    left, *_ = losses_figure(read).axes
    assert left.get_xlabel() == "step (means of 3)"
    means = read.history["loss"].to_numpy().reshape(4, 3).mean(1)
    np.testing.assert_allclose(left.get_lines()[0].get_ydata(), means)
    assert left.get_lines()[0].get_xdata().tolist() == [2, 5, 8, 11]


@given(
    values=st.lists(st.one_of(st.just(np.nan), st.floats(-1e6, 1e6)), min_size=1, max_size=40),
    size=st.integers(1, 50),
)
def test_averages_are_means_of_what_is_known(values: list[float], size: int) -> None:
    steps = np.arange(1.0, len(values) + 1)
    x, y = averaged(steps, np.array(values), size)
    parts = [(steps[i : i + size], np.array(values[i : i + size])) for i in range(0, len(values), size)]
    np.testing.assert_allclose(x, [s.mean() for s, _ in parts])
    expected = [np.nan if np.isnan(v).all() else np.nanmean(v) for _, v in parts]
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_audits_come_back_from_the_table_as_they_were_in_the_history(tmp_path: Path) -> None:
    read = read_training(write(tmp_path, audit=5))
    assert audits(read.history) == audit_rows(history(12, audit=5))


def test_audits_without_a_product_are_no_figure(tmp_path: Path) -> None:
    rows = history(6, audit=2)
    for row in rows:
        for found in row.get("audit", {}).get("differences", ()):
            found.update(overall=None, same_sign=None, relative=dict.fromkeys(TASKS))
    read = read_training(write(tmp_path, history=rows))
    assert audit_figure(read) is None


def test_names_with_dollars_and_a_training_of_one_step_are_drawn(tmp_path: Path) -> None:
    assert set(drawn(write(tmp_path, steps=1, tasks=("$a_b$", "{c}")))) == {"losses", "lambda"}
    empty = write(tmp_path / "none", history=[], readings={}, evaluations=[])
    assert set(drawn(empty)) == {"losses"}


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / HISTORY).write_text("no,table\n")
    with pytest.raises(DataError, match=HISTORY):
        make_training_figures(folder)


def test_the_page_of_a_run_shows_the_trainings_in_it(demo_run) -> None:
    run = demo_run.write()
    write(run / "training" / "lam")
    paths = make_report(run)
    assert run / "training" / "lam" / "figures" / "lambda.png" in paths
    page = (run / "report.html").read_text()
    assert "<h3>Training</h3>" in page
    assert "lam: task weights λ by step" in page

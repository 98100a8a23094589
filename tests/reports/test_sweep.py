"""Figures of a sweep: drawn from its folder alone, with the numbers of its tables."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from sweep_support import record, trials, write

from harness.api.errors import DataError
from harness.results.sweep import SpaceRecord, write_sweep
from reports.sweep import (
    epochs_figure,
    lambda_figure,
    make_sweep_figures,
    objective_figure,
    parallel_figure,
    positions,
)


def test_all_figures_are_drawn_from_the_tables_alone_and_again_the_same(tmp_path: Path) -> None:
    write(tmp_path / "a")
    drawn = {path.stem: caption for path, caption in make_sweep_figures(tmp_path / "a")}
    assert set(drawn) == {"parallel", "objective", "epochs", "lambda"}
    shutil.copytree(tmp_path / "a", tmp_path / "b", ignore=shutil.ignore_patterns("figures"))
    make_sweep_figures(tmp_path / "b")
    for name in drawn:
        data = (tmp_path / "a" / "figures" / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        assert data == (tmp_path / "b" / "figures" / f"{name}.png").read_bytes()


def test_without_task_weights_there_is_no_figure_of_them_and_an_old_one_goes(tmp_path: Path) -> None:
    write(tmp_path)
    make_sweep_figures(tmp_path)
    for path in (tmp_path / "trials").iterdir():
        path.unlink()
    assert "lambda" not in {path.stem for path, _ in make_sweep_figures(tmp_path)}
    assert not (tmp_path / "figures/lambda.png").exists()


def points(ax: Any, label: str) -> list[tuple[float, float]]:
    (found,) = [c for c in ax.collections if c.get_label() == label]
    return [tuple(map(float, p)) for p in found.get_offsets()]


def test_the_objective_stands_at_its_rate_on_a_log_axis_and_stopped_trials_are_hollow(tmp_path: Path) -> None:
    figure = objective_figure(write(tmp_path))
    ax, words = figure.axes[:2]
    assert ax.get_xscale() == "log"
    assert ax.get_xlim() == (1e-5, 1e-2)
    assert points(ax, "trained to the end") == [(1e-4, 0.54), (1e-3, 0.64)]
    assert points(ax, "stopped early") == [(1e-5, 0.52)]
    assert points(ax, "best: trial 1") == [(1e-3, 0.64)]
    hollow = next(c for c in ax.collections if c.get_label() == "stopped early")
    assert len(hollow.get_facecolors()) == 0
    assert words.get_xscale() == "linear"
    assert [t.get_text() for t in words.get_xticklabels()] == ["exact", "finite_difference"]
    assert "(log axis)" in ax.get_xlabel()


def test_parallel_coordinates_have_a_line_a_trial_through_its_values(tmp_path: Path) -> None:
    ax = parallel_figure(write(tmp_path)).axes[0]
    lines = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert len(lines) == 3
    heights = [list(map(float, line.get_ydata())) for line in lines]
    assert heights[0] == pytest.approx([0.5, 0.0, 1 / 6])
    assert heights[1] == pytest.approx([1.0, 1.0, 1.0])
    assert heights[2] == pytest.approx([0.0, 0.0, 0.0])
    assert [line.get_linestyle() for line in lines] == ["-", "-", "--"]
    labels = [t.get_text() for t in ax.get_xticklabels()]
    assert labels == ["settings.lambda_lr (log)", "protocol.hypergradient", "accuracy"]


def test_the_objective_by_epoch_ends_where_a_trial_was_stopped(tmp_path: Path) -> None:
    ax = epochs_figure(write(tmp_path)).axes[0]
    curves = [line for line in ax.lines if line.get_linestyle() in ("-", "--")]
    assert [line.get_xdata().tolist() for line in curves] == [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2]]
    rungs = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"]
    assert rungs == [2]


def test_task_weights_have_a_panel_a_task_and_a_line_a_trial_coloured_by_the_rate(tmp_path: Path) -> None:
    figure = lambda_figure(write(tmp_path))
    assert figure is not None
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["face_coarse", "make/model"]
    assert [len(ax.lines) for ax in panels] == [3, 3]
    colours = [to_rgba(line.get_color()) for line in panels[0].lines]
    assert len(set(colours)) == 3
    assert colours == [to_rgba(line.get_color()) for line in panels[1].lines]
    assert panels[0].lines[0].get_xdata().tolist() == list(range(1, 21))


def test_positions_are_numbers_their_logarithms_or_places_of_words() -> None:
    assert positions([1e-4, 1e-2], True)[0].tolist() == pytest.approx([-4, -2])
    assert positions([1, 3], False)[0].tolist() == [1.0, 3.0]
    places, labels = positions(["b", "a", "b"], False)
    assert places.tolist() == [0, 1, 0]
    assert labels == {0.0: "b", 1.0: "a"}


def test_a_single_trial_equal_values_and_none_at_all_are_drawn(tmp_path: Path) -> None:
    one = [t for t in trials() if t.number == 0]
    write_sweep(tmp_path / "one", record(trials=1, best=0), one)
    assert len(make_sweep_figures(tmp_path / "one")) == 4
    failed = [t for t in trials() if t.state == "failed"]
    write_sweep(tmp_path / "none", record(trials=1, best=None), failed)
    assert len(make_sweep_figures(tmp_path / "none")) == 3
    assert np.isfinite(objective_figure(write_sweep(tmp_path / "n", record(best=None), one)).axes[0].get_xlim()).all()


def test_a_name_with_a_dollar_sign_is_text(tmp_path: Path) -> None:
    spaces = {"settings.lambda_lr": SpaceRecord(kind="loguniform", values=[1e-5, 1e-2], logarithmic=True),
              "protocol.hypergradient": SpaceRecord(kind="choice", values=["exact"])}  # fmt: skip
    write(tmp_path, name="a$b$", metric="$x$", spaces=spaces)
    assert len(make_sweep_figures(tmp_path)) == 4


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a sweep folder"):
        make_sweep_figures(tmp_path)

"""Tables made piece by piece are those made at once; a manifest read for planning plans the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.api.contract import predict
from harness.api.errors import DataError
from harness.data.manifest import conform, write_manifest
from harness.data.splits import Draws, draw, draw_cells
from harness.data.tables import read_table
from harness.engine.data import rows_of_draws
from harness.engine.frames import RowScores, read_roster, write_cells, write_scores
from harness.engine.plan import PLANNED, Plan, Settings
from harness.results.digests import digests_array

NAMES = ("", "ddim", "ldm")


def manifest(contents: list[int], makers: list[int], splits: list[bool]) -> pd.DataFrame:
    """Rows with these contents, makers (0: photograph) and whether they are tested on."""
    count = len(contents)
    sha = [hashlib.sha256(b"%d" % c).hexdigest() for c in contents]
    return conform(pd.DataFrame({
        "sha256": sha, "path": [f"{i}.png" for i in range(count)], "label": [int(m > 0) for m in makers],
        "generator": [NAMES[m] for m in makers], "dataset": "d", "group": sha,
        "split": ["report" if s else "train" for s in splits], "order": range(count), "width": 8, "height": 8,
        "format": "PNG", "jpeg_quality": -1, "bytes": 1,
    }))  # fmt: skip


def plan_of(table: pd.DataFrame, draws: Draws) -> Plan:
    images = digests_array(table["sha256"])
    return Plan(table, images, Path(), draws, rows_of_draws(table, images, draws), [], {}, {}, Settings())


ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.booleans()), min_size=1, max_size=25)


@settings(max_examples=200, deadline=None)
@given(ROWS, st.data())
def test_each_image_that_a_test_set_names_is_scored_once(rows, data) -> None:
    table = manifest(*map(list, zip(*rows, strict=True)))
    tested = np.flatnonzero(table["split"] == "report")
    drawn = (
        [np.array(data.draw(st.lists(st.sampled_from(tested.tolist()), unique=True)), np.int64) for _ in range(2)]
        if len(tested)
        else []
    )
    draws = Draws(tuple(f"set {i}" for i in range(len(drawn))), tuple(drawn))
    role = [(table["sha256"][i], table["label"][i], table["generator"][i]) for i in range(len(table))]
    wanted = {role[i] for part in drawn for i in part}
    first = {role[i]: i for i in reversed(tested.tolist())}
    expected = sorted(first[r] for r in wanted)
    assert rows_of_draws(table, digests_array(table["sha256"]), draws).tolist() == expected


@pytest.fixture
def plan() -> Plan:
    rng = np.random.default_rng(0)
    table = manifest(list(range(300)), [int(m) for m in rng.integers(0, 3, 300)], [i % 4 > 0 for i in range(300)])
    return plan_of(table, draw(table, n=50))


def scored(plan: Plan) -> list[RowScores]:
    rng = np.random.default_rng(1)
    scores = [np.where(rng.random(len(plan.cell_rows)) < 0.1, np.nan, rng.random(len(plan.cell_rows))) for _ in "ab"]
    return [RowScores(plan, name, 0.5, s) for name, s in zip(("oc", "b c"), scores, strict=True)]


def at_once(plan: Plan, rows: list[RowScores]) -> pd.DataFrame:
    table = plan.manifest.iloc[plan.cell_rows]
    return pd.concat([pd.DataFrame({
        "sha256": table["sha256"].to_numpy(), "label": table["label"].to_numpy(),
        "generator": table["generator"].to_numpy(), "detector": r.row, "score": r.score, "threshold": r.threshold,
        "prediction": predict(r.score, r.threshold),
    }) for r in rows], ignore_index=True)  # fmt: skip


@pytest.mark.parametrize("most", [10**6, 100])
def test_scores_and_cells_hold_what_one_frame_would(plan: Plan, tmp_path: Path, most: int) -> None:
    rows = scored(plan)
    write_scores(rows, tmp_path / "scores.parquet", most_rows=most)
    write_cells(plan, tmp_path / "cells.parquet", most_rows=most)
    assert (tmp_path / "scores.parquet").is_dir() == (most == 100)
    pd.testing.assert_frame_equal(read_table(tmp_path / "scores.parquet"), at_once(plan, rows))
    pd.testing.assert_frame_equal(read_table(tmp_path / "cells.parquet"), draw_cells(plan.manifest, n=50))
    if most > 100:
        for name, frame in (("scores", at_once(plan, rows)), ("cells", plan.cells)):
            frame.to_parquet(tmp_path / "plain.parquet", index=False)
            assert (tmp_path / f"{name}.parquet").read_bytes() == (tmp_path / "plain.parquet").read_bytes()


def test_a_run_without_any_score_has_an_empty_table(plan: Plan, tmp_path: Path) -> None:
    write_scores([], tmp_path / "scores.parquet")
    found = read_table(tmp_path / "scores.parquet")
    assert found.dtypes.to_dict() == at_once(plan, scored(plan)).dtypes.to_dict()
    assert len(found) == 0


@pytest.mark.parametrize("most", [10**6, 100])
def test_a_manifest_read_for_planning_says_the_same(plan: Plan, tmp_path: Path, most: int) -> None:
    roster = read_roster(write_manifest(plan.manifest, tmp_path / "manifest.parquet", most_rows=most))
    for name in PLANNED:
        assert roster.manifest[name].tolist() == plan.manifest[name].tolist(), name
    assert roster.images.tolist() == plan.images.tolist()
    draws = draw(roster.manifest, n=50, keys=roster.sha256)
    assert [r.tolist() for r in draws.rows] == [r.tolist() for r in plan.draws.rows]
    assert draws.names == plan.draws.names
    assert rows_of_draws(roster.manifest, roster.images, draws).tolist() == plan.cell_rows.tolist()


def test_a_manifest_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="manifest cannot be read"):
        read_roster(tmp_path / "manifest.parquet")

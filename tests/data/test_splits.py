"""Splits and draws: stated shares, seeded, and unmoved by images that come or go."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.api.errors import DataError
from harness.data.manifest import conform
from harness.data.splits import (
    SplitRule,
    draw_cells,
    draw_order,
    draw_test_set,
    hash_share,
    split_seen_generator,
    split_train_list,
    split_without_lists,
)

keys = st.lists(st.text("0123456789abcdef", min_size=4, max_size=8), unique=True, min_size=1, max_size=60)


def names(num: int, start: str = "g") -> list[str]:
    return [hashlib.sha256(f"{start}{i}".encode()).hexdigest() for i in range(num)]


def manifest(num_photographs: int, **generators: int) -> pd.DataFrame:
    parts = [("", 0, names(num_photographs, "photo"))]
    parts += [(g, 1, names(n, g)) for g, n in generators.items()]
    rows = [
        {"sha256": s, "path": s, "label": label, "generator": g, "dataset": "celeba-face", "group": s,
         "split": "report", "order": i, "width": 8, "height": 8, "format": "PNG", "jpeg_quality": -1, "bytes": 9}
        for g, label, shas in parts for i, s in enumerate(shas)
    ]  # fmt: skip
    return conform(pd.DataFrame(rows))


@given(keys, st.integers(0, 99))
def test_draw_order_is_ascending_sha256_of_seed_and_image(images: list[str], seed: int) -> None:
    expected = sorted(range(len(images)), key=lambda i: hashlib.sha256(f"{seed}:{images[i]}".encode()).hexdigest())
    assert draw_order(images, seed).tolist() == expected


@given(keys, st.integers(0, 99))
def test_hash_share_depends_on_seed_and_group_only(groups: list[str], seed: int) -> None:
    shares = hash_share(groups, seed)
    assert ((shares >= 0) & (shares < 1)).all()
    assert hash_share(groups[::-1], seed).tolist() == shares.tolist()[::-1]


def test_train_is_the_first_lines_and_the_rest_is_halved_by_hash() -> None:
    split = split_train_list(names(27_000), SplitRule(), 2024)
    assert split[:25_000] == ["train"] * 25_000
    assert set(split[25_000:]) == {"outer", "select"}
    assert abs(split.count("outer") - 1000) < 120


def test_a_shorter_list_gives_a_tenth_each_by_hash() -> None:
    split = split_train_list(names(20_000), SplitRule(), 2024)
    assert abs(split.count("outer") - 2000) < 200
    assert abs(split.count("select") - 2000) < 200
    assert split.count("train") == 20_000 - split.count("outer") - split.count("select")


def test_exactly_the_papers_number_of_lines_is_all_train() -> None:
    assert set(split_train_list(names(50), SplitRule(train_lines=50), 0)) == {"train"}


def test_other_shares_are_as_stated() -> None:
    whole = split_without_lists(names(20_000), SplitRule(), 1)
    assert {s: round(whole.count(s) / 20_000, 1) for s in set(whole)} == {
        "train": 0.5,
        "outer": 0.1,
        "select": 0.1,
        "report": 0.3,
    }
    seen = split_seen_generator(names(20_000), SplitRule(), 1)
    assert {s: round(seen.count(s) / 20_000, 1) for s in set(seen)} == {"train": 0.4, "select": 0.1, "report": 0.5}


@given(keys, st.integers(0, 9))
def test_copies_of_one_origin_share_a_split(groups: list[str], seed: int) -> None:
    twice = [*groups, *groups]
    for split in (split_without_lists(twice, SplitRule(), seed), split_seen_generator(twice, SplitRule(), seed)):
        assert split[: len(groups)] == split[len(groups) :]


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40), st.integers(0, 5))
def test_a_test_set_is_balanced_seeded_and_independent_of_row_order(p: int, g: int, n: int, seed: int) -> None:
    table = manifest(p, ddim=g)
    rows = draw_test_set(table, "ddim", n=n, seed=seed)
    k = min(p, g, n)
    assert rows["label"].tolist() == [1] * k + [0] * k
    shuffled = table.sample(frac=1, random_state=0)
    assert draw_test_set(shuffled, "ddim", n=n, seed=seed)["sha256"].tolist() == rows["sha256"].tolist()


@settings(deadline=None)
@given(st.integers(5, 40), st.integers(5, 40), st.integers(1, 5), st.integers(0, 5))
def test_a_smaller_draw_is_the_beginning_of_a_larger_one(p: int, g: int, n: int, seed: int) -> None:
    table = manifest(p, ddim=g)
    small, large = (draw_test_set(table, "ddim", n=m, seed=seed) for m in (n, n + 3))
    for label in (0, 1):
        few, many = (t.loc[t["label"] == label, "sha256"].tolist() for t in (small, large))
        assert many[: len(few)] == few


def test_adding_an_image_moves_no_other_draw() -> None:
    before = draw_test_set(manifest(50, ddim=40), "ddim", n=20)
    after = draw_test_set(manifest(51, ddim=40), "ddim", n=20)
    changed = set(after["sha256"]) ^ set(before["sha256"])
    assert len(changed) in (0, 2)
    assert len(changed - set(names(51, "photo"))) == 0


def test_cells_are_the_draws_of_all_test_sets() -> None:
    table = manifest(30, ldm=12, ddim=25)
    cells = draw_cells(table, n=20)
    assert list(cells.columns) == ["test_set", "sha256", "label", "generator"]
    assert cells["test_set"].unique().tolist() == ["ddim", "ldm"]
    for name in ("ddim", "ldm"):
        part = cells[cells["test_set"] == name]
        assert part["sha256"].tolist() == draw_test_set(table, name, n=20)["sha256"].tolist()
        assert set(part.loc[part["label"] == 0, "generator"]) == {""}
    assert draw_cells(table, [], n=20).empty


def test_all_test_sets_of_a_dataset_draw_the_same_photographs_and_none_twice() -> None:
    table = manifest(3000, **{f"g{i}": 1000 for i in range(9)})
    cells = draw_cells(table, n=5000)
    assert len(cells) == 9 * 2000
    assert not cells.duplicated(["test_set", "sha256"]).any()
    firsts = [cells.loc[(cells["test_set"] == f"g{i}") & (cells["label"] == 0), "sha256"].tolist() for i in range(9)]
    assert all(f == firsts[0] for f in firsts)


def test_only_report_rows_are_drawn_and_lacking_ones_are_named() -> None:
    table = manifest(10, ddim=10)
    table.loc[(table["label"] == 0) & (table["order"] < 5), "split"] = "train"
    rows = draw_test_set(table, "ddim", n=99)
    assert (rows["split"] == "report").all()
    assert len(rows) == 10
    with pytest.raises(DataError, match="'ldm'"):
        draw_test_set(table, "ldm", n=5)
    table.loc[table["label"] == 0, "split"] = "train"
    with pytest.raises(DataError, match="celeba-face"):
        draw_test_set(table, "ddim", n=5)


def test_the_draws_stay_what_they_were() -> None:
    rows = draw_test_set(manifest(6, ddim=6), "ddim", n=2, seed=2024)
    assert [s[:8] for s in rows["sha256"]] == ["7bf4fa80", "d7c8d128", "3582246f", "f94137f3"]
    assert np.round(hash_share(["a", "b"], 2024), 6).tolist() == [0.328782, 0.330944]

"""Measures of the pretext tasks: against plain definitions, and of encoders that know all or nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from detectors.blades.pretext import Answers, balanced_accuracy, concordance, measures, task_metrics
from detectors.blades.tasks import task_table

TABLE = task_table()
COUNT = 60


def plain_concordance(expected: Any, levels: Any, weights: Any) -> float:
    right = total = 0.0
    for i, j in itertools.permutations(range(len(levels)), 2):
        if levels[i] > levels[j]:
            total += weights[i] * weights[j]
            right += (
                weights[i]
                * weights[j]
                * (1.0 if expected[i] > expected[j] else 0.5 if expected[i] == expected[j] else 0)
            )
    return right / total if total else float("nan")


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.integers(0, 3)), min_size=2, max_size=14))
def test_concordance_is_the_share_of_pairs_in_order(rows: list[tuple[int, int, int]]) -> None:
    expected, levels, weights = (np.array(column) for column in zip(*rows, strict=True))
    found = concordance(expected / 3, levels, weights)
    assert found == pytest.approx(plain_concordance(expected / 3, levels, weights), nan_ok=True)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_balanced_accuracy_is_scikit_learns(rows: list[tuple[int, int]]) -> None:
    called, labels = (np.array(column) for column in zip(*rows, strict=True))
    kept = np.isin(called, labels)  # scikit-learn warns of classes that are only predicted
    if kept.any() and set(labels[kept]) == set(labels):
        called, labels = called[kept], labels[kept]
    wanted = np.mean([np.mean(called[labels == c] == c) for c in np.unique(labels)])
    assert balanced_accuracy(called.astype(float), labels, np.ones(len(labels), np.int64)) == pytest.approx(wanted)
    if set(called) <= set(labels) and len(set(labels)) > 1:
        assert wanted == pytest.approx(balanced_accuracy_score(labels, called))


def answers(knows: bool, seed: int = 0) -> Answers:
    rng = np.random.default_rng(seed)
    labels = {"iso": rng.integers(-1, 3, COUNT), "make": rng.integers(-1, 4, COUNT)}
    regions = rng.random((COUNT, 3)) < 0.4
    said = labels if knows else {"iso": rng.random(COUNT), "make": rng.integers(0, 4, COUNT)}
    return Answers(
        photographic=np.zeros(COUNT, bool) if knows else rng.random(COUNT) < 0.5,
        manipulated=np.ones(COUNT, bool) if knows else rng.random(COUNT) < 0.5,
        untouched=np.zeros(COUNT, bool),
        resampled=np.zeros(COUNT, bool),
        regions=np.where(regions, 1, -1).astype(np.float32)
        if knows
        else rng.normal(size=(COUNT, 3)).astype(np.float32),
        spared=np.full((COUNT, 3), -1, np.float32) if knows else rng.normal(size=(COUNT, 3)).astype(np.float32),
        true_regions=regions,
        tags={k: v.astype(float) for k, v in said.items()},
        labels=labels,
    )


def test_who_knows_all_has_one_and_who_guesses_is_at_chance() -> None:
    for metric in task_metrics(answers(True), TABLE, 200):
        assert metric.value == metric.low == metric.high == 1
    inside = [
        metric.low <= metric.chance <= metric.high
        for seed in range(12)
        for metric in task_metrics(answers(False, seed), TABLE, 200)
        if metric.chance is not None and metric.task != "face_fine"
    ]
    assert np.mean(inside) > 0.85


def test_photographs_without_a_label_do_not_count_and_an_absent_task_is_not_measured() -> None:
    known = answers(True)
    found = {(m.task, m.metric): m for m in task_metrics(known, TABLE, 50)}
    assert found["iso", "concordance"].images == int((known.labels["iso"] >= 0).sum())
    assert found["iso", "concordance"].chance == 0.5
    assert found["make", "balanced_accuracy"].chance == 0.25
    assert {task for task, _ in found} == {"face_coarse", "face_fine", "iso", "make"}
    alone = measures(known, task_table(names=("face_coarse",)))
    assert {task for task, _ in alone} == {"face_coarse"}


def test_the_share_of_one_class_has_no_chance_level() -> None:
    found = {m.metric: m.chance for m in task_metrics(answers(True), TABLE, 10) if m.task == "face_coarse"}
    kinds = ("photographic", "manipulated", "untouched", "resampled")
    assert found == {"accuracy": 0.5} | {f"accuracy_{kind}": None for kind in kinds}


def test_regions_are_asked_of_photographs_too() -> None:
    whole = replace(answers(True), true_regions=np.ones((COUNT, 3), bool), regions=np.ones((COUNT, 3), np.float32))
    spared = {True: np.ones((COUNT, 3), np.float32), False: np.full((COUNT, 3), -1, np.float32)}
    for everything, wanted in ((True, 0.5), (False, 1.0)):
        found = [m for m in task_metrics(replace(whole, spared=spared[everything]), TABLE, 10) if m.task == "face_fine"]
        assert [(m.value, m.chance) for m in found] == [(wanted, 0.5)]


def test_intervals_repeat_themselves() -> None:
    assert task_metrics(answers(False), TABLE, 50) == task_metrics(answers(False), TABLE, 50)

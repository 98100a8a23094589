"""Stored scores to metrics: every detector on every test set, the means over generators, and the comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.api.errors import DataError
from harness.results.bootstrap import (
    DEFAULT_COMPARISONS,
    DEFAULT_RESAMPLES,
    Compared,
    SetScores,
    interval,
    paired_comparison,
    replicates,
)
from harness.results.metrics import METRICS, Abstain, decisions

if TYPE_CHECKING:
    import pandas as pd

AUDIT = "format-only"
"""Row name of the format audit: file metadata alone; not a detector, never ranked, never compared."""
AUDIT_THRESHOLD = 0.5
MEAN = "mean"
IMAGE = ["sha256", "label", "generator"]
_COUNTS = ["n", "n_photographic", "n_generated", "abstained"]
METRIC_COLUMNS = ["detector", "test_set", "metric", "value", "low", "high", *_COUNTS, "seen"]
_TESTED = ["difference", "low", "high", "p", "p_holm", "n_test_sets"]
COMPARISON_COLUMNS = ["detector", "reference", "metric", *_TESTED, "seen"]


@dataclass(frozen=True)
class Evaluation:
    """What the stored scores say.

    `metrics`: long table (detector, test_set, metric, value, low, high, n, n_photographic, n_generated, abstained,
    seen); test set "mean" is the mean of the test sets' values with the bootstrap interval of that mean, its counts
    are sums over test sets.
    `comparisons`: detector, reference, metric, difference, low, high, p, p_holm, n_test_sets, seen.
    `notes`: what a reader must know (scores that are missing, means that are undefined).
    `sets`: the joined scores it rests on.
    """

    metrics: pd.DataFrame
    comparisons: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    sets: list[SetScores] = field(default_factory=list)


def join_scores(scores: pd.DataFrame, cells: pd.DataFrame, audit: pd.DataFrame | None = None) -> list[SetScores]:
    """Join scores to cells by (sha256, label, generator): one `SetScores` a test set, sorted by name.

    The audit, if any, is the last row, named "format-only", with threshold 0.5. Rows within a test set are sorted by
    (label, sha256), so that nothing depends on the order of the files.

    Raises:
        DataError: two scores of a detector for one image, two images of a cell, a prediction that is not what score
            and threshold say, a detector or test set with a reserved name, or columns that are missing.
    """
    _need(scores, [*IMAGE, "detector", "score", "threshold"], "scores.parquet")
    _need(cells, ["test_set", *IMAGE], "cells.parquet")
    if audit is not None:
        _need(audit, ["test_set", *IMAGE, "score"], "audit.parquet")
    detectors = sorted(str(d) for d in scores["detector"].unique())
    if AUDIT in detectors:
        raise DataError(f"{AUDIT!r} is the audit's row and cannot name a detector", where="scores.parquet")
    if (cells["test_set"] == MEAN).any():
        raise DataError(f"a test set cannot be named {MEAN!r}: that row is the mean over test sets", "cells.parquet")
    _check_predictions(scores)
    tables = [scores, cells] if audit is None else [scores, cells, audit]
    ids, num = _image_ids(tables)
    stored = _pivot(scores, ids[0], num, detectors)
    by_set = cells["test_set"].to_numpy(object)
    sets = []
    for name in sorted(set(by_set)):
        at = np.flatnonzero(by_set == name)
        cell = cells.iloc[at]
        label = cell["label"].to_numpy(np.int8)
        at = at[np.lexsort((cell["sha256"].to_numpy(str), label))]
        images = ids[1][at]
        if len(np.unique(images)) != len(images):
            raise DataError(f"test set {name!r} holds an image twice", where="cells.parquet")
        rows: list[NDArray[Any]] = [table[:, images] for table in stored]
        names = tuple(detectors)
        if audit is not None and len(audit):
            for i, row in enumerate(_audit_rows(audit, str(name), ids[2], images, num)):
                rows[i] = np.vstack([rows[i], row])
            names = (*names, AUDIT)
        cell = cells.iloc[at]
        label = cell["label"].to_numpy(np.int8)
        sets.append(SetScores(str(name), cell["sha256"].to_numpy(object), label, names, *rows))
    return sets


def evaluate(
    scores: pd.DataFrame,
    cells: pd.DataFrame,
    *,
    seed: int,
    n_boot: int = DEFAULT_RESAMPLES,
    n_compare: int = DEFAULT_COMPARISONS,
    seen: Mapping[str, Set[str]] | None = None,
    reference: str | None = None,
    audit: pd.DataFrame | None = None,
    abstain: Abstain = "wrong",
    workers: int | None = None,
) -> Evaluation:
    """Metrics with 95 % bootstrap intervals of every cell and of the means, and comparisons with the reference.

    Args:
        scores, cells, audit: the run folder's tables (schemas: docs/architecture.md).
        seen: detector → generators its head or extractor was trained on (their rows are marked).
        reference: the row that the others are compared with; None: no comparisons.

    A mean is over all test sets: where a detector has no value on one of them its mean is NaN (a mean over fewer
    generators is another quantity) and a note says so. A cell without any stored score gives no row.
    """
    import pandas as pd

    sets = join_scores(scores, cells, audit)
    marked = {d: set(g) for d, g in (seen or {}).items()}
    names = sets[0].detectors if sets else ()
    draws = replicates(sets, seed=seed, stop=n_boot, abstain=abstain, workers=workers)
    rows, notes = [], _missing_notes(sets)
    for d, name in enumerate(names):
        points, cells_of = [], []
        for s in sets:
            if not s.present[d].any():
                continue
            point = s.point(d, abstain)
            trained = s.name in marked.get(name, set())
            low, high = interval(draws[s.name][d])
            counts = _counts(s, d)
            rows += [
                (name, s.name, metric, point[metric], low[m], high[m], *counts, trained)
                for m, metric in enumerate(METRICS)
            ]
            points.append([point[metric] for metric in METRICS])
            cells_of.append((counts, trained))
        if not points:
            continue
        whole = len(points) == len(sets)
        mean = np.mean(points, axis=0) if whole else np.full(len(METRICS), np.nan)
        low, high = interval(np.mean([draws[s.name][d] for s in sets], axis=0))
        totals = tuple(int(v) for v in np.sum([c for c, _ in cells_of], axis=0))
        rows += [
            (name, MEAN, metric, mean[m], low[m], high[m], *totals, any(t for _, t in cells_of))
            for m, metric in enumerate(METRICS)
        ]
        undefined = [METRICS[m] for m in np.flatnonzero(np.isnan(mean))]
        if undefined:
            notes.append(f"{name}: no mean of {', '.join(undefined)}: not defined on every test set")
    compared = _compare(sets, reference, seed, n_compare, abstain, workers)
    table = pd.DataFrame(rows, columns=METRIC_COLUMNS)
    return Evaluation(table, _comparison_table(compared, sets, marked), notes, sets)


def _counts(s: SetScores, d: int) -> tuple[int, int, int, int]:
    """Images, photographic, generated and abstentions of one cell."""
    there = s.present[d]
    label = s.label[there]
    return len(label), int((label == 0).sum()), int((label == 1).sum()), int(np.isnan(s.score[d, there]).sum())


def _missing_notes(sets: Sequence[SetScores]) -> list[str]:
    notes = []
    for s in sets:
        for d, name in enumerate(s.detectors):
            missing = int((~s.present[d]).sum())
            if missing == len(s.label):
                notes.append(f"{name}: no scores on test set {s.name}")
            elif missing:
                notes.append(f"{name}: {missing} of {len(s.label)} images of test set {s.name} have no stored score")
    return notes


def _compare(
    sets: Sequence[SetScores],
    reference: str | None,
    seed: int,
    n_compare: int,
    abstain: Abstain,
    workers: int | None,
) -> list[Compared]:
    """Comparisons of the rows that have a score of every image (differences must be paired)."""
    if reference is None or not sets or reference not in sets[0].detectors:
        return []
    whole = [
        name for d, name in enumerate(sets[0].detectors) if name != AUDIT and all(s.present[d].all() for s in sets)
    ]
    if reference not in whole or len(whole) < 2:
        return []
    keep = [sets[0].detectors.index(name) for name in whole]
    chosen = [
        SetScores(s.name, s.sha256, s.label, tuple(whole), s.score[keep], s.threshold[keep], s.present[keep])
        for s in sets
    ]
    others = [name for name in whole if name != reference]
    return paired_comparison(
        chosen, reference, detectors=others, seed=seed, n_boot=n_compare, abstain=abstain, workers=workers
    )


def _comparison_table(
    compared: Sequence[Compared], sets: Sequence[SetScores], seen: Mapping[str, Set[str]]
) -> pd.DataFrame:
    import pandas as pd

    names = {s.name for s in sets}
    rows = [(*row, bool(names & {*seen.get(row.detector, ()), *seen.get(row.reference, ())})) for row in compared]
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def _need(table: pd.DataFrame, columns: Sequence[str], where: str) -> None:
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise DataError(f"column {missing[0]!r} is missing", where=where, fix="use a run folder made by `harness run`")


def _check_predictions(scores: pd.DataFrame) -> None:
    """The stored verdicts must be what score and threshold say, or the file was edited or made by other rules."""
    if "prediction" not in scores.columns:
        return
    threshold = scores["threshold"].to_numpy(np.float64)
    said = scores["prediction"].to_numpy(np.int8)
    wrong = (decisions(scores["score"].to_numpy(np.float64), threshold) != said) & ~np.isnan(threshold)
    if wrong.any():
        row = scores.iloc[int(np.argmax(wrong))]
        what = f"{int(wrong.sum())} predictions are not what score and threshold say, first: {row['detector']} on"
        raise DataError(f"{what} {row['sha256'][:12]}", "scores.parquet", "run `harness run` again: scores are kept")


def _image_ids(tables: Sequence[pd.DataFrame]) -> tuple[list[NDArray[np.int64]], int]:
    """For each table the number of each row's image; equal where (sha256, label, generator) are; and how many."""
    import pandas as pd

    def codes(column: str) -> NDArray[np.int64]:
        return pd.factorize(pd.concat([table[column].astype("str") for table in tables]))[0].astype(np.int64)

    generator, label = codes("generator"), np.concatenate([table["label"].to_numpy(np.int64) for table in tables])
    key = (codes("sha256") * (generator.max(initial=0) + 1) + generator) * 2 + label
    number, distinct = pd.factorize(key)
    ends = np.cumsum([len(table) for table in tables])[:-1]
    return [part.astype(np.int64) for part in np.split(number, ends)], len(distinct)


def _pivot(
    scores: pd.DataFrame, images: NDArray[np.int64], num_images: int, detectors: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Scores, thresholds, and whether a score is stored: each `[detectors, images]`."""
    row = {name: i for i, name in enumerate(detectors)}
    d = scores["detector"].astype("str").map(row).to_numpy(np.int64)
    shape = (len(detectors), num_images)
    flat = d * num_images + images
    present = np.zeros(shape, bool)
    present.flat[flat] = True
    if int(present.sum()) != len(flat):
        raise DataError("a detector has two scores for one image", where="scores.parquet")
    score, threshold = np.full(shape, np.nan), np.full(shape, np.nan)
    score.flat[flat] = scores["score"].to_numpy(np.float64)
    threshold.flat[flat] = scores["threshold"].to_numpy(np.float64)
    return score, threshold, present


def _audit_rows(
    audit: pd.DataFrame, name: str, ids: NDArray[np.int64], images: NDArray[np.int64], num_images: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """The audit's scores, thresholds and presence on the images of one test set."""
    own = audit["test_set"].to_numpy(object) == name
    if len(np.unique(ids[own])) != int(own.sum()):
        raise DataError(f"the audit of test set {name!r} holds an image twice", where="audit.parquet")
    score = np.full(num_images, np.nan)
    score[ids[own]] = audit["score"].to_numpy(np.float64)[own]
    there = np.zeros(num_images, bool)
    there[ids[own]] = True
    return score[images], np.full(len(images), AUDIT_THRESHOLD), there[images]

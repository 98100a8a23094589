"""Manipulated faces can be told by their resampling alone, and photographs that went the same way cannot.

The detector: six mean absolute differences (first, second and fourth order, both directions), logistic regression,
each face judged by a model that did not see it. Nothing in it knows what a mouth is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from harness.data.demo.corpus import Photograph, take_photograph
from harness.data.manipulate.face import manipulate_face, resample

COUNT = 100
TOP = slice(0, 24)
"""Rows above every flipped region of the demo's faces."""


@cache
def photographs() -> tuple[Photograph, ...]:
    return tuple(take_photograph(5, i, 128) for i in range(COUNT))


@cache
def untouched() -> list[np.ndarray]:
    return [face.image for face in photographs()]


@cache
def manipulated(number: int) -> list[np.ndarray]:
    made = [
        manipulate_face(face.image, number, face.landmarks, np.random.default_rng([1, i, number]), no_landmarks="drop")
        for i, face in enumerate(photographs())
    ]
    return [result.pixels for result in made if result is not None]


@cache
def resampled(numbers: tuple[int, ...]) -> list[np.ndarray]:
    return [
        resample(face.image, np.random.default_rng([2, i]), numbers=numbers) for i, face in enumerate(photographs())
    ]


def mixture() -> list[np.ndarray]:
    """Every face once, one of the five manipulations each."""
    chosen = np.random.default_rng(3).integers(0, 5, COUNT)
    return [manipulated(int(number))[i] for i, number in enumerate(chosen)]


def sharpness(pixels: np.ndarray) -> list[float]:
    grey = pixels.astype(np.float64).mean(axis=-1)
    return [float(np.log(np.abs(np.diff(grey, n, axis=axis)).mean())) for n in (1, 2, 4) for axis in (0, 1)]


def auc(photographic: Sequence[np.ndarray], changed: Sequence[np.ndarray], rows: slice = slice(None)) -> float:
    assert len(photographic) == len(changed) == COUNT
    features = np.array([sharpness(pixels[rows]) for pixels in (*photographic, *changed)])
    labels, faces = np.repeat([0, 1], COUNT), np.tile(np.arange(COUNT), 2)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=10, max_iter=2000))
    scores = cross_val_predict(
        model, features, labels, groups=faces, cv=GroupKFold(5), method="predict_proba"
    )  # fmt: skip
    return float(roc_auc_score(labels, scores[:, 1]))


@pytest.mark.parametrize("number", [0, 3])
def test_resampling_alone_gives_a_manipulation_away(number: int) -> None:
    assert auc(untouched(), manipulated(number)) > 0.97
    assert auc(untouched(), manipulated(number), TOP) > 0.9


def test_beside_a_flip_nothing_is_left_when_photographs_are_resampled() -> None:
    for number in (0, 2, 4):
        same = zip(resampled((number,)), manipulated(number), strict=True)
        assert all(np.array_equal(photograph[TOP], made[TOP]) for photograph, made in same)


def test_of_the_whole_faces_warp_sharpness_tells_little_when_photographs_are_resampled() -> None:
    assert auc(resampled((3,)), manipulated(3)) < 0.7


def test_of_all_manipulations_together_sharpness_tells_little_when_photographs_are_resampled() -> None:
    assert auc(untouched(), mixture()) > 0.97
    assert auc(resampled((0, 1, 2, 3, 4)), mixture()) < 0.66

"""The demo's simulated photographs: repeatable, faces where the landmarks say, and traces of the camera's settings."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_predict

from harness.data.demo.camera import Settings, draw_settings, forget_tags, photograph
from harness.data.demo.corpus import take_photograph
from harness.data.demo.face import draw_identity, lookup, relief, stream
from harness.data.demo.render import Scene, draw_setting, render, rotation


@pytest.fixture(scope="module")
def scene() -> Scene:
    rng = stream(5, "scene")
    return render(draw_identity(rng), draw_setting(rng, 8.0), 128)


@pytest.fixture
def settings() -> Settings:
    return Settings(
        iso=100,
        aperture=5.6,
        exposure_time=1 / 1000,
        focal_length=50.0,
        bias=0.0,
        make="Canon",
        metering_mode="Spot",
        exposure_mode="Auto",
        exposure_program="Manual Control",
        white_balance="Auto",
    )


def _fine(image: np.ndarray) -> float:
    """Strength of what is finer than about two pixels."""
    grey = image.astype(np.float32).mean(2)
    return float(np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 1.0)).mean())


def test_a_photograph_is_the_same_to_the_bit_and_depends_on_no_other() -> None:
    first = take_photograph(3, 7, 96)
    take_photograph(3, 8, 96)
    again = take_photograph(3, 7, 96)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.exif == again.exif
    assert not np.array_equal(first.image, take_photograph(3, 7, 96, series="other").image)
    assert not np.array_equal(first.image, take_photograph(4, 7, 96).image)


def test_streams_of_different_names_differ_and_have_not_moved() -> None:
    assert stream(1, "a", 2).random() != stream(1, "a", 3).random()
    # sha256 of "1:a:2": a change here changes every corpus, so VERSION must be raised with it.
    assert stream(1, "a", 2).integers(2**32) == 1093214798


@pytest.mark.parametrize("index", range(6))
def test_the_scene_is_finite_linear_light_with_a_face_at_its_landmarks(index: int) -> None:
    rng = stream(6, index)
    scene = render(draw_identity(rng), draw_setting(rng, 8.0), 64)
    assert scene.face.shape == (96, 96, 3)
    assert scene.face.dtype == np.float32
    for part in (scene.face, scene.alpha, scene.background):
        assert np.isfinite(part).all()
        assert part.min() >= 0
    assert scene.landmarks.shape == (68, 2)
    inner = scene.landmarks[17:]
    assert inner.min() > 0
    assert inner.max() < 1
    x, y = (np.clip(scene.landmarks[27:] * 96, 0, 95)).astype(int).T
    assert scene.alpha[y, x].mean() == 1


def test_eyes_are_above_the_mouth_and_left_of_each_other_in_the_order_of_the_68_points() -> None:
    points = take_photograph(1, 0, 128).landmarks
    right_eye, left_eye, mouth, chin = points[36:42].mean(0), points[42:48].mean(0), points[48:60].mean(0), points[8]
    assert right_eye[0] < left_eye[0]
    assert max(right_eye[1], left_eye[1]) < mouth[1] < chin[1]


def test_pupils_are_darker_than_the_whites_beside_them() -> None:
    rng = stream(11, "pupil")
    face = replace(draw_identity(rng), glasses=0.0, eye_open=0.5)
    setting = replace(draw_setting(rng, 8.0), yaw=0.0, pitch=0.0, roll=0.0, light_azimuth=10.0, light_elevation=20.0)
    scene = render(face, setting, 256)
    side = scene.face.shape[0]
    for eye in (scene.landmarks[36:42], scene.landmarks[42:48]):
        low, high = (eye.min(0) * side).astype(int), (eye.max(0) * side).astype(int) + 1
        patch = scene.face[low[1] : high[1], low[0] : high[0]].mean(2)
        assert patch.min() < 0.25 * patch.max()


def test_rotations_keep_lengths_and_turn_the_way_they_say() -> None:
    turn = rotation(20, 10, 5)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-6)
    assert (rotation(30, 0, 0) @ np.array([0, 0, 1]))[0] > 0.4
    assert (rotation(0, 0, 30) @ np.array([1, 0, 0]))[1] > 0.4


def test_lookup_is_linear_between_pixels_for_any_number_of_points() -> None:
    texture = np.arange(12, dtype=np.float32).reshape(3, 4)
    x, y = np.full(40_000, 1.5, np.float32), np.full(40_000, 0.5, np.float32)
    np.testing.assert_allclose(lookup(texture, x, y), 3.5, atol=0.1)
    assert lookup(texture, x[:0], y[:0]).shape == (0,)


def test_the_nose_is_the_nearest_point_of_the_relief() -> None:
    face = draw_identity(stream(2, "nose"))
    radius = relief(face)
    middle, eye_line = radius.shape[1] // 2, radius.shape[0] // 2
    column = radius[:, middle]
    tip = eye_line + int(np.argmax(column[eye_line : eye_line + 22]))
    assert column[tip] > radius[tip, middle + 12] + 0.03


def test_higher_iso_gives_more_noise_and_a_wide_aperture_a_softer_background(scene: Scene, settings: Settings) -> None:
    def shot(**changes: float) -> np.ndarray:
        return photograph(scene, replace(settings, **changes), 128, stream(1, "shot"))

    noise = [_fine(shot(iso=iso)) for iso in (100, 800, 6400)]
    assert noise[0] < noise[1] < noise[2]
    striped = scene._replace(
        background=np.repeat((0.5 + 0.5 * np.sin(np.arange(192) * 0.9))[None, :, None], 192, 0)
        .repeat(3, 2)
        .astype(np.float32)
    )
    outside = cv2.resize(scene.alpha, (128, 128)) == 0

    def contrast(aperture: float) -> float:
        image = photograph(striped, replace(settings, aperture=aperture, focal_length=85.0), 128, stream(1, "x"))
        return float(image[outside].astype(float).std())

    assert contrast(1.8) < 0.8 * contrast(11.0)


def test_a_longer_exposure_by_hand_blurs(scene: Scene, settings: Settings) -> None:
    sharp = photograph(scene, replace(settings, exposure_time=1 / 2000), 128, stream(1, "hand"))
    shaken = photograph(scene, replace(settings, exposure_time=1 / 15, focal_length=135.0), 128, stream(1, "hand"))
    assert _fine(shaken) < _fine(sharp)


def test_a_short_lens_stands_near_and_makes_noses_large() -> None:
    rng = stream(8, "perspective")
    face = draw_identity(rng)
    setting = replace(draw_setting(rng, 4.0), yaw=0.0, pitch=0.0, roll=0.0)

    def nose_share(distance: float) -> float:
        points = render(face, replace(setting, distance=distance), 64).landmarks
        return float((points[35, 0] - points[31, 0]) / (points[16, 0] - points[0, 0]))

    assert nose_share(3.2) > 1.1 * nose_share(20.0)


def test_maker_and_modes_leave_no_trace(scene: Scene, settings: Settings) -> None:
    other = replace(
        settings,
        make="SONY",
        metering_mode="Multi-segment",
        exposure_mode="Manual",
        exposure_program="Normal Program",
        white_balance="Manual",
    )
    np.testing.assert_array_equal(photograph(scene, settings, 128, stream(1)), photograph(scene, other, 128, stream(1)))


def test_settings_hang_together_as_a_camera_that_meters_would_choose_them() -> None:
    drawn = [draw_settings(stream(9, index)) for index in range(400)]
    assert len({s.iso for s in drawn}) > 6
    assert all(1 / 2000 <= s.exposure_time <= 1 / 15 for s in drawn)
    # Exposure value at ISO 100 is the light of the day: from dim rooms to full sun, give or take the meter's error.
    value = np.array([np.log2(s.aperture**2 / s.exposure_time) - np.log2(s.iso / 100) for s in drawn])
    assert 2.5 < value.min() < value.max() < 16.5
    assert value.std() > 1.5


def test_the_nine_tags_are_the_text_of_the_released_files(settings: Settings) -> None:
    assert settings.exif() == {
        "ISO Speed Ratings": "100",
        "Aperture Value": "F5.6",
        "Exposure Time": "1/1000 sec",
        "Focal Length": "50.0 mm",
        "Make": "Canon",
        "Metering Mode": "Spot",
        "Exposure Mode": "Auto",
        "White Balance Mode": "Auto",
        "Exposure Program": "Manual Control",
    }
    assert replace(settings, aperture=8.0).exif()["Aperture Value"] == "F8"


def test_one_photograph_in_twenty_lacks_one_or_two_tags(settings: Settings) -> None:
    whole = settings.exif()
    kept = [forget_tags(whole, stream(4, index)) for index in range(4000)]
    lost = [len(whole) - len(tags) for tags in kept]
    assert max(lost) == 2
    assert 0.04 < np.mean([count > 0 for count in lost]) < 0.06
    assert all(tags.items() <= whole.items() for tags in kept)
    assert set().union(*(whole.keys() - tags.keys() for tags in kept)) == whole.keys()


def test_corners_darken_with_short_lenses_and_wide_apertures(scene: Scene, settings: Settings) -> None:
    def corner(**changes: float) -> float:
        grey = scene._replace(face=np.full_like(scene.face, 0.3), background=np.full_like(scene.background, 0.3))
        image = photograph(grey, replace(settings, **changes), 128, stream(1, "x")).astype(float)
        return image[:8, :8].mean() / image[60:68, 60:68].mean()

    assert corner(focal_length=18.0) < corner(focal_length=50.0) - 0.02
    assert corner(aperture=1.8) < corner(aperture=5.6) - 0.02
    assert corner(focal_length=135.0, aperture=8.0) > 0.98


def _statistics(image: np.ndarray) -> list[float]:
    """What anyone would measure first: brightness, detail by octave and place, direction of detail, dark corners."""
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    m = grey.shape[0] // 8
    corners, middle = np.zeros(grey.shape, bool), np.zeros(grey.shape, bool)
    corners[: 2 * m, : 2 * m] = corners[: 2 * m, -2 * m :] = middle[3 * m : -3 * m, 3 * m : -3 * m] = True
    found = [grey.mean(), grey.std()]
    for plane in (grey, image[..., 0] - grey):
        blurred = [plane, *(cv2.GaussianBlur(plane, (0, 0), sigma) for sigma in (0.7, 1.4, 2.8))]
        for finer, coarser in pairwise(blurred):
            detail = np.abs(finer - coarser)
            parts = (detail.mean(), np.median(detail), detail[corners].mean(), detail[middle].mean())
            found += [np.log(part + 0.1) for part in parts]
    soft = cv2.GaussianBlur(grey, (0, 0), 1.0)
    upright = np.abs(np.diff(soft, axis=1)).mean() / np.abs(np.diff(soft, axis=0)).mean()
    slanted = np.abs(soft[1:, 1:] - soft[:-1, :-1]).mean() / np.abs(soft[1:, :-1] - soft[:-1, 1:]).mean()
    top = grey[:m, :m].mean() + grey[:m, -m:].mean() + 1
    below = grey[2 * m : 3 * m, :m].mean() + grey[2 * m : 3 * m, -m:].mean() + 1
    inside = grey[:m, 2 * m : 3 * m].mean() + grey[:m, -3 * m : -2 * m].mean() + 1
    return [*found, abs(np.log(upright)), abs(np.log(slanted)), np.log(top / below), np.log(top / inside)]


@pytest.fixture(scope="module")
def measured() -> tuple[np.ndarray, list[Settings]]:
    cv2.setNumThreads(1)
    taken = [take_photograph(77, index, 64) for index in range(600)]
    features = np.array([_statistics(photo.image) for photo in taken])
    return (features - features.mean(0)) / features.std(0), [photo.settings for photo in taken]


def _without(ranks: np.ndarray, known: np.ndarray) -> np.ndarray:
    return ranks - np.polyval(np.polyfit(known, ranks, 2), known)


@pytest.mark.parametrize(
    ("tag", "least", "least_given_iso"),
    [("iso", 0.9, None), ("aperture", 0.4, 0.25), ("exposure_time", 0.3, 0.12), ("focal_length", 0.3, 0.3)],
)
def test_causal_tags_show_in_simple_statistics(
    measured: tuple[np.ndarray, list[Settings]], tag: str, least: float, least_given_iso: float | None
) -> None:
    """Rank correlation of a cross-validated ridge; chance is 0 with a standard deviation of 0.04.

    The camera meters, so aperture and time go with ISO, which noise shows: what is left given ISO must show, too.
    """
    features, settings = measured
    true = np.log([getattr(s, tag) for s in settings])
    guessed = cross_val_predict(RidgeCV(np.logspace(-2, 3, 10)), features, true, cv=4)
    assert spearmanr(guessed, true).statistic > least
    if least_given_iso is not None:
        iso, a, b = (rankdata(values) for values in (np.log([s.iso for s in settings]), guessed, true))
        assert spearmanr(_without(a, iso), _without(b, iso)).statistic > least_given_iso


@pytest.mark.parametrize("tag", ["make", "metering_mode", "exposure_mode", "white_balance", "exposure_program"])
def test_the_other_tags_cannot_be_told_from_the_picture(measured: tuple[np.ndarray, list[Settings]], tag: str) -> None:
    features, settings = measured
    true = np.array([getattr(s, tag) for s in settings])
    common = np.flatnonzero(np.isin(true, [value for value in set(true) if (true == value).sum() >= 40]))
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
    guessed = cross_val_predict(model, features[common], true[common], cv=4)
    chance = 1 / len(set(true[common]))
    # Of a guesser: recall in a class of n has the variance chance (1 - chance) / n.
    counts = np.unique(true[common], return_counts=True)[1]
    spread = np.sqrt(chance * (1 - chance) * (1 / counts).sum()) / len(counts)
    assert balanced_accuracy_score(true[common], guessed) < chance + 3 * spread

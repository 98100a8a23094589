"""Manipulated faces a second of processor time, by kind, and where the time goes.

Expectation: two resizes of a 128-px face cost about 0.5 ms and are the floor. A flip adds its mask; blurring the whole
image by 91 × 91 and 51 × 51, as the released code does, costs about 5 ms, so the blur of a box as a product of two
profiles, in a window around it, should make a flip several times as fast. The warp's lookup costs 0.5 ms, a PNG 2 ms.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest

from harness.data.demo.corpus import take_photograph
from harness.data.manipulate import regions
from harness.data.manipulate.face import MANIPULATIONS, at_work_size, brought_back, manipulate_face, resample
from harness.data.manipulate.flips import MOUTH_ROTATED, flip_region
from harness.data.manipulate.offline import png
from harness.data.manipulate.warp import distort_face

FACES, PAIRS = 20, 9
pytestmark = pytest.mark.benchmark(timer=time.process_time)  # others may use the machine


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


@pytest.fixture(scope="module")
def faces() -> list:
    return [take_photograph(1, i, 128) for i in range(FACES)]


@pytest.mark.parametrize("number", range(len(MANIPULATIONS)))
def test_manipulations_a_second(benchmark, faces: list, number: int) -> None:
    def work() -> None:
        for face in faces:
            manipulate_face(face.image, number, face.landmarks, np.random.default_rng(0))

    benchmark(work)
    benchmark.extra_info["a second"] = round(FACES / benchmark.stats.stats.median)
    print(f"\n{MANIPULATIONS[number].name}: {FACES / benchmark.stats.stats.median:.0f}/s of processor time")


def test_resampled_photographs_a_second(benchmark, faces: list) -> None:
    benchmark(lambda: [resample(face.image, np.random.default_rng(0)) for face in faces])
    print(f"\nresample: {FACES / benchmark.stats.stats.median:.0f}/s of processor time")


def _seconds(work: Callable[[], object], times: int = FACES) -> float:
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def _flipped_plainly(face: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """A mouth turned with every step over the whole image: dilated, blurred and blended at 224 × 224."""
    height, width = face.shape[:2]
    box = regions.bounding_box(regions.region_mask("mouth", landmarks, height, width))
    assert box is not None
    rectangle = np.zeros((height, width), np.uint8)
    rectangle[box.slices] = 1
    mask = regions.soften(rectangle, 91, 7)[..., None]
    patch, turned = box.grown(5, height, width).slices, face.copy()
    turned[patch] = face[patch][::-1, ::-1]
    return (mask * turned + (1 - mask) * face).astype(np.uint8)


def test_parts_and_the_plain_form(benchmark, faces: list) -> None:
    """Medians of interleaved repetitions; the share of a flip's time that the plain form needs is of pairs."""
    taken = faces[0]
    large, marks = at_work_size(taken.image, 224), taken.landmarks * (224 / 128)
    box = regions.region_box("mouth", marks, 224, 224)
    assert box is not None
    parts: dict[str, Callable[[], object]] = {
        "enlarge 128 to 224": lambda: at_work_size(taken.image, 224),
        "mouth: region": lambda: regions.region_box("mouth", marks, 224, 224),
        "mouth: mask and blend": lambda: flip_region(large, MOUTH_ROTATED, box, 1.0),
        "mouth, plain form": lambda: _flipped_plainly(large, marks),
        "whole face: warp": lambda: distort_face(large, np.random.default_rng(0)),
        "bring back to 128": lambda: brought_back(large, (128, 128)),
        "encode PNG": lambda: png(taken.image),
    }
    taken_s: dict[str, list[float]] = {name: [] for name in parts}

    def once() -> None:
        for name, work in parts.items():
            taken_s[name].append(_seconds(work))

    benchmark.pedantic(once, rounds=PAIRS, warmup_rounds=1)
    for name, times in taken_s.items():
        print(f"{name}: {1e3 * statistics.median(times):.2f} ms")
    ours = [a + b for a, b in zip(taken_s["mouth: region"], taken_s["mouth: mask and blend"], strict=True)]
    ratio = statistics.median(p / o for p, o in zip(taken_s["mouth, plain form"], ours, strict=True))
    print(f"plain form / ours: {ratio:.1f}")
    benchmark.extra_info["plain over ours"] = round(ratio, 1)

"""The demo corpus on disk: a data root in the released layout, made from a seed.

`celeba-face/imgs/*.jpg` with `train.txt` and `test.txt` (paths relative to the root), one folder a generator, and
two sidecars of the photographs, `celeba-face/exif.json` and `celeba-face/landmarks.json`. Every picture, of either
class, goes through the same encoder with the same settings and holds no metadata.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from harness.api.errors import ConfigError, DataError
from harness.data.demo.camera import Settings, draw_settings, forget_tags, photograph
from harness.data.demo.camera import distance as camera_distance
from harness.data.demo.face import draw_identity, stream
from harness.data.demo.generators import GENERATORS, generate, weights_path
from harness.data.demo.render import draw_setting, render

VERSION = 2
"""Raised whenever the same parameters give other pictures."""

MARKER = "demo.json"
PHOTOGRAPHS = "celeba-face"
JPEG_QUALITY = 90
_TEST_SHARE = 1 / 3
_CHUNK = 24


class Photograph(NamedTuple):
    """A simulated photograph: `image` [size, size, 3] uint8 RGB, its `settings` and 68 `landmarks` in pixels.

    `exif` holds the true tags as text; about one photograph in twenty lacks one or two of the nine.
    """

    image: np.ndarray
    settings: Settings
    exif: dict[str, str]
    landmarks: np.ndarray


def take_photograph(seed: int, index: int, size: int, *, series: str = "photograph") -> Photograph:
    """Photograph number `index` of a seed; another `series` (the generators' training) shows other people."""
    rng = stream(seed, series, index)
    settings, face = draw_settings(rng), draw_identity(rng)
    scene = render(face, draw_setting(rng, camera_distance(settings, rng)), size)
    exif = forget_tags(settings.exif(), stream(seed, series, index, "tags"))
    return Photograph(photograph(scene, settings, size, rng), settings, exif, scene.landmarks * size)


def encode(image: np.ndarray) -> bytes:
    """The one encoder of the corpus: JPEG, quality 90, 4:2:0, no metadata."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0", optimize=False)
    return buffer.getvalue()


class _Task(NamedTuple):
    folder: str
    kind: str
    start: int
    stop: int
    seed: int
    size: int


class _Made(NamedTuple):
    files: dict[str, str]
    exif: dict[str, dict[str, dict[str, str]]]
    landmarks: dict[str, list[list[float]]]


def _name(task: _Task, index: int) -> str:
    """The file of picture `index` (relative, posix): numbers only, so that names tell nothing of the class."""
    return f"{PHOTOGRAPHS}/imgs/{index:06d}.jpg" if task.kind == PHOTOGRAPHS else f"{task.kind}/{index:06d}.jpg"


def _make(task: _Task) -> _Made:
    """Makes and writes the pictures of one task; digests by file."""
    cv2.setNumThreads(1)
    made = _Made({}, {}, {})
    for index in range(task.start, task.stop):
        if task.kind == PHOTOGRAPHS:
            taken = take_photograph(task.seed, index, task.size)
            image = taken.image
            made.exif[f"{index:06d}"] = {"EXIF": taken.exif}
            made.landmarks[f"{index:06d}"] = [[round(float(x), 2), round(float(y), 2)] for x, y in taken.landmarks]
        else:
            image = generate(task.kind, index, seed=task.seed, size=task.size)
        data = encode(image)
        (Path(task.folder) / _name(task, index)).write_bytes(data)
        made.files[_name(task, index)] = hashlib.sha256(data).hexdigest()
    return made


def _tasks(folder: Path, counts: dict[str, int], seed: int, size: int) -> list[_Task]:
    """Generators first: a whole generator is one task, so that few workers load torch."""
    tasks = [_Task(str(folder), name, 0, counts[name], seed, size) for name in GENERATORS if counts[name]]
    return tasks + [
        _Task(str(folder), PHOTOGRAPHS, start, min(start + _CHUNK, counts[PHOTOGRAPHS]), seed, size)
        for start in range(0, counts[PHOTOGRAPHS], _CHUNK)
    ]


def _run(tasks: list[_Task], workers: int) -> Iterator[_Made]:
    """The results of the tasks, as they come; `workers` processes, or this one when it is 1."""
    if workers == 1:
        threads = cv2.getNumThreads()
        try:
            yield from map(_make, tasks)
        finally:
            cv2.setNumThreads(threads)
        return
    # Not fork: the caller may hold torch's and OpenCV's threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending: set[Future[_Made]] = {pool.submit(_make, task) for task in tasks}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in pending:
                future.cancel()


def _parameters(counts: dict[str, int], size: int, seed: int) -> dict[str, object]:
    weights = {name: hashlib.sha256(weights_path(name).read_bytes()).hexdigest() for name in GENERATORS}
    return {"version": VERSION, "counts": counts, "size": size, "seed": seed, "weights": weights}


def _digest(files: dict[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {files[name]}\n" for name in sorted(files)).encode()).hexdigest()


def _complete(out: Path, parameters: dict[str, object]) -> bool:
    """Whether `out` holds the corpus of these parameters, every file there with the bytes it should have."""
    try:
        marker = json.loads((out / MARKER).read_text("utf-8"))
        if marker["parameters"] != parameters:
            return False
        found = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in marker["files"]}
        return _digest(found) == marker["digest"] and found == marker["files"]
    except (OSError, KeyError, TypeError, ValueError):
        return False


def build_demo(
    out: Path,
    *,
    photographs: int = 720,
    generated: int = 160,
    size: int = 128,
    seed: int = 2024,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Makes the demo corpus in the folder `out` and gives that folder; a complete one there is kept as it is.

    Same parameters, same bytes on one machine, whatever `workers`. The corpus is made beside `out` and moved
    there when whole, so `out` never holds half of one; a folder left by a killed build is thrown away.

    Args:
        out: the data root to make; must not exist, be empty, or be an earlier demo corpus.
        photographs: how many; the last third is listed in test.txt, the rest in train.txt.
        generated: how many of each generator.
        size: width and height in pixels, even, at least 64.
        seed: of all draws.
        workers: processes that make pictures.
        progress: called with (pictures made, pictures in all).

    Raises:
        ConfigError: sizes or counts that cannot be meant.
        DataError: `out` holds something else.
    """
    if size % 2 or not 64 <= size <= 1024:
        raise ConfigError(f"demo pictures cannot be {size} pixels wide", fix="give an even size from 64 to 1024")
    if photographs < 3 or generated < 1 or workers < 1:
        raise ConfigError("the demo corpus needs 3 photographs, 1 generated image and 1 worker at least")
    out = Path(out)
    counts = {PHOTOGRAPHS: photographs} | dict.fromkeys(GENERATORS, generated)
    parameters = _parameters(counts, size, seed)
    total = sum(counts.values())
    if _complete(out, parameters):
        if progress:
            progress(total, total)
        return out
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).is_file())):
        raise DataError("the folder for the demo corpus holds something else", out, "name a new or empty folder")

    building = out.with_name(f".{out.name}.building-{os.getpid()}")
    _remove_leftovers(out)
    try:
        for folder in (f"{PHOTOGRAPHS}/imgs", *GENERATORS):
            (building / folder).mkdir(parents=True)
        files, exif, landmarks = _Made({}, {}, {})
        for made in _run(_tasks(building, counts, seed, size), workers):
            files |= made.files
            exif |= made.exif
            landmarks |= made.landmarks
            if progress:
                progress(len(files), total)
        _write_lists(building, photographs, files)
        _write_text(building, f"{PHOTOGRAPHS}/exif.json", json.dumps(exif, indent=1, sort_keys=True), files)
        _write_text(building, f"{PHOTOGRAPHS}/landmarks.json", json.dumps(landmarks, sort_keys=True), files)
        marker = {"parameters": parameters, "digest": _digest(files), "files": dict(sorted(files.items()))}
        (building / MARKER).write_text(json.dumps(marker, indent=1), "utf-8")
        if out.exists():
            shutil.rmtree(out)
        building.rename(out)
    except OSError as problem:
        # Another process may have finished the same corpus first: then theirs is as good as ours.
        if not _complete(out, parameters):
            raise DataError(
                f"the demo corpus cannot be written: {problem}", out, "free space or name another folder"
            ) from problem
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return out


def _remove_leftovers(out: Path) -> None:
    """Throws away what killed builds of `out` left (a build that still runs keeps its folder)."""
    for folder in out.parent.glob(f".{out.name}.building-*"):
        owner = folder.name.rpartition("-")[2]
        if owner.isdecimal() and int(owner) != os.getpid() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _write_text(root: Path, name: str, text: str, files: dict[str, str]) -> None:
    (root / name).write_bytes(text.encode())
    files[name] = hashlib.sha256(text.encode()).hexdigest()


def _write_lists(root: Path, photographs: int, files: dict[str, str]) -> None:
    names = [f"{PHOTOGRAPHS}/imgs/{index:06d}.jpg" for index in range(photographs)]
    cut = photographs - max(1, round(photographs * _TEST_SHARE))
    for split, part in (("train", names[:cut]), ("test", names[cut:])):
        _write_text(root, f"{PHOTOGRAPHS}/{split}.txt", "".join(f"{name}\n" for name in part), files)

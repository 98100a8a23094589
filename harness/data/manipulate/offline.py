"""Manipulated faces of a folder as files: `<id>_<number>.png`, as the released generator names them.

Each file's bytes are a function of (seed, number, the face's bytes, its landmarks) alone, so neither workers nor order
nor an interruption show in them. A file is there whole or not at all; what is there is not made again.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from harness.api.errors import ConfigError, DataError
from harness.api.images import SUFFIXES, decode, read_image_file
from harness.api.training import stream
from harness.data.exif.jsonsafe import load_object, write_bytes, write_text
from harness.data.manipulate.face import WORK_SIZE, NoLandmarks, manipulate_face, manipulation
from harness.data.manipulate.landmarks import Dlib, NpyFolder, Source
from harness.data.problems import printable

VERSION = 1
"""Raised whenever the same faces give other files."""

MARKER = "manipulate.json"
CHUNK = 32
_MARKER_BYTES = 1 << 16
_END = b"\0\0\0\0IEND\xaeB`\x82"

OnBad = Literal["stop", "skip"]


@dataclass(frozen=True)
class Offline:
    """What is made of each face.

    Attributes:
        numbers: manipulations, of `face.MANIPULATIONS`.
        seed: of all draws.
        no_landmarks: what becomes of a flip without usable landmarks, as `face.manipulate_face` takes it.
        on_bad: a face that cannot be read, or whose landmarks cannot, stops the work, or is left out and listed.
    """

    numbers: tuple[int, ...] = (0, 1, 2, 3)
    seed: int = 2024
    no_landmarks: NoLandmarks = "whole_face"
    on_bad: OnBad = "stop"

    def __post_init__(self) -> None:
        if not self.numbers or len(set(self.numbers)) != len(self.numbers):
            raise ConfigError("manipulations are named once each, at least one", fix="for example --numbers 0,1,2,3")
        for number in self.numbers:
            manipulation(number)
        if self.no_landmarks not in ("whole_face", "drop"):
            raise ConfigError(f"no_landmarks cannot be {self.no_landmarks!r}", fix="whole_face or drop")
        if self.on_bad not in ("stop", "skip"):
            raise ConfigError(f"a bad image cannot be treated by {self.on_bad!r}", fix="stop or skip")

    @property
    def flips(self) -> bool:
        """Whether any of the numbers needs landmarks."""
        return any(manipulation(number).flip is not None for number in self.numbers)


class Counts(NamedTuple):
    """What became of a folder.

    Attributes:
        faces: images in the folder.
        made, skipped: files written, and files that were there.
        without_landmarks: faces worked on that have none (a face whose files were all there is not looked at).
        fell_back: files in which the whole face's warp stands in for a flip.
        dropped: files not made for want of landmarks.
        bad: what was wrong with faces that were left out, a line each.
    """

    faces: int = 0
    made: int = 0
    skipped: int = 0
    without_landmarks: int = 0
    fell_back: int = 0
    dropped: int = 0
    bad: tuple[str, ...] = ()

    def plus(self, other: Counts) -> Counts:
        """The sum, bad faces in order of names."""
        return Counts(
            self.faces + other.faces, self.made + other.made, self.skipped + other.skipped,
            self.without_landmarks + other.without_landmarks, self.fell_back + other.fell_back,
            self.dropped + other.dropped, tuple(sorted((*self.bad, *other.bad))),
        )  # fmt: skip


class _Task(NamedTuple):
    folder: Path
    out: Path
    files: tuple[str, ...]
    source: Source | None
    settings: Offline


def face_files(folder: Path) -> list[str]:
    """Names of the images that lie in a folder itself, sorted; a face's id is its name without the ending.

    Raises:
        DataError: no folder, no images in it, or two images of one id.
    """
    if not folder.is_dir():
        raise DataError("the folder of faces is not there", folder, "check the path")
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if Path(e.name).suffix.lower() in SUFFIXES and e.is_file())
    if not names:
        raise DataError("no images lie in the folder itself", folder, "name the folder that holds the faces")
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(Path(name).stem, name)
        if other != name:
            raise DataError(f"{other} and {name} would be one face", folder, "rename one of them")
    return names


def png(pixels: np.ndarray) -> bytes:
    """Pixels `[H, W, 3]` uint8 as PNG (level 4 of zlib: a quarter of the time of 6, 1 % more bytes)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def is_whole(path: Path) -> bool:
    """Whether a path is a PNG file with its end."""
    try:
        if not path.is_file() or path.stat().st_size < len(_END):
            return False
        with path.open("rb") as file:
            file.seek(-len(_END), os.SEEK_END)
            return file.read() == _END
    except OSError:
        return False


def make_files(
    folder: Path,
    out: Path,
    source: Source | None,
    settings: Offline,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Counts:
    """Makes `<id>_<number>.png` in `out` for each image that lies in `folder`; gives what became of them.

    Faces are taken whole, as they are: neither cropped nor squared. A face's draws come from the seed, the number and
    the sha256 of its bytes.

    Args:
        out: empty, not there, or holding files made with these settings (numbers may be added).
        source: of landmarks; None where only the whole face is warped.
        workers: processes; 1 works in this one.
        progress: called with (faces done, faces in all).

    Raises:
        ConfigError: flips without a source of landmarks; another seed or landmarks than in `out`.
        DataError: no faces, no face with landmarks, `out` holds something else or cannot be written, or a bad face
            (`settings.on_bad`).
    """
    names = face_files(folder)
    _require_landmarks(source, settings, names)
    _claim(out, source, settings)
    tasks = _tasks(folder, out, names, source, settings)
    total = Counts()
    for counts in _run(tasks, workers):
        total = total.plus(counts)
        if progress:
            progress(total.faces, len(names))
    return total


def _require_landmarks(source: Source | None, settings: Offline, names: Sequence[str]) -> None:
    if not settings.flips:
        return
    if source is None:
        raise ConfigError("flips need landmarks", fix="give --landmarks, or --numbers 3 for the whole face alone")
    if not isinstance(source, Dlib) and not source.known(Path(name).stem for name in names):
        where = source.folder if isinstance(source, NpyFolder) else source.path
        raise DataError(
            f"no face has landmarks there (the first is {Path(names[0]).stem!r})", where,
            "landmarks go by the image's name without its ending",
        )  # fmt: skip


def _claim(out: Path, source: Source | None, settings: Offline) -> None:
    """Notes in `out` what its files are made with; refuses a folder of other files or settings."""
    marker = out / MARKER
    wanted: dict[str, object] = {
        "version": VERSION, "seed": settings.seed, "no_landmarks": settings.no_landmarks, "work_size": WORK_SIZE,
        "landmarks": source.identity() if source is not None and settings.flips else None,
    }  # fmt: skip
    if not marker.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError("the folder to write to holds something else", out, "name a new or empty folder")
        write_text(marker, json.dumps(wanted, indent=1))
        return
    known = load_object(marker, _MARKER_BYTES)
    if wanted["landmarks"] is None:
        wanted["landmarks"] = known.get("landmarks")
    for key, value in wanted.items():
        if known.get(key) != value and not (key == "landmarks" and known.get(key) is None):
            raise ConfigError(
                f"files there were made with another {key}: {str(known.get(key))[:80]}, now {value}", out,
                "give the same, or name another folder",
            )  # fmt: skip
    if known != wanted:
        write_text(marker, json.dumps(wanted, indent=1))


def _tasks(folder: Path, out: Path, names: Sequence[str], source: Source | None, settings: Offline) -> Iterator[_Task]:
    for start in range(0, len(names), CHUNK):
        files = tuple(names[start : start + CHUNK])
        part = source.part(Path(name).stem for name in files) if source is not None else None
        yield _Task(folder, out, files, part, settings)


def _run(tasks: Iterator[_Task], workers: int) -> Iterator[Counts]:
    """The results of the tasks as they come; few tasks wait at a time, so that memory is bounded."""
    if workers == 1:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            yield from map(_make, tasks)
        finally:
            cv2.setNumThreads(threads)
        return
    # Not fork: the caller may hold torch's and OpenCV's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        pending: set[Future[Counts]] = {pool.submit(_make, task) for task in islice(tasks, 3 * workers)}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    pending |= {pool.submit(_make, task) for task in islice(tasks, 1)}
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed (memory?)", fix="give fewer --workers and run again: what is made is kept"
            ) from error
        finally:
            for future in pending:
                future.cancel()


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the work; workers finish their faces
    cv2.setNumThreads(1)


def _make(task: _Task) -> Counts:
    total = Counts()
    for file in task.files:
        try:
            counts = _make_face(task, file)
        except DataError as error:
            if task.settings.on_bad == "stop":
                raise
            counts = Counts(faces=1, bad=(f"{printable(file)}: {error.what}",))
        total = total.plus(counts)
    return total


def _make_face(task: _Task, file: str) -> Counts:
    """Makes what is missing of one face."""
    face, settings = Path(file).stem, task.settings
    paths = {number: task.out / f"{face}_{number}.png" for number in settings.numbers}
    missing = {number: path for number, path in paths.items() if not is_whole(path)}
    if not missing:
        return Counts(faces=1, skipped=len(paths))
    data = read_image_file(task.folder / file)
    pixels, digest = decode(data, name=str(task.folder / file)), hashlib.sha256(data).hexdigest()
    points = task.source.points(face, pixels) if task.source is not None and settings.flips else None
    made = fell_back = 0
    for number, path in missing.items():
        rng = stream(settings.seed, "manipulate", number, digest)
        result = manipulate_face(pixels, number, points, rng, no_landmarks=settings.no_landmarks)
        if result is not None:
            write_bytes(path, png(result.pixels))
            made, fell_back = made + 1, fell_back + result.fell_back
    return Counts(
        faces=1, made=made, skipped=len(paths) - len(missing), fell_back=fell_back, dropped=len(missing) - made,
        without_landmarks=int(settings.flips and points is None),
    )  # fmt: skip

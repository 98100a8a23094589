"""Digest and header facts of many image files, read by several threads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.api.errors import DataError
from harness.api.images import ImageFacts, decode, inspect_image, read_image_file

Decode = Literal["none", "header", "full"]
Progress = Callable[[int, int], None]
"""Called with (files done, files in all)."""

_CHUNK = 64
_UNKNOWN = ImageFacts(width=0, height=0, format="", jpeg_quality=-1, mode="", frames=0)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What one file is.

    Attributes:
        sha256: of its bytes, 64 hex digits; "" when it could not be read.
        num_bytes: its size.
        image: its header's facts; zeros and "" when not looked at.
        fault: "" or what is wrong with it: "empty", "unreadable", "undecodable".
        message: the error's text where there is a fault.
    """

    sha256: str
    num_bytes: int
    image: ImageFacts
    fault: str = ""
    message: str = ""


def file_facts(path: Path, name: str, look: Decode = "header") -> FileFacts:
    """Facts of one file; a fault is part of the answer, never an exception.

    Args:
        path: the file.
        name: what messages call it.
        look: "none" digests only; "header" parses the header; "full" decodes every pixel as well.
    """
    try:
        data = read_image_file(path, name=name)
    except DataError as error:
        return FileFacts("", 0, _UNKNOWN, "unreadable", error.what)
    digest = hashlib.sha256(data).hexdigest()
    if not data:
        return FileFacts(digest, 0, _UNKNOWN, "empty", "the file is empty (0 bytes)")
    if look == "none":
        return FileFacts(digest, len(data), _UNKNOWN)
    try:
        image = inspect_image(data, name=name)
        if look == "full":
            decode(data, name=name)
    except DataError as error:
        return FileFacts(digest, len(data), _UNKNOWN, "undecodable", error.what)
    return FileFacts(digest, len(data), image)


def read_facts(
    root: Path,
    paths: Sequence[str],
    *,
    look: Decode = "header",
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[FileFacts]:
    """Facts of every path (relative to `root`, or absolute), in order; reading and hashing run in threads.

    Args:
        workers: threads; None takes one a core, at most 16; 0 or 1 reads in this thread.
    """
    threads = min(16, os.cpu_count() or 1) if workers is None else workers

    def chunk_facts(start: int) -> list[FileFacts]:
        return [file_facts(root / p, p, look) for p in paths[start : start + _CHUNK]]

    facts: list[FileFacts] = []
    starts = range(0, len(paths), _CHUNK)
    if threads <= 1:
        for start in starts:
            facts.extend(chunk_facts(start))
            if progress is not None:
                progress(len(facts), len(paths))
        return facts
    with ThreadPoolExecutor(threads, thread_name_prefix="read-images") as pool:
        for part in pool.map(chunk_facts, starts):
            facts.extend(part)
            if progress is not None:
                progress(len(facts), len(paths))
    return facts

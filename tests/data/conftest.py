"""A small data root in the released layout, made of generated images."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeImage = Callable[..., Path]


def image_bytes(seed: int, size: tuple[int, int] = (24, 20), kind: str = "JPEG", quality: int = 90) -> bytes:
    """An encoded image whose pixels depend on `seed`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": quality} if kind == "JPEG" else {}))
    return buffer.getvalue()


def fill(folder: Path, num: int, start: int, *, kind: str = "JPEG", **options: object) -> list[Path]:
    """`num` images in `folder`, seeds counted from `start`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{start + i:05d}.{'jpg' if kind == 'JPEG' else kind.lower()}" for i in range(num)]
    for i, path in enumerate(paths):
        path.write_bytes(image_bytes(start + i, kind=kind, **options))  # type: ignore[arg-type]
    return paths


def write_lines(path: Path, lines: list[str], *, end: str = "\n") -> Path:
    """A list file."""
    path.write_bytes((end.join(lines) + end).encode("utf-8", "surrogateescape"))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """celeba-face with 30 training and 10 test photographs, ddim (8) and freeDoM (6)."""
    base = tmp_path / "data"
    photographs = fill(base / "celeba-face" / "imgs", 40, 0)
    lines = [p.relative_to(base).as_posix() for p in photographs]
    write_lines(base / "celeba-face" / "train.txt", lines[:30])
    write_lines(base / "celeba-face" / "test.txt", lines[30:])
    fill(base / "ddim", 8, 1000)
    fill(base / "freeDoM", 6, 2000)
    return base

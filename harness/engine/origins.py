"""What a trained weights file says of itself: the recipe's key, and whose generated images it was trained on."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import WeightsError
from harness.results.digests import hex_digests

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from harness.engine.rows import PreparedRow

ENTRY = "blades-bench"
"""The one entry of the file's metadata: safetensors writes several in no fixed order, and equal trainings must give
equal bytes."""
MEMBER = f"{ENTRY}.json"
MAX_HEADER = 100_000_000
"""Bytes; safetensors itself reads no longer header."""
MAX_MEMBER = 1_000_000
MOST_NAMES = 1000


@dataclass(frozen=True)
class Origin:
    """What made a weights file: the recipe's key, and by generator the digests (`images_digest`) of the sets of its
    images that were trained on. Nothing here depends on a recipe's name, a path or a clock."""

    key: str
    generators: Mapping[str, tuple[str, ...]]

    def metadata(self) -> dict[str, str]:
        """For the header of the file."""
        return {ENTRY: self._text()}

    def within(self, archive: bytes) -> bytes:
        """A file of `torch.save` (a zip archive) that states the origin too, in a member of its own."""
        buffer = io.BytesIO(archive)
        with zipfile.ZipFile(buffer, "a") as opened:
            top = opened.namelist()[0].split("/")[0]
            opened.writestr(zipfile.ZipInfo(f"{top}/{MEMBER}"), self._text())  # dated 1980, so that bytes repeat
        return buffer.getvalue()

    def _text(self) -> str:
        document = {"generators": {k: list(v) for k, v in self.generators.items()}, "recipe_key": self.key}
        return json.dumps(document, sort_keys=True, separators=(",", ":"))


def images_digest(digests: Iterable[str]) -> str:
    """sha256 of a set of images, whatever their order."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def together(parts: Iterable[Mapping[str, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    """Generators of several origins, sorted by name, each with every set once."""
    out: dict[str, tuple[str, ...]] = {}
    for part in parts:
        for name, sets in part.items():
            out[name] = tuple(sorted({*out.get(name, ()), *sets}))
    return dict(sorted(out.items()))


def read_origin(path: Path) -> Origin | None:
    """The origin that a weights file states; None for a file that states none (an official one, say). Reads the header
    (of a file of `torch.save`, the list of its members) and no tensor. Whether the file is sound is for its loader to
    say, also where there is no header.

    Raises:
        WeightsError: the file cannot be read, or states an origin that cannot be meant.
    """
    try:
        text = _in_header(path) if path.suffix == ".safetensors" else _in_archive(path)
    except OSError as error:
        raise WeightsError(f"cannot read weights: {error.strerror}", where=path) from error
    if text is None:
        return None
    try:
        return _origin(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        what = "the file's metadata do not say on what it was trained, as they should"
        raise WeightsError(what, where=path, fix="export it again: `harness train RECIPE --export FILE`") from None


def _in_header(path: Path) -> Any:
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = handle.read(length) if length <= MAX_HEADER else b""
    try:
        return json.loads(header)["__metadata__"][ENTRY]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _in_archive(path: Path) -> Any:
    with path.open("rb") as handle:
        try:
            with zipfile.ZipFile(handle) as archive:
                names = [name for name in archive.namelist() if name.rpartition("/")[2] == MEMBER]
                with archive.open(names[0]) as member:
                    return member.read(MAX_MEMBER)
        except (zipfile.BadZipFile, IndexError, ValueError, RuntimeError, zlib.error, EOFError):
            return None


def _origin(document: Any) -> Origin:
    names = document["generators"]
    if len(names) > MOST_NAMES or not all(0 < len(name) <= 200 and name.isprintable() for name in names):
        raise ValueError("names")
    sets = {str(name): tuple(_digest(d) for d in found) for name, found in names.items()}
    return Origin(_digest(document["recipe_key"]), dict(sorted(sets.items())))


def _digest(value: Any) -> str:
    if not isinstance(value, str) or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise ValueError("digest")
    return value


def origin_warnings(rows: Iterable[PreparedRow], manifest: pd.DataFrame, images: np.ndarray) -> list[str]:
    """A sentence a row and generator whose images for training here are not the very ones that the row's weights were
    trained on elsewhere: some of its test images may be among those. ``images`` are the digests ``[N] S32`` of the
    manifest's rows."""
    out = []
    for row in rows:
        for name, sets in together(origin.generators for origin in row.origins.values()).items():
            here = (manifest["generator"] == name).to_numpy()
            apart = here & (manifest["split"] != "report").to_numpy()
            if here.any() and set(sets) != {images_digest(hex_digests(images[apart]))}:
                out.append(
                    f"{row.name}: its weights were trained on images of {name} that are not the ones set apart for "
                    "training here (other images or other shares): some that are tested may be among them"
                )
    return out

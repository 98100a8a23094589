"""Weights of a fitted folder: kept in it where a run trained them, else found again by their digest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.api.errors import ConfigError, WeightsError
from harness.api.weights import ResolvedWeights, file_digest
from harness.results.files import write_atomic

MAX_BYTES = 100 * 2**20
"""Trained weights of more bytes are named by digest alone."""


def describe_weights(folder: Path, slot: str, weights: ResolvedWeights) -> dict[str, Any]:
    """A slot for ``fitted.json``; weights that a recipe trained are written into the folder, unless too large.

    Raises:
        StoreError: the folder cannot be written.
    """
    file = weights.path.name if weights.path is not None else None
    said: dict[str, Any] = {"kind": weights.kind, "identity": weights.identity, "file": file, "seed": weights.seed}
    if weights.kind == "recipe" and weights.path is not None:
        said["sha256"] = file_digest(weights.path)
        if weights.path.stat().st_size <= MAX_BYTES:
            said["file"] = f"{slot}.safetensors"
            write_atomic(folder / said["file"], weights.path.read_bytes())
    return said


def absolute(weights: Mapping[str, ResolvedWeights]) -> dict[str, ResolvedWeights]:
    """Weights with whole paths: another process has a folder of its own."""
    return {slot: w if w.path is None else replace(w, path=w.path.resolve()) for slot, w in weights.items()}


@dataclass(frozen=True)
class Places:
    """Where a fitted folder's weights may be: named files, the folder itself, a weights root."""

    folder: Path
    given: tuple[Path, ...] = ()
    root: Path | None = None

    def find(self, slot: str, said: Mapping[str, Any]) -> ResolvedWeights:
        """The weights of a slot that ``fitted.json`` describes.

        Raises:
            WeightsError: no file with that digest. ConfigError: a kind of weights that nobody writes.
        """
        if said["kind"] == "random":
            return ResolvedWeights("random", said["identity"], seed=int(said["seed"]))
        if said["kind"] not in ("file", "recipe"):
            raise ConfigError(f"weights of kind {said['kind']!r}", where=slot)
        wanted = said["identity"] if said["kind"] == "file" else said.get("sha256")
        for path in self._candidates(said):
            digest = file_digest(path)
            if wanted is None or digest == wanted:
                return ResolvedWeights("file", digest, path=path, label=f"{path.name} (sha256 {digest[:12]})")
        if self.given:
            raise _not_the_file(self.given)
        where = f"{self.folder}" if self.root is None else f"{self.folder}, {self.root}"
        hint = "; a run's store has it as blobs/SHA256.safetensors" if said["kind"] == "recipe" else ""
        raise WeightsError(
            f"slot {slot!r} needs its weights file {said['file']} (sha256 {str(wanted)[:12]})", where=where,
            fix=f"pass weights=PATH (--weights PATH), or put it under the weights root{hint}",
        )  # fmt: skip

    def require_used(self, found: Iterable[ResolvedWeights]) -> None:
        """Refuse a named file that no slot took.

        Raises:
            WeightsError: naming it.
        """
        spare = set(self.given) - {weights.path for weights in found}
        if spare:
            raise _not_the_file(sorted(spare))

    def _candidates(self, said: Mapping[str, Any]) -> Iterator[Path]:
        yield from self.given
        name = Path(str(said["file"])).name
        if (self.folder / name).is_file():
            yield self.folder / name
        if self.root is not None and self.root.is_dir():
            files = sorted(p for p in self.root.rglob(f"*{Path(name).suffix}") if p.is_file())
            yield from sorted(files, key=lambda p: p.name != name)


def _not_the_file(paths: Iterable[Path]) -> WeightsError:
    where = ", ".join(map(str, paths))
    return WeightsError("this is not the file the detector was fitted with (another sha256)", where=where)

"""One catalogue of every official weights file: what registered detectors load, and what may have to be converted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.api.contract import WeightsFile
from harness.api.errors import HarnessError, PluginError, WeightsError
from harness.api.registry import detector_class, registrations
from harness.api.weights import file_digest, read_tensors

CHECKPOINTS = frozenset({".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".th", ".tar"})
"""File name endings of files that :func:`harness.api.weights.read_tensors` should be able to read."""

State = Literal["missing", "good", "converted", "wrong size", "wrong digest", "not loadable"]


@dataclass(frozen=True)
class Entry:
    """One official file.

    Attributes:
        name: its path under the weights root.
        where: where a person gets it.
        licence: its own.
        sha256, size: where known.
        needed_by: "detector (slot)" of each detector that loads it.
        classes: class names that a pickle of it holds, for ``weights convert``; empty where none is pickled.
        note: what a person should know.
    """

    name: str
    where: str
    licence: str
    sha256: str | None = None
    size: int | None = None
    needed_by: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Found:
    """What lies under the weights root for an entry."""

    entry: Entry
    path: Path
    state: State
    message: str = ""

    @property
    def bad(self) -> bool:
        """Whether a file is there and is not what it should be."""
        return self.state in ("wrong size", "wrong digest", "not loadable")

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self.entry), "path": str(self.path), "state": self.state, "message": self.message}


_GRAM = tuple(f"resnet18_gram.{name}" for name in ("ResNet", "BasicBlock", "GramMatrix", "ScaleLayer"))
_GRAM_WHERE = "the Google Drive folder in README.md of the authors' repository (Liu et al., CVPR 2020: GramNet)"
_CLIP_WHERE = "the address in clip/clip.py of https://github.com/openai/CLIP"
_PICKLED = "a whole pickled module: convert it before use"
_SCRIPTED = "a TorchScript archive: convert it before use"

TO_CONVERT = (
    *(
        Entry(f"gramnet/{name}", _GRAM_WHERE, "not stated", classes=_GRAM, note=_PICKLED)
        for name in ("stylegan-ffhq.pth", "stylegan-celeba.pth", "pggan-celeba.pth", "graminit.pth")
    ),
    Entry("clip/RN50.pt", _CLIP_WHERE, "MIT", note=f"{_SCRIPTED}; BLADES' text tower starts from it"),
    Entry("clip/ViT-B-16.pt", _CLIP_WHERE, "MIT", note=_SCRIPTED),
    Entry("clip/ViT-L-14.pt", _CLIP_WHERE, "MIT", note=_SCRIPTED),
)
"""Official files that are no plain checkpoints, or that training starts from (spec sheets, sections 0 and 2)."""


def _merge(old: Entry, new: Entry) -> Entry:
    for key in ("sha256", "size"):
        ours, theirs = getattr(old, key), getattr(new, key)
        if ours is not None and theirs is not None and ours != theirs:
            users = ", ".join((*old.needed_by, *new.needed_by))
            raise PluginError(f"two detectors state different {key} of one file ({users})", where=new.name)
    return replace(
        old, sha256=old.sha256 or new.sha256, size=old.size or new.size, needed_by=old.needed_by + new.needed_by
    )


def _of(detector: str, slot: str, file: WeightsFile) -> Entry:
    return Entry(file.name, file.where, file.licence, file.sha256, file.size, (f"{detector} ({slot})",))


def catalogue() -> tuple[list[Entry], list[str]]:
    """Every official file, by name; and what is wrong with detectors that cannot be asked.

    Raises:
        PluginError: two detectors state different digests or sizes of one file.
    """
    found: dict[str, Entry] = {}
    faults: list[str] = []
    for name in registrations():
        try:
            files = detector_class(name).weights_files
        except HarnessError as error:
            faults.append(f"{name}: {error.what}")
            continue
        for slot, file in files.items():
            entry = _of(name, slot, file)
            found[entry.name] = _merge(found[entry.name], entry) if entry.name in found else entry
    for entry in TO_CONVERT:
        known = found.get(entry.name)
        found[entry.name] = entry if known is None else replace(known, classes=entry.classes, note=entry.note)
    return [found[name] for name in sorted(found)], faults


def classes_for(file: Path, entries: Iterable[Entry]) -> tuple[str, ...]:
    """Class names that a pickle may hold: those of the catalogue's file of this name, else none."""
    for entry in entries:
        if Path(entry.name).name == file.name and entry.classes:
            return entry.classes
    return ()


def converted(path: Path) -> Path:
    """Where a file's conversion to safetensors is looked for: beside it, with that ending."""
    return path.with_suffix(".safetensors")


def look(entry: Entry, root: Path) -> Found:
    """Whether an entry's file is there; nothing is read."""
    path = root / entry.name
    if path.is_file():
        return Found(entry, path, "good")
    if converted(path).is_file():
        return Found(entry, converted(path), "converted", f"name it to a detector with --weights {converted(path)}")
    return Found(entry, path, "missing", f"get it from {entry.where}")


def _fault(entry: Entry, path: Path) -> tuple[State, str] | None:
    """What is wrong with an official file, or None."""
    size = path.stat().st_size
    if entry.size is not None and size != entry.size:
        return "wrong size", f"{size:,} bytes, not {entry.size:,}: get it again"
    if entry.sha256 is not None and (digest := file_digest(path)) != entry.sha256:
        return "wrong digest", f"sha256 {digest[:12]}, not {entry.sha256[:12]}: get it again"
    return _unreadable(path)


def _unreadable(path: Path) -> tuple[State, str] | None:
    if path.suffix in CHECKPOINTS:
        try:
            read_tensors(path)
        except WeightsError as error:
            return "not loadable", f"{error.what}; {error.fix or 'get it again'}"
    return None


def check_entry(entry: Entry, root: Path) -> Found:
    """An entry's file, read: size and digest where they are known, and whether loaders accept it.

    Where its conversion lies beside it, that is read instead, and the official file's size and digest alone count.
    """
    found = look(entry, root)
    if found.state == "missing":
        return found
    beside = converted(root / entry.name)
    if found.state == "good":
        fault = _fault(entry, found.path)
        if fault is None:
            return found
        if fault[0] != "not loadable" or beside == found.path or not beside.is_file():
            return replace(found, state=fault[0], message=fault[1])
    fault = _unreadable(beside)
    if fault is not None:
        return Found(entry, beside, *fault)
    return Found(entry, beside, "converted", f"name it to a detector with --weights {beside}")

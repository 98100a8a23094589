"""Where a data root keeps its photographs, lists and generators: both released layouts, FFHQ's, and any folder.

Names of generators are canonical everywhere behind this module; `NAMES` is the one table of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.api.errors import ConfigError, DataError
from harness.data.lists import Scan, is_utf8, is_within, scan_images
from harness.data.problems import Problem, printable
from harness.data.splits import SplitRule


class Name(NamedTuple):
    """What a generator or dataset is called: `display` in tables, `aliases` as folder names met in the wild."""

    display: str
    aliases: tuple[str, ...] = ()


NAMES: dict[str, Name] = {
    "stylegan2": Name("StyleGAN2"),
    "vqgan": Name("VQGAN", ("VQ-GAN_celebahq",)),
    "ldm": Name("LDM"),
    "ddim": Name("DDIM"),
    "sdv21": Name("SDv2.1", ("stable_diffusion_v_2_1_text2img_p2g3",)),
    "freedom": Name("FreeDoM", ("freeDoM", "FreeDoM_T")),
    "hps": Name("HPS"),
    "midjourney": Name("Midjourney"),
    "sdxl": Name("SDXL"),
    "progan": Name("ProGAN"),
    "stargan": Name("StarGAN"),
    "pigan": Name("pi-GAN"),
    "stylegan2_ffhq": Name("StyleGAN2 (FFHQ)"),
    "vqgan_ffhq": Name("VQGAN (FFHQ)"),
    "ldm_ffhq": Name("LDM (FFHQ)"),
}
"""Canonical name -> display name and aliases. Case, "-", "_", "." and spaces never matter."""

DATASETS: dict[str, str] = {"celeba-face": "CelebA-HQ", "ffhq": "FFHQ"}
"""Photographic datasets: name -> display name. A folder of this name is never a generator."""

NOT_GENERATORS = frozenset({"ssltrainingdata", "pretrained", "fdf", "runs"})
"""Folders (by their plain name) that the released layouts put beside the data."""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_CANONICAL = {_plain(alias): name for name, entry in NAMES.items() for alias in (name, entry.display, *entry.aliases)}


def canonical_name(folder: str, aliases: Mapping[str, str] | None = None) -> str:
    """The canonical name of a generator's folder: by the suite's `aliases`, by `NAMES`, else the folder's own."""
    for alias, name in (aliases or {}).items():
        if _plain(alias) == _plain(folder):
            return name
    return _CANONICAL.get(_plain(folder), folder)


def display_name(name: str) -> str:
    """What tables call a generator or dataset; its own name where there is no other."""
    return NAMES[name].display if name in NAMES else DATASETS.get(name, name)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PhotographSet(_Model):
    """One photographic dataset and where it may lie; candidates are tried in order, relative to the data root.

    Attributes:
        dataset: its name.
        folders: where its images may be.
        train, test: where its lists may be; none there at all: split by hash (`use` "all").
        use: "all", or "test": every image (or every line of the test list) is `report`, nothing is trained on.
        generators: those tested against these photographs. Others go by a name's ending (`ldm_ffhq` -> ffhq), and
            to the first dataset where it has none.
    """

    dataset: str = Field(min_length=1)
    folders: tuple[str, ...] = Field(min_length=1)
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    use: Literal["all", "test"] = "all"
    generators: tuple[str, ...] = ()


CELEBA = PhotographSet(
    dataset="celeba-face",
    folders=("celeba-face/imgs", "celeba-face"),
    train=("celeba-face/train.txt", "train.txt"),
    test=("celeba-face/test.txt", "test.txt"),
)
FFHQ = PhotographSet(dataset="ffhq", folders=("ffhq/imgs", "ffhq"), test=("ffhq/test.txt",), use="test")
KNOWN_SETS = {s.dataset: s for s in (CELEBA, FFHQ)}


class DataSpec(_Model):
    """What a suite tests on.

    Attributes:
        photographs: the datasets; a string names a known one ("celeba-face", "ffhq"). The first is the default
            partner of generators and the usual fit set.
        generators: names, canonical or as folders are called; "all" takes every folder of images that is there.
        aliases: folder name -> generator name, for folders `NAMES` does not know.
        splits: how images are divided.
    """

    photographs: tuple[PhotographSet, ...] = (CELEBA,)
    generators: tuple[str, ...] | Literal["all"] = "all"
    aliases: dict[str, str] = Field(default_factory=dict)
    splits: SplitRule = SplitRule()

    @model_validator(mode="before")
    @classmethod
    def _known_sets_by_name(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("photographs"), list | tuple):
            return data
        sets = []
        for item in data["photographs"]:
            if isinstance(item, str) and item not in KNOWN_SETS:
                raise ValueError(f"no known dataset {item!r}; known: {', '.join(KNOWN_SETS)}")
            sets.append(KNOWN_SETS[item] if isinstance(item, str) else item)
        return {**data, "photographs": tuple(sets)}

    @model_validator(mode="after")
    def _consistent(self) -> DataSpec:
        names = [s.dataset for s in self.photographs]
        if not names or len(set(names)) < len(names):
            raise ValueError("photographs needs one or more datasets, each named once")
        return self

    def dataset_of(self, generator: str) -> str | None:
        """The dataset whose photographs a generator is tested against; None when this suite has not got it."""
        names = [s.dataset for s in self.photographs]
        for entry in self.photographs:
            if generator in {canonical_name(g, self.aliases) for g in entry.generators}:
                return entry.dataset
        ending = generator.rpartition("_")[2] if "_" in generator else ""
        if ending in names:
            return ending
        return None if ending in DATASETS else names[0]

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """Canonical names of the generators asked for; None for all."""
        if self.generators == "all":
            return None
        return tuple(dict.fromkeys(canonical_name(g, self.aliases) for g in self.generators))


@dataclass(frozen=True, slots=True)
class FoundSet:
    """A photographic dataset as found: its entry, image folder, images and lists (None: not there)."""

    entry: PhotographSet
    folder: Path
    scan: Scan
    train: Path | None
    test: Path | None


@dataclass(frozen=True, slots=True)
class FoundGenerator:
    """A generator as found: canonical name, folder, images, and the dataset it is tested against."""

    name: str
    folder: Path
    scan: Scan
    dataset: str


@dataclass(frozen=True, slots=True)
class Layout:
    """What was found under a data root.

    Attributes:
        root: resolved.
        photographs, generators: in the suite's order (generators of "all": by canonical name).
        problems: what is missing or wrong.
        notes: what a reader should know.
    """

    root: Path
    photographs: tuple[FoundSet, ...]
    generators: tuple[FoundGenerator, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def resolve_root(root: str | os.PathLike[str]) -> Path:
    """The data root as a real path; `DataError` when it is no folder that can be read."""
    path = Path(root)
    try:
        if path.is_dir():
            os.listdir(path)
            return path.resolve()
    except (OSError, ValueError) as error:
        raise DataError(f"the data root cannot be read ({error})", root, "check permissions") from error
    what = "the data root is not a folder" if os.path.lexists(path) else "the data root does not exist"
    raise DataError(what, root, "give the folder that holds celeba-face and a folder a generator (--data-root)")


def find_layout(root: str | os.PathLike[str], spec: DataSpec, *, allow_outside: bool = False) -> Layout:
    """Which folder and list is what, under either released layout or any other.

    Raises:
        DataError: the root itself is no readable folder; everything else is listed in `problems`.
    """
    base = resolve_root(root)
    problems: list[Problem] = []
    notes: list[str] = []
    photographs = []
    for entry in spec.photographs:
        found = _find_set(base, entry, allow_outside, problems)
        if found is not None:
            photographs.append(found)
    generators = _find_generators(base, spec, allow_outside, problems, notes)
    return Layout(base, tuple(photographs), tuple(generators), tuple(problems), tuple(notes))


def _inside(base: Path, relative: str) -> Path:
    path = base / relative
    if not is_within(os.path.normpath(path), str(base)):
        raise ConfigError("a folder or list of the data section leaves the data root", relative, "write it relative")
    return path


def _find_set(base: Path, entry: PhotographSet, allow_outside: bool, problems: list[Problem]) -> FoundSet | None:
    folder = next((p for c in entry.folders if (p := _inside(base, c)).is_dir()), None)
    if folder is None:
        what = f"the photographs of {entry.dataset!r} are missing"
        fix = f"put them into one of: {', '.join(entry.folders)}"
        problems.append(Problem("missing-folder", "error", what, str(base), fix))
        return None
    scan = scan_images(base, folder, allow_outside=allow_outside)
    problems.extend(scan.problems)
    if not scan.files and not scan.problems:
        where = folder.relative_to(base).as_posix()
        problems.append(
            Problem("empty-folder", "error", "the folder holds no images", where, "unpack the images there")
        )
    train, test = (_find_list(base, names, allow_outside, problems) for names in (entry.train, entry.test))
    return FoundSet(entry, folder, scan, train, test)


def _find_list(base: Path, names: tuple[str, ...], allow_outside: bool, problems: list[Problem]) -> Path | None:
    path = next((p for n in names if os.path.lexists(p := _inside(base, n))), None)
    if path is None or allow_outside or is_within(os.path.realpath(path), str(base)):
        return path
    fix = "copy the list into the data root, or allow it with --allow-outside"
    where = path.relative_to(base).as_posix()
    problems.append(Problem("leaves-root", "error", "the list is a link that leaves the data root", where, fix))
    return None


def _find_generators(
    base: Path, spec: DataSpec, allow_outside: bool, problems: list[Problem], notes: list[str]
) -> list[FoundGenerator]:
    folders = _generator_folders(base, spec, problems)
    wanted = spec.wanted
    left_out = [] if wanted is None else sorted(set(folders) - set(wanted))
    if left_out:
        notes.append(f"folders that are not asked for: {', '.join(printable(n) for n in left_out)}")
    found = []
    for name in sorted(folders) if wanted is None else wanted:
        if name not in folders:
            there = ", ".join(printable(n) for n in sorted(folders)) or "none"
            known = ", ".join((name, *NAMES[name].aliases)) if name in NAMES else name
            what = f"no folder for generator {name!r} (there are: {there})"
            fix = (
                f"add a folder of its images ({known}), map a folder to it under `aliases`, or take the folders that "
                "are here (--set data.generators=all)"
            )
            problems.append(Problem("missing-folder", "error", what, str(base), fix))
            continue
        dataset = spec.dataset_of(name)
        if dataset is None:
            notes.append(f"{name} is left out: its photographs are not in this suite")
            continue
        scan = scan_images(base, folders[name], allow_outside=allow_outside)
        problems.extend(scan.problems)
        if scan.files:
            found.append(FoundGenerator(name, folders[name], scan, dataset))
        elif not scan.problems and (wanted is not None or name in NAMES):
            where = folders[name].relative_to(base).as_posix()
            problems.append(
                Problem("empty-folder", "error", "the folder holds no images", where, "unpack the images there")
            )
    if not found:
        fix = "add a folder of images for each generator"
        problems.append(Problem("no-generators", "error", "no folder of generated images", str(base), fix))
    return found


def _generator_folders(base: Path, spec: DataSpec, problems: list[Problem]) -> dict[str, Path]:
    """Folders at the top of the data root that are no photographs, by canonical name."""
    taken = {_plain(n) for n in DATASETS} | NOT_GENERATORS
    taken |= {_plain(folder.split("/")[0]) for s in spec.photographs for folder in s.folders}
    folders: dict[str, Path] = {}
    for path in sorted(base.iterdir()):
        if path.name.startswith(".") or path.name == "__MACOSX" or _plain(path.name) in taken or not path.is_dir():
            continue
        if not is_utf8(path.name):
            problems.append(
                Problem(
                    "file-name", "error", "the folder's name is not UTF-8", path.name, "rename it with a UTF-8 name"
                )
            )
            continue
        name = canonical_name(path.name, spec.aliases)
        if name in folders:
            what = f"two folders mean generator {name!r}: {folders[name].name} and {path.name}"
            problems.append(Problem("same-name", "error", what, str(base), "merge, rename or remove one of them"))
            continue
        folders[name] = path
    return folders

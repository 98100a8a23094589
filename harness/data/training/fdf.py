"""The released training layout: FDF faces with their label file, boxes, landmarks and stored manipulated faces.

```
SSL_training_data/                                     (or the folder itself)
  fdf_ccby2_exif_ordinal_categorical.json              label file; or, older:
  fdf_ccby2_exif_update_filtered_v2/<photo id>.json    EXIF a photograph, with FDF/data/id_vs_fdfName.pkl
  FDF/data/face_dataaug_neg/<face id>_<number>.png     stored manipulated faces
  FDF/data/fdf/fdf_metainfo.json                       face id -> bounding_box, ...
  FDF/data/fdf/images/128/<face id>.png
  FDF/data/fdf/landmarks/<face id>.npy                 [faces, 68, 2] in 224-pixel coordinates (or landmarks_68/)
```

Source: both READMEs of the authors; AIGFD_BLO at 5f26ede, training data set (FIDELITY A1.4, A4.29).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harness.api.errors import DataError
from harness.data.exif.corpus import make_labels
from harness.data.exif.jsonsafe import load_object
from harness.data.exif.labels import ORDINAL, TagLabels, read_labels
from harness.data.exif.levels import choose_cuts, known
from harness.data.exif.photos import Sources
from harness.data.exif.table import build_table
from harness.data.exif.vocabulary import Vocabulary
from harness.data.problems import Problem, about
from harness.data.splits import SplitRule
from harness.data.training.idmap import read_id_map
from harness.data.training.table import FACE_SPLITS, FaceTable, Landmarks, file_digests, no_landmarks, split_photos

if TYPE_CHECKING:
    from numpy.typing import NDArray

LABELS = "fdf_ccby2_exif_ordinal_categorical.json"
OLD_LABELS = "fdf_ccby2_exif_update_filtered_v2"
FACES = "FDF/data/fdf/images/128"
METAINFO = "FDF/data/fdf/fdf_metainfo.json"
STORED = "FDF/data/face_dataaug_neg"
ID_MAP = "FDF/data/id_vs_fdfName.pkl"
LANDMARKS = ("FDF/data/fdf/landmarks", "FDF/data/fdf/landmarks_68", "FDF/data/landmarks")
MAX_METAINFO_BYTES = 4 * 2**30  # 1.47 million faces of FDF, about 1 kB each
_IMAGE = frozenset({".png", ".jpg", ".jpeg"})
_STORED_NAME = re.compile(r"(.+)_([0-9])")


class FdfFolder(NamedTuple):
    """Where things lie below `root`; None for what is not there."""

    root: Path
    labels: Path | None
    old_labels: Path | None
    metainfo: Path | None
    stored: Path | None
    id_map: Path | None
    landmarks: Path | None


def find_fdf(path: Path) -> FdfFolder | None:
    """The released training folder at `path` or in its `SSL_training_data` (or `data`); None: there is none."""
    for root in (path, path / "SSL_training_data", path / "data", path / "data" / "SSL_training_data"):
        if (root / FACES).is_dir():
            there = {
                name: root / where if (root / where).exists() else None
                for name, where in (
                    ("labels", LABELS), ("old_labels", OLD_LABELS), ("metainfo", METAINFO), ("stored", STORED),
                    ("id_map", ID_MAP),
                )
            }  # fmt: skip
            points = next((root / where for where in LANDMARKS if (root / where).is_dir()), None)
            return FdfFolder(root, landmarks=points, **there)
    return None


def labels_from_exif(vocabulary: Vocabulary, levels: int = 3) -> Callable[[Path], TagLabels]:
    """Reads the older layout's folder of `<photo id>.json`: levels by quantiles of all its photographs, as
    `harness data exif` makes them; ids are photo ids."""

    def read(folder: Path) -> TagLabels:
        table = build_table(Sources([folder]), vocabulary)
        cuts = choose_cuts({name: known(table.frame[name]) for name in ORDINAL}, levels)
        return make_labels(table, cuts, vocabulary.label_classes, levels)

    return read


def open_fdf(
    path: Path,
    *,
    rule: SplitRule = FACE_SPLITS,
    labels: str | None = None,
    old_labels: Callable[[Path], TagLabels] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FaceTable:
    """The faces of the released training layout that have labels and an image, by face id.

    Items of the label file are matched to images by file name, their ids by its stem: its paths may be the authors'
    own absolute ones (FIDELITY A1.4). Nothing outside the folder is read. Counted, and stated in `notes`: items
    without an image, faces without a box (the whole image is used), without landmarks, without stored manipulated
    faces, and by what photographs are told apart.

    Args:
        path: the folder, or one that holds it.
        rule: shares of the splits; `train_lines` is not read.
        labels: another label file, by its name in the folder.
        old_labels: turns the older folder of EXIF files into labels whose ids are photo ids (`labels_from_exif`);
            needed for that layout.
        progress: called with (files read, files in all).

    Raises:
        DataError: the layout is not there, holds no labels, or not one face that can be read.
    """
    found = find_fdf(path)
    if found is None:
        raise DataError(
            f"no released training layout: {FACES} is not there", path, "name the folder that holds FDF/ (README, Data)"
        )
    if labels is not None:
        if not (found.root / labels).is_file():
            raise DataError("the label file is not there", found.root / labels, "make it with `harness data exif`")
        found = found._replace(labels=found.root / labels)
    files = _images(found.root / FACES)
    notes: list[str] = []
    names, tags, levels = _labelled(found, files, old_labels, notes)
    paths = [f"{FACES}/{files[name]}" for name in names]
    digests = file_digests(found.root, paths, progress)
    bad = [f"{p} ({e.what})" for p, e in zip(paths, digests, strict=True) if isinstance(e, DataError)]
    kept = np.array([i for i, d in enumerate(digests) if isinstance(d, str)], np.intp)
    if len(kept) == 0:
        raise DataError("no face of the training layout can be read", found.root, "check the images")
    ids = tuple(names[i] for i in kept)
    metainfo = _metainfo(found.metainfo)
    photos = _photos(ids, found.id_map, metainfo, notes)
    boxes, problems = _boxes(ids, metainfo, found, notes)
    stored = _stored(found.stored, ids, notes)
    landmarks = _landmarks(found.landmarks, ids, notes)
    unreadable = about(
        "unreadable", "warning", "{n} faces cannot be read and are left out", str(found.root), "replace the files", bad
    )
    return FaceTable(
        found.root, ids, tuple(paths[i] for i in kept), photos, tuple(str(digests[i]) for i in kept),
        split_photos(photos, rule), {tag: values[kept] for tag, values in tags.items()}, levels, boxes, landmarks,
        stored, _beside(found, ids, stored), tuple(notes), (*problems, *unreadable),
    )  # fmt: skip


def _images(folder: Path) -> dict[str, str]:
    """Stem -> file name of the images in a folder; regular files of that folder only."""
    with os.scandir(folder) as entries:
        files = sorted(e.name for e in entries if e.is_file(follow_symlinks=False))
    return {Path(n).stem: n for n in files if Path(n).suffix.lower() in _IMAGE}


def _labelled(
    found: FdfFolder, files: Mapping[str, str], old: Callable[[Path], TagLabels] | None, notes: list[str]
) -> tuple[list[str], dict[str, NDArray[np.int16]], int]:
    """Face ids with an image and labels, sorted, their tags, and the number of levels."""
    if found.labels is not None:
        labels = read_labels(found.labels)
        place = {name: i for i, name in enumerate(labels.ids)}
    elif found.old_labels is not None and old is not None:
        if found.id_map is None:
            raise DataError("the older labels need the map of face names", found.root / ID_MAP, "add the file")
        labels = old(found.old_labels)
        photos = {name: i for i, name in enumerate(labels.ids)}
        names = read_id_map(found.id_map)
        place = {PurePosixPath(face).stem: photos[photo] for face, photo in names.items() if photo in photos}
    else:
        raise DataError(
            f"the training layout has no labels: neither {LABELS} nor {OLD_LABELS}/", found.root,
            "add one of them, or make the label file with `harness data exif`",
        )  # fmt: skip
    names_here = sorted(place.keys() & files.keys())
    if not names_here:
        raise DataError("no item of the label file has an image", found.root / FACES, "check that both belong together")
    notes.append(f"{len(names_here):,} faces with labels; {len(place) - len(names_here):,} items without an image, ")
    notes[-1] += f"{len(files) - len(names_here):,} images without labels"
    rows = np.array([place[name] for name in names_here], np.intp)
    return names_here, {tag: values[rows] for tag, values in labels.tags.items()}, labels.levels


def _metainfo(path: Path | None) -> dict[str, Any]:
    return {} if path is None else load_object(path, MAX_METAINFO_BYTES)


def _photos(ids: Sequence[str], id_map: Path | None, metainfo: Mapping[str, Any], notes: list[str]) -> tuple[str, ...]:
    """The photograph of each face: by the released map, else by the metainfo's address of it, else the face itself."""
    if id_map is not None:
        known = {PurePosixPath(face).stem: photo for face, photo in read_id_map(id_map).items()}
        notes.append(f"photographs by {ID_MAP}")
        return tuple(known.get(name, f"face:{name}") for name in ids)
    for key in ("photo_url", "yfcc_line_id", "url_image"):
        if any(isinstance(entry, dict) and key in entry for entry in metainfo.values()):
            notes.append(f"photographs by {key} of {METAINFO}")
            return tuple(
                str(e[key]) if isinstance(e := metainfo.get(name), dict) and key in e else f"face:{name}"
                for name in ids
            )
    notes.append("nothing says which faces share a photograph: each face is split as a photograph of its own")
    return tuple(ids)


def _boxes(
    ids: Sequence[str], metainfo: Mapping[str, Any], found: FdfFolder, notes: list[str]
) -> tuple[NDArray[np.float32], list[Problem]]:
    """Boxes as fractions, NaN where there is none; a box that cannot be one counts as none, and is said."""
    boxes = np.full((len(ids), 4), np.nan, np.float32)
    bad = []
    for i, name in enumerate(ids):
        entry = metainfo.get(name)
        value = entry.get("bounding_box") if isinstance(entry, dict) else None
        if value is None:
            continue
        box = _box(value)
        if box is None:
            bad.append(name)
        else:
            boxes[i] = box
    absent = int(np.isnan(boxes[:, 0]).sum())
    if absent:
        notes.append(f"{absent:,} faces without a bounding box: the whole image is used")
    fix = "mend bounding_box: four ascending fractions x0, y0, x1, y1"
    return boxes, about("box", "warning", "{n} bounding boxes mean nothing", str(found.metainfo), fix, bad)


def _box(value: Any) -> NDArray[np.float32] | None:
    numbers = isinstance(value, list) and len(value) == 4 and all(type(v) in (int, float) for v in value)
    if not numbers:
        return None
    box = np.array(value, np.float64)
    inside = bool(np.isfinite(box).all()) and abs(box).max() <= 2 and min(box[:2]) >= -1
    return box.astype(np.float32) if inside and box[2] > max(box[0], 0) and box[3] > max(box[1], 0) else None


def _stored(folder: Path | None, ids: Sequence[str], notes: list[str]) -> dict[int, list[str]]:
    """Number -> file a face, of the stored manipulated faces `<id>_<number>.png`."""
    if folder is None:
        return {}
    place = {name: i for i, name in enumerate(ids)}
    found: dict[int, list[str]] = {}
    for stem, name in _images(folder).items():
        match = _STORED_NAME.fullmatch(stem)
        if match and match[1] in place:
            number = int(match[2])
            found.setdefault(number, [""] * len(ids))[place[match[1]]] = f"{STORED}/{name}"
    counts = ", ".join(f"_{n}: {sum(map(bool, files)):,}" for n, files in sorted(found.items()))
    notes.append(f"stored manipulated faces: {counts or 'none'}")
    return dict(sorted(found.items()))


def _beside(found: FdfFolder, ids: Sequence[str], stored: Mapping[int, Sequence[str]]) -> str:
    """sha256 of the landmarks' bytes and of the stored faces' names and sizes (their bytes would take minutes)."""
    digest = hashlib.sha256()
    for number, files in stored.items():
        for name in filter(None, files):
            digest.update(f"{number} {name} {(found.root / name).stat().st_size}\n".encode())
    for name in ids:
        path = None if found.landmarks is None else found.landmarks / f"{name}.npy"
        if path is not None and path.is_file():
            digest.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _landmarks(folder: Path | None, ids: Sequence[str], notes: list[str]) -> Landmarks:
    """Reads `<id>.npy` when asked; counted by names alone here."""
    there = set() if folder is None else {p.stem for p in folder.glob("*.npy")}
    absent = sum(name not in there for name in ids)
    if absent:
        notes.append(f"{absent:,} faces without a landmarks file")
    return no_landmarks if folder is None else _LandmarkFiles(folder, tuple(ids), frozenset(there))


@dataclass(frozen=True)
class _LandmarkFiles:
    """Reads `<id>.npy` of a row; a class and no closure, so that a table can be sent to other processes."""

    folder: Path
    ids: tuple[str, ...]
    there: frozenset[str]

    def __call__(self, row: int) -> NDArray[np.float32] | None:
        from harness.data.manipulate.landmarks import read_landmarks_npy

        name = self.ids[row]
        return read_landmarks_npy(self.folder / f"{name}.npy") if name in self.there else None

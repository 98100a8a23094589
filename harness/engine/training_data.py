"""Which images a recipe trains on, and what identifies them: a suite's photographs, or the released training layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from harness.api.errors import DataError
from harness.api.training import Recipe, TrainingImages
from harness.data.training.sidecars import Annotations, read_annotations
from harness.data.training.table import FaceTable
from harness.engine.keys import set_digest
from harness.engine.origins import images_digest
from harness.engine.suite import suites_folder
from harness.results.digests import digests_array

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

SPLITS, REPORT = ("train", "outer", "select"), "report"
Preprocess = Callable[[np.ndarray], "Tensor"]
ReadRow = Callable[[int], np.ndarray]


class TrainingSource(Protocol):
    """Images for one recipe: what they are, and how they are read."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is known of them, a line each."""

    def identity(self) -> list[str]:
        """Digests of images and annotations, for the recipe's key."""

    def example(self) -> Path:
        """One of the files, by which another machine sees whether it has them."""

    def generated(self) -> dict[str, tuple[str, ...]]:
        """Generators among them, each with the digest of its images (`origins.images_digest`)."""

    def images(self, preprocess: Preprocess, read: ReadRow) -> TrainingImages:
        """What a step is given; ``read(row)`` gives the pixels of a manifest row, with the run's edits applied."""

    def held_out(self) -> TrainingSource:
        """The split `report` of the same data, and nothing else: what training never sees.

        Raises:
            DataError: no photograph is in it.
        """


@dataclass(frozen=True)
class SuiteFaces:
    """Rows of a suite's manifest by split, with what the dataset's folder says of them; ``others`` makes the same of
    other splits."""

    manifest: pd.DataFrame
    root: Path
    rows: Mapping[str, np.ndarray]
    annotations: Mapping[str, Annotations]
    others: Callable[[Sequence[str]], SuiteFaces]

    @property
    def notes(self) -> tuple[str, ...]:
        """As ``TrainingSource``."""
        first = next(iter(self.annotations.values()))
        return (*first.notes, "no bounding boxes: whole images are used")

    def _names(self, split: str) -> list[str]:
        return [str(g) for g in self.manifest["generator"].to_numpy()[self.rows[split]]]

    def identity(self) -> list[str]:
        """As ``TrainingSource``."""
        digests, labels = digests_array(self.manifest["sha256"]), self.manifest["label"].to_numpy()
        sets = [set_digest(digests[r], labels[r], self._names(split)) for split, r in self.rows.items()]
        return sets + [known.digest() for known in self.annotations.values()]

    def example(self) -> Path:
        """As ``TrainingSource``."""
        first = next(rows for rows in self.rows.values() if len(rows))[0]
        return self.root / str(self.manifest["path"].iloc[first])

    def generated(self) -> dict[str, tuple[str, ...]]:
        """As ``TrainingSource``."""
        table = self.manifest.iloc[np.concatenate(list(self.rows.values()))]
        made = table[table["label"] == 1].groupby("generator")["sha256"]
        return {str(name): (images_digest(digests),) for name, digests in made}

    def images(self, preprocess: Preprocess, read: ReadRow) -> TrainingImages:
        """As ``TrainingSource``."""
        labels, digests = self.manifest["label"].to_numpy(), self.manifest["sha256"].to_numpy()
        return TrainingImages(
            read=lambda split, i: read(int(self.rows[split][i])),
            labels={s: labels[r].astype(np.int8) for s, r in self.rows.items()},
            generators={s: self._names(s) for s in self.rows},
            digests={s: [str(d) for d in digests[r]] for s, r in self.rows.items()},
            preprocess=preprocess,
            tags={s: known.tags for s, known in self.annotations.items()},
            tag_levels=max(known.tag_levels for known in self.annotations.values()),
            landmarks=lambda split, i: self.annotations[split].landmarks(i),
        )

    def held_out(self) -> SuiteFaces:
        """As ``TrainingSource``."""
        return self.others((REPORT,))


@dataclass(frozen=True)
class ReleasedFaces:
    """The released training layout; the run's edits do not touch it."""

    table: FaceTable
    splits: tuple[str, ...] = SPLITS

    @property
    def notes(self) -> tuple[str, ...]:
        """As ``TrainingSource``."""
        return (*self.table.notes, *(problem.said() for problem in self.table.problems))

    def identity(self) -> list[str]:
        """As ``TrainingSource``."""
        return [self.table.identity(split) for split in self.splits]

    def example(self) -> Path:
        """As ``TrainingSource``."""
        return self.table.root / self.table.paths[0]

    def generated(self) -> dict[str, tuple[str, ...]]:
        """As ``TrainingSource``: there are photographs alone."""
        return {}

    def images(self, preprocess: Preprocess, read: ReadRow) -> TrainingImages:
        """As ``TrainingSource``."""
        return self.table.images(preprocess, self.splits)

    def held_out(self) -> ReleasedFaces:
        """As ``TrainingSource``."""
        if len(self.table.rows(REPORT)) == 0:
            raise DataError(f"no face is in the split `{REPORT}`", self.table.root, "give more photographs")
        return ReleasedFaces(self.table, (REPORT,))


def _rows(manifest: pd.DataFrame, dataset: str, recipe: Recipe, split: str, count: int) -> np.ndarray:
    label, name = manifest["label"], manifest["generator"]
    here = manifest["split"] == split
    rows = np.flatnonzero((here & (label == 0) & (manifest["dataset"] == dataset)).to_numpy())
    rows = rows[np.argsort(manifest["order"].to_numpy()[rows], kind="stable")][:count]
    if split == "train" and recipe.max_images is not None:
        rows = rows[: recipe.max_images]
    made = np.flatnonzero((here & (label == 1) & name.isin(list(recipe.generators))).to_numpy())
    return np.concatenate([rows, made[np.argsort(manifest["sha256"].to_numpy()[made])]])


def _annotations(
    root: Path, manifest: pd.DataFrame, dataset: str, rows: Mapping[str, np.ndarray], edits: Mapping[str, Any],
    labels: str | None,
) -> dict[str, Annotations]:  # fmt: skip
    """What the dataset's folder says of the photographs of each split; landmarks only of images as they are stored."""
    everything = np.unique(np.concatenate([*rows.values()]))
    table = manifest.iloc[everything]
    sizes = list(zip(table["width"].tolist(), table["height"].tolist(), strict=True))
    known = read_annotations(root / dataset, table["path"].tolist(), sizes, labels)
    if edits.get("rotate") and known.points is not None:
        notes = (*known.notes, "landmarks are not used: they refer to images before rotation")
        known = replace(known, points=None, notes=notes)
    return {split: known.take(np.searchsorted(everything, part)) for split, part in rows.items()}


def suite_faces(
    recipe: Recipe, manifest: pd.DataFrame, root: Path, dataset: str, count: int, edits: Mapping[str, Any],
    splits: Sequence[str] = SPLITS,
) -> SuiteFaces:  # fmt: skip
    """A recipe's images among those of a suite: at most ``count`` photographs of a split, in the list's order, and the
    recipe's generators.

    Raises:
        DataError: no photograph in the first of ``splits``, or annotations that cannot be read.
    """
    rows = {split: _rows(manifest, dataset, recipe, split, count) for split in splits}
    if len(rows[splits[0]]) == 0:
        what = "to train on" if splits[0] == "train" else "to report on"
        raise DataError(f"recipe {recipe.recipe!r}: dataset {dataset!r} has no `{splits[0]}` photographs {what}")
    others = partial(suite_faces, recipe, manifest, root, dataset, count, edits)
    known = _annotations(root, manifest, dataset, rows, edits, recipe.data.labels)
    return SuiteFaces(manifest, root, rows, known, others)


def released_faces(recipe: Recipe, root: Path, progress: Callable[[int, int], None] | None = None) -> ReleasedFaces:
    """A recipe's images in the released training layout at or below ``root``.

    Raises:
        DataError: it is not there, or nothing in it can be used.
    """
    return _released(recipe, root, _open_released(recipe, root, progress))


def _open_released(recipe: Recipe, root: Path, progress: Callable[[int, int], None] | None = None) -> FaceTable:
    from harness.data.exif.vocabulary import load_vocabulary
    from harness.data.training.fdf import labels_from_exif, open_fdf

    vocabulary = load_vocabulary(suites_folder() / "exif" / f"{recipe.data.vocabulary}.yaml")
    old = labels_from_exif(vocabulary, _levels(recipe))
    return open_fdf(root, labels=recipe.data.labels, old_labels=old, progress=progress)


def _levels(recipe: Recipe) -> int:
    return int(recipe.settings.get("levels", 3))


def _released(recipe: Recipe, root: Path, table: FaceTable) -> ReleasedFaces:
    if recipe.max_images is not None:
        table = table.head("train", recipe.max_images)
    if len(table.rows("train")) == 0:
        raise DataError(f"recipe {recipe.recipe!r}: no face in `train`", root, "give more faces")
    return ReleasedFaces(table)


class Sources:
    """The images of the recipes of one suite. The released layout, where opening reads every face, is opened once for
    all recipes that ask the same of it, also where that fails."""

    def __init__(
        self, manifest: pd.DataFrame, root: Path, dataset: str, count: int, edits: Mapping[str, Any]
    ) -> None:  # fmt: skip
        self.manifest, self.root, self.dataset, self.count, self.edits = manifest, root, dataset, count, edits
        self._opened: dict[tuple[object, ...], FaceTable | DataError] = {}

    def of(self, recipe: Recipe) -> TrainingSource:
        """A recipe's images.

        Raises:
            DataError: they are not there or cannot be read.
        """
        if recipe.data.layout != "released":
            return suite_faces(recipe, self.manifest, self.root, self.dataset, self.count, self.edits)
        asked = (recipe.data.labels, recipe.data.vocabulary, _levels(recipe))
        if asked not in self._opened:
            try:
                self._opened[asked] = _open_released(recipe, self.root.resolve())
            except DataError as error:
                self._opened[asked] = error
        found = self._opened[asked]
        if isinstance(found, DataError):
            raise found
        return _released(recipe, self.root, found)

"""The manifest: one row an image file and role, with its digest, split and header facts (`manifest.parquet`)."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd

from harness.api.errors import DataError
from harness.data.facts import Decode, FileFacts, Progress, read_facts
from harness.data.layouts import DataSpec, FoundSet, Layout, canonical_name, find_layout
from harness.data.lists import ListResolver, read_list
from harness.data.problems import Problem, about, require
from harness.data.splits import split_seen_generator, split_train_list, split_without_lists
from harness.data.tables import MOST_ROWS, PART_ROWS, read_table, table_columns, table_parts, table_rows, write_table

if TYPE_CHECKING:
    from harness.data.splits import Keys

COLUMNS: dict[str, str] = {
    "sha256": "str",
    "path": "str",
    "label": "int8",
    "generator": "str",
    "dataset": "str",
    "group": "str",
    "split": "str",
    "order": "int64",
    "width": "int32",
    "height": "int32",
    "format": "str",
    "jpeg_quality": "int16",
    "bytes": "int64",
}
"""Columns of a manifest and their types, in order."""
DIGESTED = ("label", "generator", "dataset", "split", "order", "sha256", "group")
"""Columns that :func:`manifest_digest` is about, in the order of a line of its text; the first five sort the lines."""

OnBadImage = Literal["stop", "skip"]
_TEST, _TRAIN, _NO_LIST = "test list", "train list", "no list"
FAULTS = {
    "empty": "{n} files are empty (0 bytes)",
    "unreadable": "{n} files cannot be read",
    "undecodable": "{n} files are no images that can be decoded",
}
"""Kinds of problems that are about single files (:attr:`harness.data.facts.FileFacts.fault`), with their messages."""


@dataclass(frozen=True)
class ManifestResult:
    """A manifest and what was met on the way.

    Attributes:
        table: the manifest (columns `COLUMNS`); files with faults are not in it.
        problems: all of them; errors mean that the table is not what the user meant.
        notes: what a reader should know (lines matched by name, copies left out, shares of a hash split).
        skipped: images left out because they cannot be read or decoded; every table counts them.
    """

    table: pd.DataFrame
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    skipped: int

    def require(self, root: object = None) -> ManifestResult:
        """Itself, when no problem is an error; otherwise one `DataError` that lists all errors."""
        require(self.problems, root)
        return self


class _Rows(NamedTuple):
    """Rows of one role before their files are read: `source` says which rule gives the split."""

    paths: tuple[str, ...]
    order: tuple[int, ...]
    label: int
    generator: str
    dataset: str
    source: str


def build_manifest(
    root: str | os.PathLike[str],
    spec: DataSpec | None = None,
    *,
    seen: Collection[str] = (),
    known: Collection[str] = (),
    allow_outside: bool = False,
    on_bad_image: OnBadImage = "stop",
    decode: Decode = "header",
    workers: int | None = None,
    seed: int = 2024,
    progress: Progress | None = None,
) -> ManifestResult:
    """The manifest of a data root, with all its problems; call `.require()` before using the table.

    Args:
        root: the data root.
        spec: what the suite tests on; the paper's when None.
        seen: generators that some detector is trained on; their images are split by hash.
        known: generators that a weights file was trained on; as `seen`, but they need not be here.
        allow_outside: let lists and links leave the root.
        on_bad_image: faulty files are errors ("stop") or left out with a warning ("skip").
        decode: "none" digests files only (sizes and formats stay empty), "header" reads headers, "full" decodes.
        workers: reading threads; None takes one a core.
        seed: of the splits by hash.
        progress: called with (files done, files in all).

    Splits: METHOD "Detection", FIDELITY (`outer` and `select`). A photograph whose content is in `report` is taken
    out of every other split, so that nothing is trained or selected on a test image.

    Raises:
        DataError: the root is no readable folder.
    """
    spec = spec or DataSpec()
    layout = find_layout(root, spec, allow_outside=allow_outside)
    problems = list(layout.problems)
    notes = list(layout.notes)
    rows = _collect(layout, allow_outside, problems, notes)
    paths = [p for part in rows for p in part.paths]
    facts = read_facts(layout.root, paths, look=decode, workers=workers, progress=progress)
    problems += _fault_problems(paths, facts, str(layout.root), on_bad_image)
    table = _table(rows, facts)
    table = _drop_copies(table, notes)
    seen_names = {canonical_name(name, spec.aliases) for name in seen}
    problems += _unknown_seen(seen_names, table, str(layout.root))
    seen_names |= {canonical_name(name, spec.aliases) for name in known} & set(table["generator"])
    table["split"] = pd.Series(_splits(table, spec, seen_names, seed, notes), dtype="str")
    table = _keep_report_apart(table, problems, str(layout.root))
    problems += _shared_content(table, str(layout.root))
    outside = sum(map(os.path.isabs, table["path"].tolist()))
    if outside:
        notes.append(f"{outside:,} images lie outside the data root (--allow-outside)")
    skipped = sum(1 for f in facts if f.fault)
    return ManifestResult(conform(table.drop(columns="source")), tuple(problems), tuple(notes), skipped)


def _collect(layout: Layout, allow_outside: bool, problems: list[Problem], notes: list[str]) -> list[_Rows]:
    rows = [r for found in layout.photographs for r in _photographs(layout, found, allow_outside, problems, notes)]
    for g in layout.generators:
        rows.append(_Rows(g.scan.files, tuple(range(len(g.scan.files))), 1, g.name, g.dataset, _NO_LIST))
    return rows


def _photographs(
    layout: Layout, found: FoundSet, allow_outside: bool, problems: list[Problem], notes: list[str]
) -> list[_Rows]:
    dataset, files = found.entry.dataset, found.scan.files
    lists = {_TRAIN: found.train, _TEST: found.test}
    wanted = {_TRAIN: found.entry.train, _TEST: found.entry.test}
    if found.train is None and found.test is None:
        if found.entry.use == "all" and any(wanted.values()):
            notes.append(f"{dataset} has no lists: its images are split by hash")
        return [_Rows(files, tuple(range(len(files))), 0, "", dataset, _NO_LIST)]
    rows = []
    resolver = ListResolver(layout.root, found.folder, found.scan, allow_outside=allow_outside)
    for source, path in lists.items():
        if path is None:
            if wanted[source] and not (source == _TRAIN and found.entry.use == "test"):
                what = f"{dataset} has one list but not the {source}"
                fix = f"add {' or '.join(wanted[source])}; or remove both lists to split by hash"
                problems.append(Problem("missing-list", "error", what, str(layout.root), fix))
            continue
        where = os.path.relpath(path, layout.root)
        try:
            lines = read_list(path)
        except DataError as error:
            problems.append(Problem("bad-list", "error", error.what, where, error.fix or "mend the list"))
            continue
        if not lines:
            fix = "take the lists from the authors' archive (they are shipped empty), or remove both to split by hash"
            problems.append(Problem("empty-list", "error", "the list is empty", where, fix))
        found_lines = resolver.resolve(lines, path)
        problems.extend(found_lines.problems)
        if found_lines.by_name:
            notes.append(f"{where}: {found_lines.by_name:,} of {len(lines):,} lines matched by file name")
        if found_lines.repeated:
            notes.append(f"{where}: {found_lines.repeated:,} lines repeat a file and are left out")
        rows.append(_Rows(found_lines.paths, found_lines.numbers, 0, "", dataset, source))
    unlisted = len(set(files) - {p for r in rows for p in r.paths})
    if unlisted:
        notes.append(f"{dataset}: {unlisted:,} images are on no list and not used")
    return rows


def _fault_problems(paths: list[str], facts: list[FileFacts], root: str, on_bad: OnBadImage) -> list[Problem]:
    skip = on_bad == "skip"
    problems = []
    for fault, message in FAULTS.items():
        bad = dict.fromkeys(f"{p} ({f.message})" for p, f in zip(paths, facts, strict=True) if f.fault == fault)
        message += "; left out" if skip else ""
        fix = "replace them" if skip else "replace or remove them, or leave them out with --on-bad-image skip"
        problems += about(fault, "warning" if skip else "error", message, root, fix, list(bad), whole=True)
    return problems


def _table(rows: list[_Rows], facts: list[FileFacts]) -> pd.DataFrame:
    sizes = [len(r.paths) for r in rows]

    def each(values: list[object]) -> np.ndarray:
        return np.repeat(np.array(values, dtype=object), sizes)

    table = pd.DataFrame(
        {
            "sha256": [f.sha256 for f in facts],
            "path": [p for r in rows for p in r.paths],
            "label": each([r.label for r in rows]),
            "generator": each([r.generator for r in rows]),
            "dataset": each([r.dataset for r in rows]),
            "group": [f.sha256 for f in facts],
            "split": "",
            "order": [n for r in rows for n in r.order],
            "width": [f.image.width for f in facts],
            "height": [f.image.height for f in facts],
            "format": [f.image.format for f in facts],
            "jpeg_quality": [f.image.jpeg_quality for f in facts],
            "bytes": [f.num_bytes for f in facts],
            "source": each([r.source for r in rows]),
        }
    )
    good = np.array([not f.fault for f in facts], dtype=bool)
    return table[good].astype(COLUMNS).astype({"source": "str"}).reset_index(drop=True)


def _drop_copies(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    copies = table.duplicated(["label", "generator", "dataset", "source", "sha256"])
    for (generator, dataset), part in table[copies].groupby(["generator", "dataset"], sort=False):
        notes.append(f"{generator or dataset}: {len(part):,} files have the content of another one and are left out")
    return table[~copies].reset_index(drop=True)


def _unknown_seen(seen: set[str], table: pd.DataFrame, root: str) -> list[Problem]:
    lacking = sorted(seen - set(table["generator"]))
    fix = "add the folder, or name generators that are there"
    return about("missing-seen", "error", "{n} generators to be trained on have no images", root, fix, lacking)


def _splits(table: pd.DataFrame, spec: DataSpec, seen: set[str], seed: int, notes: list[str]) -> list[str]:
    """The split of every row; photographs keep list order, generated images of seen generators go by hash."""
    split = np.full(len(table), "report", dtype=object)
    groups = table["group"].to_numpy(dtype=object)
    source, dataset = table["source"], table["dataset"]
    for entry in spec.photographs:
        here = (table["label"] == 0) & (dataset == entry.dataset)
        train = np.flatnonzero(here & (source == _TRAIN))
        unlisted = np.flatnonzero(here & (source == _NO_LIST))
        if entry.use == "all":
            split[train] = split_train_list(groups[train].tolist(), spec.splits, seed)
            split[unlisted] = split_without_lists(groups[unlisted].tolist(), spec.splits, seed)
        elif len(train):
            split[train] = "train"
            notes.append(f"{entry.dataset} is for testing only, yet has a training list: its images are `train`")
        for name in ("outer", "select"):
            if entry.use == "all" and len(train) and name not in split[train]:
                notes.append(f"{entry.dataset}: no photograph is left for `{name}` (see data.splits.train_lines)")
    for generator in sorted(seen):
        rows = np.flatnonzero(table["generator"] == generator)
        split[rows] = split_seen_generator(groups[rows].tolist(), spec.splits, seed)
    return split.tolist()


def _keep_report_apart(table: pd.DataFrame, problems: list[Problem], root: str) -> pd.DataFrame:
    """Photographs without those outside `report` that share content or group with one in `report`."""
    photographs = table["label"] == 0
    tested = table[photographs & (table["split"] == "report")]
    leak = photographs & (table["split"] != "report")
    leak &= table["sha256"].isin(tested["sha256"]) | table["group"].isin(tested["group"])
    fix = "take them out of the training list"
    what = "{n} photographs for training are test photographs too (leakage); they are kept for testing only"
    problems += about("leak", "warning", what, root, fix, table.loc[leak, "path"].tolist())
    return table[~leak].reset_index(drop=True)


def _shared_content(table: pd.DataFrame, root: str) -> list[Problem]:
    generated = table[table["label"] == 1]
    both = generated[generated["sha256"].isin(table.loc[table["label"] == 0, "sha256"])]
    problems = about(
        "both-classes", "error", "{n} images are both photographic and generated", root,
        "take them out of one of the folders", both["path"].tolist(),
    )  # fmt: skip
    first = generated.groupby("sha256", sort=False)["generator"].transform("nunique")
    shared = generated[first > 1]
    problems += about(
        "shared-generated", "warning", "{n} generated images lie in the folders of several generators", root,
        "keep each in one folder", shared["path"].tolist(),
    )  # fmt: skip
    splits = generated.groupby("sha256", sort=False)["split"].transform("nunique")
    leaking = generated[splits > 1]
    problems += about(
        "leak", "warning", "{n} generated images are both for training and for testing (leakage)", root,
        "keep each in one folder", leaking["path"].tolist(),
    )  # fmt: skip
    return problems


def conform(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with exactly the columns and types of a manifest; `DataError` names what is missing."""
    _require_columns(table.columns, None)
    return table[list(COLUMNS)].astype(COLUMNS).reset_index(drop=True)


def _require_columns(names: Collection[str], path: Path | None) -> None:
    missing = [c for c in COLUMNS if c not in names]
    if missing:
        what = f"a manifest lacks the columns {', '.join(missing)}"
        raise DataError(what, path, "write it with `harness data index`")


def require_columns(path: Path) -> None:
    """`DataError` where a written manifest cannot be read, or lacks columns that anything here reads."""
    with _readable(path):
        names = table_columns(path)
    _require_columns(names, path)


def manifest_digest(table: pd.DataFrame, keys: Keys | None = None) -> str:
    """sha256 of what a manifest means: content, class, generator, dataset, split, order, group; never a path.

    Args:
        keys: gives the sha256 of rows of the table where it has no such column; where it has no column `group`, each
            image is a group of its own.
    """
    columns = DIGESTED[:5]
    order = np.lexsort([_ranks(table[c]) for c in reversed(columns)])
    digest = hashlib.sha256()
    for start in range(0, len(order), 2**16):  # a million rows as text would be a quarter of a gigabyte
        rows = order[start : start + 2**16]
        texts = [table[c].iloc[rows].astype("str").tolist() for c in columns]
        sha = table["sha256"].iloc[rows].tolist() if keys is None else list(keys(rows))
        group = table["group"].iloc[rows].tolist() if "group" in table else sha
        lines = map("\t".join, zip(*texts, sha, group, strict=True))
        digest.update(("\n".join(lines) + "\n").encode())
    return digest.hexdigest()


def _ranks(column: pd.Series) -> np.ndarray:
    """Numbers ``[N]`` that sort as the values of a column; categories sort as their words."""
    if column.dtype.kind in "iu":
        return column.to_numpy()
    codes, names = pd.factorize(column)
    ranks = np.empty(len(names), np.int32)
    ranks[np.argsort(np.array([str(name) for name in names], object))] = np.arange(len(names))
    return ranks[codes]


def write_manifest(table: pd.DataFrame, path: str | os.PathLike[str], *, most_rows: int = MOST_ROWS) -> Path:
    """Write a manifest as Parquet (above ``most_rows`` as a dataset), whole or not at all; gives the path.

    Raises:
        StoreError: it cannot be written.
    """
    starts = range(0, max(len(table), 1), PART_ROWS)
    frames = (conform(table.iloc[start : start + PART_ROWS]) for start in starts)
    return write_table(frames, Path(path), rows=len(table), most_rows=most_rows)


def read_manifest(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A manifest from Parquet, or some columns of it; `DataError` when it is missing, damaged or lacks columns."""
    with _readable(path):
        if columns is None:
            return conform(read_table(Path(path)))
        return read_table(Path(path), columns).astype({name: COLUMNS[name] for name in columns})


def manifest_rows(path: str | os.PathLike[str]) -> int:
    """Number of images of a manifest; errors as of `read_manifest`."""
    with _readable(path):
        return table_rows(Path(path))


def manifest_parts(path: str | os.PathLike[str], columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Some columns of a manifest, piece by piece; errors as of `read_manifest`."""
    with _readable(path):
        for part in table_parts(Path(path), columns):
            yield part.astype({name: COLUMNS[name] for name in columns})


@contextlib.contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise DataError(f"the manifest cannot be read ({error})", path, "write it with `harness data index`") from error

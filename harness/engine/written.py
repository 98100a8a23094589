"""The data of a run that starts from a written manifest: no image is opened before it is needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.api.errors import ConfigError, DataError
from harness.api.events import Event, Listener
from harness.engine.data import RunData, data_spec, drawn
from harness.engine.frames import Roster, read_roster
from harness.engine.rows import PreparedRow
from harness.engine.suite import Suite
from harness.results.digests import CHUNK, digests_array

if TYPE_CHECKING:
    import pandas as pd

NAME = "manifest.parquet"
"""What `data index` calls it in the folder that it is given."""
_ANEW = "write it for this suite, from the same data root: `harness data index --suite SUITE`"
_CHOICES = ("generators", "aliases")
"""Keys of the suite's data section that say what is tested; the others say how a manifest is made."""


@dataclass(frozen=True)
class Written:
    """A manifest as it was when the run began.

    Attributes:
        path: the file, or the folder of a dataset.
        state: of each of its files, name, size and time of change.
    """

    path: Path
    state: tuple[tuple[str, int, int], ...]

    @classmethod
    def at(cls, path: Path) -> Written:
        """The manifest that a user means: itself, or the one in a folder.

        Raises:
            DataError: there is none, or it lacks columns.
        """
        from harness.data.manifest import require_columns
        from harness.data.tables import is_table

        found = next((p for p in (path / NAME, path) if is_table(p)), None)
        if found is None:
            fix = "check --manifest, or write one with `harness data index`"
            raise DataError("there is no manifest", where=path, fix=fix)
        require_columns(found)
        return cls(found, _state(found))

    def copy(self, path: Path) -> None:
        """Copy it into a run folder.

        Raises:
            DataError: it is not what the run began with. StoreError: it cannot be written.
        """
        from harness.data.tables import copy_table

        copy_table(self.path, path)
        if _state(self.path) != self.state:
            what = "the manifest changed while the run was going on"
            raise DataError(what, self.path, "run again: what was computed is stored")

    def digest(self, manifest: pd.DataFrame, keys: Callable[[np.ndarray], Iterable[str]]) -> str:
        """As `harness.data.manifest.manifest_digest`; ``manifest`` and ``keys`` are what planning read of it."""
        from harness.data.manifest import DIGESTED, manifest_digest, manifest_parts, read_manifest

        parts = manifest_parts(self.path, ["sha256", "group"])
        if all((part["sha256"] == part["group"]).all() for part in parts):
            return manifest_digest(manifest, keys)
        return manifest_digest(read_manifest(self.path, DIGESTED))


def _state(path: Path) -> tuple[tuple[str, int, int], ...]:
    from harness.data.tables import table_files

    try:
        return tuple((file.name, (facts := file.stat()).st_size, facts.st_mtime_ns) for file in table_files(path))
    except OSError as error:
        raise DataError(f"the manifest cannot be read ({error.strerror or error})", path, "check --manifest") from error


def written_data(
    suite: Suite, root: Path, manifest: Path, rows: Sequence[PreparedRow], *, settings: Sequence[str],
    limit: int | None, allow_outside: bool, on_bad_image: str, emit: Listener,
) -> RunData:  # fmt: skip
    """What is known of the images from a manifest, as `harness.engine.data.prepare_data` knows it from the files.

    Args:
        rows: of the suite; where one has a recipe that trains on the suite's images, all columns are read.
        settings: what ``--set`` changed.

    Raises:
        DataError: no manifest, or one that was made for other rows, leads outside, or has no test set.
        ConfigError: an option that a run from a manifest cannot keep.
    """
    _refuse_options(settings, on_bad_image)
    spec = data_spec(suite)
    written = Written.at(manifest)
    emit(Event("note", {"text": f"reading {written.path}"}))
    if any(recipe.data.layout != "released" for row in rows for recipe in row.recipes.values()):
        roster = _whole(written.path)
    else:
        roster = read_roster(written.path)
    table = roster.manifest
    _check_values(table, written.path)
    notes = [f"images, splits and digests are those of a manifest ({written.path.name}, {len(table):,} rows)"]
    outside = _outside(table["path"])
    if outside and not allow_outside:
        what = f"{len(outside):,} paths of the manifest lead outside the data root, such as {outside[0]!r}"
        raise DataError(what, written.path, "check --data-root, or say --allow-outside")
    if outside:
        notes.append(f"{len(outside):,} images lie outside the data root (--allow-outside)")
    unused = _check_seen(table, rows, spec.aliases, written.path)
    if unused:
        emit(Event("warning", {"text": unused}))
        notes.append(unused)
    keys = None if "sha256" in table else roster.sha256
    return drawn(suite, spec, root, table, roster.images, limit, tuple(notes), 0, keys=keys, written=written)


def _refuse_options(settings: Sequence[str], on_bad_image: str) -> None:
    if on_bad_image != "stop":
        what = f"--on-bad-image {on_bad_image} needs every image decoded before the run, which --manifest leaves out"
        raise ConfigError(what, fix="leave one of them out; `harness data check` lists images that cannot be decoded")
    for setting in settings:
        words = setting.partition("=")[0].strip().split(".")
        if words[0] == "data" and (len(words) < 2 or words[1] not in _CHOICES):
            what = f"--set {setting}: the manifest says which images there are and in which split"
            raise ConfigError(what, where="--manifest", fix="give it to `harness data index`, which makes the splits")


def _whole(path: Path) -> Roster:
    """A manifest with all its columns: what a training on a suite's images reads."""
    from harness.data.manifest import read_manifest

    table = read_manifest(path)
    try:
        return Roster(table, digests_array(table["sha256"]))
    except ValueError as error:
        raise DataError(f"the manifest's column sha256 is damaged ({error})", path, _ANEW) from error


def _check_values(table: pd.DataFrame, path: Path) -> None:
    from harness.data.splits import SPLITS

    strange = sorted(set(map(str, table["split"].unique())) - set(SPLITS))
    labels = np.unique(table["label"].to_numpy())
    if strange or not np.isin(labels, (0, 1)).all():
        what = f"split {strange[0]!r}" if strange else f"labels {labels.tolist()}"
        raise DataError(f"the manifest has {what}; there are {', '.join(SPLITS)}, and labels 0 and 1", path, _ANEW)


def _outside(paths: pd.Series) -> list[str]:
    """Paths that lead out of the root by what is written (where links lead was looked at when they were indexed)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: list[str] = []
    for start in range(0, len(paths), CHUNK):
        part = pa.array(paths.iloc[start : start + CHUNK])
        some = part.filter(pc.or_(pc.starts_with(part, "/"), pc.match_substring(part, "..")))
        found += [path for path in some.to_pylist() if os.path.isabs(path) or ".." in path.split("/")]
    return found


def _check_seen(table: pd.DataFrame, rows: Sequence[PreparedRow], aliases: dict[str, str], path: Path) -> str:
    """What to warn of ("": nothing): images kept from the test for rows that are not in this run.

    Raises:
        DataError: a row is trained on a generator that the manifest has no `train` images of.
    """
    from harness.data.layouts import canonical_name

    made, split, name = table["label"] == 1, table["split"], table["generator"]

    def names(mask: pd.Series) -> set[str]:
        return set(map(str, name[mask].unique()))

    there, apart, trained = names(made), names(made & (split != "report")), names(made & (split == "train"))
    seen: set[str] = set()
    for row in rows:
        needed = {canonical_name(g, aliases) for g in row.trains_on}
        known = {canonical_name(g, aliases) for g in row.trained_on}
        seen |= known
        for generator in sorted((needed - trained) | ((known & there) - apart)):
            what = (
                f"row {row.name!r} is trained on generator {generator!r}, of which the manifest has no `train` images: "
                "it was made for rows that are not trained on it"
            )
            raise DataError(what, path, _ANEW)
    kept = made & (split != "report") & ~name.isin(list(seen))
    if not kept.any():
        return ""
    return (
        f"{int(kept.sum()):,} images of {', '.join(sorted(names(kept)))} are not tested: the manifest was made for "
        "rows trained on them, which are not in this run"
    )

"""The data of a run: its root, its manifest with every file checked once, and its test sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.api.errors import ConfigError, DataError
from harness.api.events import Event, Listener
from harness.engine.frames import Roster
from harness.engine.keys import digest_of
from harness.engine.source import source_digest
from harness.results.digests import digests_array, order_of, row_type, words
from harness.results.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from harness.data.layouts import DataSpec
    from harness.data.splits import Draws, Keys
    from harness.engine.suite import Suite
    from harness.engine.written import Written


@dataclass(frozen=True)
class RunData:
    """Manifest, digests ``[N] S32`` of its rows, test sets, the rows that these name (each image once), notes for the
    record, images left out; the file that the manifest was read of, where there is one."""

    root: Path
    manifest: pd.DataFrame
    images: np.ndarray
    draws: Draws
    cell_rows: np.ndarray
    notes: tuple[str, ...]
    skipped: int
    written: Written | None = None

    def put_manifest(self, path: Path) -> str:
        """Write `manifest.parquet` of the run; its digest.

        Raises:
            DataError: the file that it was read of changed since. StoreError: it cannot be written.
        """
        from harness.data.manifest import manifest_digest, write_manifest

        if self.written is None:
            write_manifest(self.manifest, path)
            return manifest_digest(self.manifest)
        self.written.copy(path)
        return self.written.digest(self.manifest, Roster(self.manifest, self.images).sha256)

    @property
    def cells(self) -> pd.DataFrame:
        """A row an image and test set, as `cells.parquet` has it."""
        return self.draws.frame(self.manifest)


def data_spec(suite: Suite) -> DataSpec:
    """The suite's data section, typed.

    Raises:
        ConfigError: unknown key or a value that cannot be meant.
    """
    from pydantic import ValidationError

    from harness.api.registry import unknown
    from harness.data.layouts import DataSpec

    try:
        return DataSpec.model_validate(suite.data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise unknown("key", str(first["loc"][-1]), list(DataSpec.model_fields), where=f"data.{key}") from None
        place, message = f"data.{key}".rstrip("."), first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{place}: {message}", where=suite.suite) from None


def _check_decodable(
    root: Path, manifest: pd.DataFrame, store: Store, workers: int | None, emit: Listener
) -> list[tuple[int, str]]:
    """Decode every image that no earlier run on this store decoded; (row, fault) of those that cannot be."""
    from harness.api.images import ImageFacts
    from harness.data.facts import read_facts

    checked = store.items(digest_of({"kind": "decodable", "source": source_digest(ImageFacts)}))
    checked.describe({"kind": "decodable"})
    digests = digests_array(manifest["sha256"])
    rows = np.flatnonzero(~checked.stored(digests))
    if len(rows) == 0:
        return []
    paths = manifest["path"].to_numpy()
    label = "check of images"
    emit(Event("stage_start", {"stage": label, "total": len(rows), "stored": len(manifest) - len(rows)}))

    def progress(done: int, total: int) -> None:
        emit(Event("progress", {"stage": label, "done": done, "total": total, "unit": "images"}))

    facts = read_facts(root, [str(paths[r]) for r in rows], look="full", workers=workers, progress=progress)
    good = np.array([not f.fault for f in facts], bool)
    if good.any():
        checked.put(digests[rows[good]], np.ones(int(good.sum()), np.uint8))
    emit(Event("stage_end", {"stage": label, "done": len(rows)}))
    return [(int(r), f.message) for r, f in zip(rows, facts, strict=True) if f.fault]


def rows_of_draws(manifest: pd.DataFrame, images: np.ndarray, draws: Draws) -> np.ndarray:
    """Manifest rows of what is drawn, one row a (sha256, label, generator), in manifest order.

    Of several `report` rows with the same three, the first stands for all, drawn or not. ``images`` are the digests
    ``[N] S32`` of the manifest's rows.
    """
    import pandas as pd

    drawn = np.zeros(len(manifest), bool)
    for rows in draws.rows:
        drawn[rows] = True
    report = np.flatnonzero((manifest["split"] == "report").to_numpy())
    several = report[_repeated(words(images)[report])]
    order = order_of(images[several])
    ranked = images[several[order]]
    image = np.empty(len(several), np.int64)
    image[order] = np.cumsum(np.append(True, ranked[1:] != ranked[:-1])[: len(several)])
    generator = pd.factorize(manifest["generator"].iloc[several])[0].astype(np.int64)
    role = (image * (generator.max(initial=0) + 1) + generator) * 2 + manifest["label"].to_numpy()[several]
    _, first, same = np.unique(role, return_index=True, return_inverse=True)
    wanted = np.zeros(len(first), bool)
    np.logical_or.at(wanted, same, drawn[several])
    drawn[several] = False
    drawn[several[first[wanted]]] = True
    return np.flatnonzero(drawn).astype(row_type(len(drawn)))


def _repeated(values: np.ndarray) -> np.ndarray:
    """Places of the values that stand more than once in a list, ascending."""
    order = np.argsort(values, kind="stable")
    same = values[order[1:]] == values[order[:-1]]
    return np.sort(order[np.append(False, same) | np.append(same, False)]) if same.any() else np.empty(0, np.int64)


def prepare_data(
    suite: Suite, root: Path, store: Store, *, seen: Sequence[str], known: Sequence[str] = (), limit: int | None,
    allow_outside: bool, on_bad_image: str, workers: int | None, emit: Listener,
) -> RunData:  # fmt: skip
    """Everything known of the images before a detector runs; all problems are listed at once.

    Raises:
        DataError: listing every error found (missing folders, short lists, undecodable images, ...).
        ConfigError: the suite's data section cannot be meant.
    """
    from harness.data.manifest import FAULTS, build_manifest
    from harness.data.problems import about, printable, require

    if on_bad_image not in ("stop", "skip"):
        raise ConfigError(f"--on-bad-image {on_bad_image!r}", fix="use stop or skip")
    spec = data_spec(suite)
    emit(Event("note", {"text": f"reading {root}"}))
    result = build_manifest(
        root, spec, seen=seen, known=known, allow_outside=allow_outside, workers=workers, seed=spec.splits.seed,
        on_bad_image="skip" if on_bad_image == "skip" else "stop",
    )  # fmt: skip
    for problem in result.problems:
        if problem.severity == "warning":
            emit(Event("warning", {"text": problem.said()}))
    if any(p.severity == "error" and p.kind not in FAULTS for p in result.problems):
        result.require(root)
    manifest, skipped = result.table, result.skipped
    # a dry run writes nothing, so it has nowhere to keep what it decoded
    faults = [] if store.read_only else _check_decodable(root, manifest, store, workers, emit)
    bad = [f"{manifest['path'].iloc[row]} ({text})" for row, text in faults]
    if on_bad_image == "stop":
        what, fix = "{n} images cannot be decoded", "replace or remove them, or leave them out with --on-bad-image skip"
        require([*result.problems, *about("undecodable", "error", what, str(root), fix, bad, whole=True)], root)
    if faults:
        keep = np.ones(len(manifest), bool)
        keep[[row for row, _ in faults]] = False
        manifest = manifest[keep].reset_index(drop=True)
        skipped += len(faults)
        listed = "".join(f"\n    {printable(name)}" for name in bad)
        emit(Event("warning", {"text": f"{len(bad)} images that cannot be decoded are left out:{listed}"}))
    notes = (*result.notes, *(p.message for p in result.problems))
    return drawn(suite, spec, root, manifest, digests_array(manifest["sha256"]), limit, notes, skipped)


def drawn(
    suite: Suite, spec: DataSpec, root: Path, manifest: pd.DataFrame, images: np.ndarray, limit: int | None,
    notes: tuple[str, ...], skipped: int, *, keys: Keys | None = None, written: Written | None = None,
) -> RunData:  # fmt: skip
    """The data of a run with its test sets drawn; ``keys`` gives digests where the manifest has no such column.

    Raises:
        DataError: there is nothing to test.
    """
    from harness.data.layouts import canonical_name
    from harness.data.splits import draw

    names = None if spec.generators == "all" else [canonical_name(g, spec.aliases) for g in spec.generators]
    count = suite.test.per_generator if limit is None else min(limit, suite.test.per_generator)
    draws = draw(manifest, names, n=count, seed=suite.test.seed, keys=keys)
    if len(draws) == 0:
        raise DataError("there is no generated image to test", where=root, fix="see `harness data check`")
    return RunData(root, manifest, images, draws, rows_of_draws(manifest, images, draws), notes, skipped, written)

"""``fit``: head and threshold of a detector on a user's photographs."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.api.contract import FixedThreshold, Head
from harness.api.errors import ConfigError, DataError, ProtocolError
from harness.api.events import Event, Listener
from harness.results.files import require_writable
from harness.verbs.choose import Chosen, image_paths, named_detector
from harness.verbs.score import Answer, Looked, stream

if TYPE_CHECKING:
    import pandas as pd

    from harness.engine.handle import DetectorHandle
    from harness.engine.stream import Images

CALIBRATION_SHARE = 0.2
"""Of a plain folder's photographs, by hash of the file, where the threshold is calibrated on held-out ones."""


@dataclass(frozen=True)
class FitImages:
    """Photographs in fit order, generated images, and photographs held out for calibration (none: the fit set
    calibrates), with the digests of the photographs and of those held out."""

    clean: list[Path]
    made: list[Path]
    held: list[Path]
    clean_digests: list[str]
    held_digests: list[str]
    notes: tuple[str, ...] = ()


def learns_from_generated(head: Head) -> bool:
    """Whether a head, or one below it, takes generated images (one that names generators cannot do without)."""
    return head.fit_on == "both" or (head.upstream is not None and learns_from_generated(head.upstream))


def _generators(head: Head) -> list[str]:
    below = [] if head.upstream is None else _generators(head.upstream)
    return list(dict.fromkeys([*head.generators, *below]))


def _digest(path: Path) -> str:
    from harness.api.images import read_image_file

    return hashlib.sha256(read_image_file(path)).hexdigest()


def _manifest(root: Path, generators: Sequence[str], skip: bool) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Photographs of a data root in a released layout (and of the generators to learn from), with their splits."""
    from harness.data.layouts import DataSpec
    from harness.data.manifest import build_manifest
    from harness.data.problems import require

    spec = DataSpec(generators=tuple(generators))
    result = build_manifest(root, spec, seen=generators, on_bad_image="skip" if skip else "stop", seed=2024)
    require([p for p in result.problems if generators or p.kind != "no-generators"], root)
    return result.table, (*result.notes, *(p.message for p in result.problems if p.severity == "warning"))


def _from_layout(
    root: Path, handle: DetectorHandle, generated: Path | None, count: int, *, apart: bool, skip: bool, emit: Listener
) -> FitImages:
    """The sets of a suite with default splits and seed: `train` photographs in list order, `select` calibrate."""
    from harness.engine.plan import fit_rows

    wanted = [] if generated is not None else _generators(handle.chain.head)
    table, notes = _manifest(root, wanted, skip)
    paths, digests = table["path"].to_numpy(), table["sha256"].to_numpy()
    dataset = str(table.loc[table["label"] == 0, "dataset"].iloc[0])
    rows = fit_rows(table, dataset, count)
    select = np.flatnonzero(((table["label"] == 0) & (table["split"] == "select")).to_numpy())
    select = select[np.argsort(table["order"].to_numpy()[select], kind="stable")]
    if apart and len(select) == 0:
        raise DataError(f"dataset {dataset!r} has no `select` photographs for held-out calibration", where=root)
    made = np.flatnonzero(((table["label"] == 1) & (table["split"] == "train")).to_numpy())
    made = made[np.lexsort((digests[made], table["generator"].to_numpy()[made]))]
    found = [root / paths[r] for r in made] if generated is None else _by_digest(image_paths([generated], emit))
    held = select if apart else select[:0]
    return FitImages(
        [root / paths[r] for r in rows], found, [root / paths[r] for r in held],
        [str(digests[r]) for r in rows], [str(digests[r]) for r in held], notes,
    )  # fmt: skip


def _by_digest(paths: list[Path]) -> list[Path]:
    return [path for _, path in sorted((_digest(path), path) for path in paths)]


def _from_folder(root: Path, generated: Path | None, count: int, apart: bool, emit: Listener) -> FitImages:
    """Every photograph of a folder in sorted order; a share by hash is held out where the threshold asks for it."""
    from harness.data.splits import hash_share

    paths = image_paths([root], emit)
    digests = [_digest(path) for path in paths]
    first = {digest: index for index, digest in reversed(list(enumerate(digests)))}
    rows = sorted(first.values())
    held: list[int] = []
    if apart:
        shares = hash_share([digests[r] for r in rows], 2024)
        held = [r for r, share in zip(rows, shares, strict=True) if share < CALIBRATION_SHARE]
        rows = [r for r in rows if r not in set(held)]
        if not held or not rows:
            raise DataError("too few photographs to hold some out for calibration", where=root, fix="add photographs")
    rows = rows[:count]
    notes = (f"plain folder: {len(rows):,} photographs fit the head",) + (
        (f"{len(held):,} others, by hash, calibrate the threshold",) if apart else ()
    )
    made = [] if generated is None else _by_digest(image_paths([generated], emit))
    return FitImages(
        [paths[r] for r in rows], made, [paths[r] for r in held], [digests[r] for r in rows],
        [digests[r] for r in held], notes,
    )  # fmt: skip


def _is_layout(root: Path) -> bool:
    from harness.data.layouts import DataSpec, find_layout

    return bool(find_layout(root, DataSpec(generators=())).photographs)


def _sets(
    root: Path, handle: DetectorHandle, generated: Path | None, count: int, *, skip: bool, emit: Listener
) -> FitImages:
    if not root.is_dir():
        raise DataError("the data root is not there", where=root, fix="check --data-root")
    head, rule = handle.chain.head, handle.chain.threshold
    if generated is not None and not learns_from_generated(head):
        raise ConfigError(
            f"the head of {handle.detector.name} learns from photographs alone (with these options)",
            where="--generated", fix="leave --generated out, or see `harness detectors show`",
        )  # fmt: skip
    apart = not isinstance(rule, FixedThreshold) and rule.calibration == "held_out"
    if _is_layout(root):
        return _from_layout(root, handle, generated, count, apart=apart, skip=skip, emit=emit)
    if _generators(head) and generated is None:
        raise ProtocolError(
            f"the head of {handle.detector.name} learns from generated images too", fix="name them with --generated DIR"
        )
    return _from_folder(root, generated, count, apart, emit)


def _features(handle: DetectorHandle, paths: list[Path], looked: Looked, say: Listener) -> tuple[np.ndarray, Images]:
    out = np.full((len(paths), handle.chain.extractor.dim), np.nan, np.float32)

    def take(index: int, values: np.ndarray) -> None:
        out[index] = values

    return out, stream(handle, paths, looked, say, take)


def _next(out: Path, chosen: Chosen) -> str:
    """The line that scores with what was fitted: it names the weights that lie where `score` does not look."""
    words = ["harness", "score", "IMAGES", "--fitted", str(out)]
    root = chosen.weights_root
    paths = [w for w in chosen.weights if w.rpartition("=")[2] != "random"]
    for given in paths:
        if not Path(given.rpartition("=")[2]).resolve().is_relative_to(root.resolve()):
            words += ["--weights", given]
    if root != Path("pretrained"):
        words += ["--weights-root", str(root)]
    return shlex.join(words)


def _set_digest(digests: Sequence[str], keep: np.ndarray) -> str:
    return hashlib.sha256("".join(d for d, kept in zip(digests, keep, strict=True) if kept).encode()).hexdigest()


def fit(
    chosen: Chosen, data_root: Path, generated: Path | None, out: Path, *, count: int = 25_000,
    on_bad_image: str = "stop", workers: int = 2, emit: Listener,
) -> Answer:  # fmt: skip
    """Fit a detector and write its folder. On a data root in a released layout the sets are those of a suite with
    default splits and seed 2024, and what is fitted equals a run's to the bit; a plain folder is fitted on whole.

    Raises:
        HarnessError: no photographs, generated images needed, weights missing, or the folder cannot be written.
    """
    handle = named_detector(chosen)
    if (out / "fitted.json").exists():
        raise ConfigError("a fitted detector is there already", where=out, fix="name another folder with --out")
    require_writable(out / "fitted.json")
    sets = _sets(data_root, handle, generated, count, skip=on_bad_image == "skip", emit=emit)
    for note in sets.notes:
        emit(Event("note", {"text": note}))
    looked = Looked(None, on_bad_image, workers)
    every = [*sets.clean, *sets.made, *sets.held]
    features, images = _features(handle, every, looked, emit)
    keep = np.array([i not in images.faults for i in range(len(every))], bool)
    first, second = len(sets.clean), len(sets.clean) + len(sets.made)
    clean, made, held = (
        features[part][keep[part]] for part in (slice(first), slice(first, second), slice(second, None))
    )
    if len(clean) == 0:
        raise DataError("no photograph to fit on", where=data_root)
    handle.fit_features(clean, made if len(made) else None, held if len(held) else None)
    fitted = _set_digest(sets.clean_digests, keep[:first])
    calibration = (len(clean), fitted)
    if len(held):
        calibration = (len(held), _set_digest(sets.held_digests, keep[second:]))
    elif isinstance(handle.chain.threshold, FixedThreshold):
        calibration = (0, _set_digest([], keep[:0]))
    handle.provenance = {
        "fit_images": len(clean) + len(made), "fit_set": fitted,
        "calibration_images": calibration[0], "calibration_set": calibration[1],
    }  # fmt: skip
    handle.save(out)
    warnings = list(handle.detector.warnings(len(clean)))
    if images.faults:
        warnings.append(f"{len(images.faults)} images could not be decoded and are left out")
    for text in warnings:
        emit(Event("warning", {"text": text}))
    document: dict[str, Any] = {
        "out": str(out), "detector": handle.detector.name, "threshold": handle.threshold, "warnings": warnings,
        **handle.provenance,
    }  # fmt: skip
    rule = f"from {calibration[0]:,} photographs" if calibration[0] else "fixed"
    text = (
        f"wrote {out}: {handle.detector.name} fitted on {document['fit_images']:,} images, threshold "
        f"{handle.threshold:.6g} ({rule})\nnext: {_next(out, chosen)}"
    )
    return Answer(document, text, 3 if images.faults else 0, warnings)

"""Which images and which detector ``fit``, ``score`` and ``embed`` mean."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import ConfigError, DataError, WeightsError
from harness.api.events import Event, Listener
from harness.data.problems import printable

if TYPE_CHECKING:
    from harness.engine.handle import DetectorHandle


@dataclass(frozen=True)
class Chosen:
    """Which detector, as the options of ``fit``, ``score`` and ``embed`` say it."""

    detector: str | None = None
    fitted: Path | None = None
    weights: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    protocol: str = "paper"
    device: str = "auto"
    batch_size: str | None = None
    threads: int | None = None
    weights_root: Path = Path("pretrained")


def image_paths(given: Sequence[Path], emit: Listener) -> list[Path]:
    """Files as they are named, and the images below folders (by name ending, sorted, hidden ones passed over). Links
    are followed; what cannot be (dangling ones, unreadable folders, names that are not UTF-8) is said as a warning.

    Raises:
        DataError: a path is not there, or there is no image at all.
    """
    from harness.api.images import SUFFIXES
    from harness.data.lists import scan_images

    out: list[Path] = []
    for path in given:
        if path.is_dir():
            scan = scan_images(path.resolve(), path.resolve(), allow_outside=True)
            out += [path / file for file in scan.files]
            for problem in scan.problems:
                emit(Event("warning", {"text": problem.said()}))
        elif path.exists():
            out.append(path)
        else:
            raise DataError("no such file or folder", where=printable(str(path)), fix="check the path")
    if not out:
        where = ", ".join(printable(str(p)) for p in given)
        raise DataError("there is no image here", where=where, fix=f"images end in {', '.join(sorted(SUFFIXES))}")
    return out


def slots_of(weights: Sequence[str]) -> str | dict[str, str] | None:
    """What ``--weights`` says: a path or random, or ``SLOT=PATH`` more than once.

    Raises:
        ConfigError: two values without slots.
    """
    pairs = [w.partition("=") for w in weights]
    if len(weights) == 1 and (not pairs[0][1] or Path(weights[0]).exists()):
        return weights[0]
    if not weights:
        return None
    for text, (slot, equals, value) in zip(weights, pairs, strict=True):
        if not equals or not slot or not value:
            raise ConfigError(f"--weights {text!r}", fix="with several, write each as SLOT=PATH")
    return {slot: value for slot, _, value in pairs}


def _batch(text: str | None) -> int | None:
    if text is None or text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--batch-size {text!r}", fix="a whole number of at least 1, or auto")
    return int(text)


def named_detector(chosen: Chosen) -> DetectorHandle:
    """A detector by name with its weights, options, device, threads and batch as the command line says.

    Raises:
        ConfigError, WeightsError: unknown names, or weights that are not there (said from where and where to).
    """
    from harness.api.yamlsafe import parse_yaml
    from harness.engine.execute import with_device
    from harness.engine.handle import load_detector

    if chosen.detector is None:
        raise ConfigError("no detector is named", fix="name one with --detector; `harness detectors list` lists them")
    options: dict[str, Any] = {}
    for setting in chosen.settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip() or key.strip() in ("weights", "detector", "batch_size"):
            raise ConfigError(f"--set {setting!r}", fix="write OPTION=VALUE; `harness detectors show` lists options")
        options[key.strip()] = parse_yaml(f"value: {text}", f"--set {setting}")["value"]
    weights = slots_of(chosen.weights)
    for path in [weights] if isinstance(weights, str) else (weights or {}).values():
        if path.split(":")[0] not in ("random", "recipe") and not Path(path).expanduser().is_file():
            raise WeightsError("weights file not found", where=path, fix="check --weights")
    batch = _batch(chosen.batch_size)
    handle = load_detector(
        chosen.detector,
        weights,
        protocol=chosen.protocol,
        weights_root=chosen.weights_root,
        batch_size=batch,
        **options,
    )
    handle.device = with_device(chosen.device)
    handle.threads = chosen.threads or len(os.sched_getaffinity(0))
    return handle


def _fitted_folder(path: Path, row: str | None) -> Path:
    """The fitted folder that ``--fitted`` means: itself, or a row of a run folder."""
    if (path / "fitted.json").is_file():
        return path
    rows = sorted(p.parent.name for p in (path / "fitted").glob("*/fitted.json"))
    if not rows:
        raise DataError(
            "neither a fitted folder nor a run folder", where=path, fix="`harness fit` and `run` write them"
        )
    if row is None and len(rows) == 1:
        return path / "fitted" / rows[0]
    if row is None or row not in rows:
        what = "which row of the run?" if row is None else f"the run has no fitted row {row!r}"
        raise ConfigError(what, where=path, fix=f"say --detector with one of: {', '.join(rows)}")
    return path / "fitted" / row


def fitted_detector(chosen: Chosen, warn: Callable[[str], None]) -> DetectorHandle:
    """The detector of a fitted folder or of a run's row.

    Raises:
        DataError, ConfigError, WeightsError: no such folder or row, or its weights are not found.
    """
    from harness.engine.execute import with_device
    from harness.engine.handle import load_fitted

    assert chosen.fitted is not None
    if chosen.settings or chosen.batch_size or chosen.threads:
        raise ConfigError("a fitted detector keeps its options, batch size and threads", where="--fitted")
    folder = _fitted_folder(chosen.fitted, chosen.detector)
    device = None if chosen.device == "auto" else with_device(chosen.device)
    handle = load_fitted(folder, list(chosen.weights), weights_root=chosen.weights_root, device=device)
    said = json.loads((folder / "fitted.json").read_text(encoding="utf-8"))
    names = (said["detector"], said.get("row"))
    if chosen.detector is not None and chosen.detector not in names:
        raise ConfigError(f"this is not {chosen.detector!r} but {names[0]!r}", where=folder, fix="leave --detector out")
    fitted_on = said["numerics"].get("device", "cpu")
    if handle.device.split(":")[0] != fitted_on:
        warn(f"fitted on {fitted_on}, scored on {handle.device}: scores agree to about 1e-5, not to the bit")
    return handle


def chosen_detector(chosen: Chosen, warn: Callable[[str], None]) -> DetectorHandle:
    """The detector to score with; fitted, or one that needs no fitting.

    Raises:
        ConfigError: it needs fitting first. Others as the two above.
    """
    if chosen.fitted is not None:
        return fitted_detector(chosen, warn)
    handle = named_detector(chosen)
    if handle.head is None:
        fix = f"`harness fit --detector {chosen.detector} --data-root DIR --out FITTED`, then --fitted FITTED"
        raise ConfigError(f"{chosen.detector} must be fitted to photographs before it scores", fix=fix)
    return handle

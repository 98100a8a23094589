"""``score`` and ``embed``: detectors on a user's own images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.contract import predict
from harness.api.errors import ConfigError, DataError
from harness.api.events import Event, Listener
from harness.data.problems import printable
from harness.verbs.choose import Chosen, chosen_detector, fitted_detector, image_paths, named_detector
from harness.verbs.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from harness.engine.handle import DetectorHandle
    from harness.engine.stream import Images

VERDICTS = {0: "photographic", 1: "generated", -1: "abstain"}


@dataclass(frozen=True)
class Looked:
    """How images are read: faces (``whole``, ``crop``, None: not looked for), faulty files, threads that read."""

    faces: str | None = None
    on_bad_image: str = "stop"
    workers: int = 2


@dataclass
class Answer:
    """What was found: a document for machines, text for people, exit code."""

    document: dict[str, Any]
    text: str
    code: int
    warnings: list[str] = field(default_factory=list)


def listener(*, quiet: bool) -> Listener:
    """Progress on standard error; of warnings alone where machines read the answer."""
    progress = Progress()
    return (lambda event: progress(event) if event.kind == "warning" else None) if quiet else progress


def _stop_on_faults(images: Images) -> None:
    shown = "\n".join(f"    {printable(str(images.paths[i]))}: {why}" for i, why in sorted(images.faults.items()))
    raise DataError(
        f"{len(images.faults)} images cannot be decoded:\n{shown}",
        fix="replace or remove them, or leave them out with --on-bad-image skip",
    )


def stream(
    handle: DetectorHandle,
    paths: Sequence[Path],
    looked: Looked,
    emit: Listener,
    take: Callable[[int, np.ndarray], None],
) -> Images:
    """Give the features of each good image to ``take(position, features)``, in order; what was met on the way.

    Raises:
        DataError: files that cannot be decoded, all of them, unless they are to be skipped.
    """
    from harness.engine.stream import Images, pinned, stream_features

    if looked.on_bad_image not in ("stop", "skip"):
        raise ConfigError(f"--on-bad-image {looked.on_bad_image!r}", fix="use stop or skip")
    stop = looked.on_bad_image == "stop"
    images = Images(paths, handle.chain, handle.edits, looked.faces, rest=stop)
    label = f"features of {handle.detector.name}"
    emit(Event("stage_start", {"stage": label, "total": len(paths)}))
    tensors = images.tensors(looked.workers, 2 * handle.micro_batches[0])
    with pinned(handle.threads):
        found = stream_features(handle.chain, handle.weights, tensors, handle.micro_batches, handle.device)
        for index, features in enumerate(found):
            if index not in images.faults and not (stop and images.faults):
                take(index, features)
            emit(Event("progress", {"stage": label, "done": index + 1, "total": len(paths), "unit": "images"}))
    if images.faults and stop:
        _stop_on_faults(images)
    emit(Event("stage_end", {"stage": label, "done": len(paths)}))
    return images


def _warnings(images: Images, crop: bool) -> list[str]:
    """Of faults that were skipped, and of images with no face or several."""
    out = [f"{printable(str(images.paths[i]))}: left out: {why}" for i, why in sorted(images.faults.items())]
    for index, count in sorted(images.found.items()):
        if count != 1 and index not in images.faults:
            what = "no face found" if count == 0 else f"{count} faces found"
            scored = "the whole image is judged" if count == 0 or not crop else "the largest is judged"
            out.append(f"{printable(str(images.paths[index]))}: {what}; {scored}")
    return out


def score(given: Sequence[Path], chosen: Chosen, looked: Looked, *, emit: Listener) -> Answer:
    """Scores and verdicts of images; exit code 3 where faulty ones were left out.

    Raises:
        HarnessError: no image, no detector, faulty images (all listed).
    """
    import numpy as np

    from harness.engine.fitting import score_features

    paths = image_paths(given, emit)
    handle = chosen_detector(chosen, lambda text: emit(Event("warning", {"text": text})))
    head = handle.head
    assert head is not None
    scores = np.full(len(paths), np.nan)

    def take(index: int, features: np.ndarray) -> None:
        scores[index] = score_features(head, features[None])[0]

    images = stream(handle, paths, looked, emit, take)
    verdicts = predict(scores, handle.threshold)
    warnings = _warnings(images, looked.faces == "crop")
    for text in warnings:
        emit(Event("warning", {"text": text}))
    rows: list[dict[str, Any]] = []
    for index, path in enumerate(paths):
        if index in images.faults:
            continue
        value = float(scores[index])
        row = {"path": printable(str(path)), "score": None if math.isnan(value) else value}
        row["verdict"] = VERDICTS[int(verdicts[index])]
        rows.append({**row, "faces": images.found[index]} if index in images.found else row)
    document = {
        "detector": handle.detector.name, "threshold": handle.threshold, "images": rows, "warnings": warnings,
        "random_weights": any(w.kind == "random" for w in handle.weights.values()),
        "bad_images": [{"path": printable(str(paths[i])), "why": why} for i, why in sorted(images.faults.items())],
    }  # fmt: skip
    return Answer(document, _table(document), 3 if images.faults else 0, warnings)


def _table(document: dict[str, Any]) -> str:
    rows = document["images"]
    width = max((len(row["path"]) for row in rows), default=0)
    lines = [f"{document['detector']}: generated where score > {document['threshold']:.6g}"]
    if document["random_weights"]:
        lines.append("RANDOM WEIGHTS: these verdicts mean nothing")
    for row in rows:
        value = "-" if row["score"] is None else f"{row['score']:.6g}"
        lines.append(f"{row['path']:<{width}}  {value:>12}  {row['verdict']}")
    counts = {name: sum(row["verdict"] == name for row in rows) for name in VERDICTS.values()}
    lines.append(", ".join(f"{count:,} {name}" for name, count in counts.items() if count))
    if document["bad_images"]:
        lines.append(f"{len(document['bad_images'])} images could not be decoded and are left out")
    return "\n".join(lines)


def embed(
    given: Sequence[Path],
    chosen: Chosen,
    looked: Looked,
    out: Path,
    *,
    emit: Listener,
) -> Answer:
    """Write ``features [N, D] float32`` and ``paths [N]`` of images; a row is NaN where the detector abstains.

    Raises:
        HarnessError: as :func:`score`; or the file cannot be written.
    """
    import io

    import numpy as np

    from harness.results.files import require_writable, write_atomic

    if out.suffix != ".npz":
        raise ConfigError("the result is an .npz file", where=out, fix="end --out in .npz")
    require_writable(out)
    paths = image_paths(given, emit)
    handle = named_detector(chosen) if chosen.fitted is None else fitted_detector(chosen, lambda _: None)
    features = np.empty((len(paths), handle.chain.extractor.dim), np.float32)

    def take(index: int, values: np.ndarray) -> None:
        features[index] = values

    images = stream(handle, paths, looked, emit, take)
    keep = np.array([i not in images.faults for i in range(len(paths))])
    names = np.array([printable(str(p)) for p in paths], dtype=np.str_)
    buffer = io.BytesIO()
    np.savez(buffer, features=features[keep], paths=names[keep])
    write_atomic(out, buffer.getvalue())
    warnings = _warnings(images, looked.faces == "crop")
    for text in warnings:
        emit(Event("warning", {"text": text}))
    document = {
        "out": str(out), "detector": handle.detector.name, "features": [int(keep.sum()), features.shape[1]],
        "bad_images": [{"path": str(names[i]), "why": why} for i, why in sorted(images.faults.items())],
    }  # fmt: skip
    text = f"wrote {out}: features {int(keep.sum()):,} x {features.shape[1]}, float32"
    return Answer(document, text, 3 if images.faults else 0, warnings)

"""A detector in Python: features, fit, score, threshold, save and load, with the engine's own batches and heads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from harness.api.contract import Chain, Detector, FitData, FittedHead, FixedThreshold, Head
from harness.api.errors import ConfigError, DataError, ProtocolError, StoreError, WeightsError
from harness.api.protocol import Protocol
from harness.api.registry import make_detector
from harness.api.weights import ResolvedWeights
from harness.data.edits import InputEdits, MatchFormat
from harness.engine.fitting import score_features
from harness.engine.rows import prepare_row
from harness.engine.selfcheck import features_now
from harness.engine.suite import DetectorRow
from harness.results.files import to_json, write_atomic
from harness.results.store import read_head, write_head

Images = Sequence[str | Path | np.ndarray]
CHUNK = 256
"""Images decoded at a time."""
FITTED_KEYS = ("detector", "options", "protocol", "weights", "threshold", "edits", "micro_batches", "numerics")
"""What ``fitted.json`` must hold to be loaded."""


class DetectorHandle:
    """A detector ready to use. Images are paths, or uint8 RGB arrays ``[H, W, 3]``."""

    def __init__(self, detector: Detector, weights: dict[str, ResolvedWeights]) -> None:
        self.detector, self.weights = detector, weights
        self.chain = Chain.of(detector)
        self.head: FittedHead | None = None
        self._threshold: float | None = None
        self.edits = InputEdits()
        self.threads: int | None = None
        self.micro_batches = [*(t.micro_batch for t in self.chain.transforms), self.chain.extractor.micro_batch]
        if self.chain.head.fit_on == "nothing" and isinstance(self.chain.threshold, FixedThreshold):
            self.head = self.chain.head.fit(None, weights)
            self._threshold = self.chain.threshold.value

    def features(self, images: Images) -> np.ndarray:
        """Features ``[N, D]`` float32; a row of NaN where the detector abstains.

        A fitted detector edits images, cuts batches and pins threads as the run did that fitted it.
        """
        parts = [np.empty((0, self.chain.extractor.dim), np.float32)]
        with _threads(self.threads):
            for start in range(0, len(images), CHUNK):
                chunk = images[start : start + CHUNK]
                pixels = [self._pixels(image) for image in chunk]
                beside = [
                    None if isinstance(i, np.ndarray) else self.chain.preprocess.sidecar(Path(i)) for i in chunk
                ]  # fmt: skip
                parts.append(features_now(self.chain, self.weights, pixels, self.micro_batches, beside))
        return np.concatenate(parts)

    def _pixels(self, image: str | Path | np.ndarray) -> np.ndarray:
        from harness.api.images import decode, read_image_file

        if isinstance(image, np.ndarray):
            return self.edits.apply(image)
        return self.edits.apply(decode(read_image_file(Path(image)), name=str(image), rotate=self.edits.rotate))

    def fit(self, photographic: Images, generated: Images | None = None) -> DetectorHandle:
        """Fit head and threshold; returns itself. ``generated`` is needed by heads that learn from both classes.

        Raises:
            ProtocolError: the threshold is calibrated on held-out photographs (use a suite, which has them), or
                generated images are missing.
        """
        rule = self.chain.threshold
        if not isinstance(rule, FixedThreshold) and rule.calibration == "held_out":
            fix = "use the protocol 'paper', or run a suite, whose `select` photographs calibrate"
            raise ProtocolError("fit() has no held-out photographs to calibrate on", fix=fix)
        clean = self.features(photographic)
        made = None if generated is None else self.features(generated)
        self.head = self._fit(self.chain.head, clean, made)
        calibration = score_features(self.head, clean)
        self._threshold = rule.value if isinstance(rule, FixedThreshold) else rule.value(calibration)
        return self

    def _fit(self, head: Head, clean: np.ndarray, made: np.ndarray | None) -> FittedHead:
        above = None if head.upstream is None else self._fit(head.upstream, clean, made)
        if head.fit_on == "nothing":
            return head.fit(None, self.weights)
        parts, labels = [clean], [np.zeros(len(clean), np.int8)]
        if head.fit_on == "both":
            if made is None:
                raise ProtocolError(
                    f"{self.detector.name} learns from generated images too: fit(photographic, generated)"
                )
            parts.append(made)
            labels.append(np.ones(len(made), np.int8))
        order = head.fit_order(sum(len(part) for part in parts))
        features, label = np.concatenate(parts)[order], np.concatenate(labels)[order]
        good = np.isfinite(features).all(axis=1)
        names = ["generated" if value else "" for value in label[good]]
        return head.fit(FitData(features[good], label[good], names, above), self.weights)

    @property
    def threshold(self) -> float:
        """The threshold.

        Raises:
            ProtocolError: not fitted yet.
        """
        if self._threshold is None:
            raise ProtocolError(f"{self.detector.name} is not fitted", fix="call fit() or load a fitted folder")
        return self._threshold

    def score(self, images: Images) -> np.ndarray:
        """Scores ``[N]`` float64, higher = more likely generated, NaN = abstains.

        Raises:
            ProtocolError: not fitted yet.
        """
        if self.head is None:
            raise ProtocolError(f"{self.detector.name} is not fitted", fix="call fit() or load a fitted folder")
        return score_features(self.head, self.features(images))

    def save(self, folder: str | Path) -> Path:
        """Write a fitted folder that :func:`load_fitted` reads (weights are named by digest, not copied)."""
        if self.head is None:
            raise ProtocolError(f"{self.detector.name} is not fitted", fix="call fit() first")
        folder = Path(folder)
        write_head(folder / "head", *self.head.state())
        weights = {
            slot: {"kind": w.kind, "identity": w.identity, "file": w.path.name if w.path else None, "seed": w.seed}
            for slot, w in self.weights.items()
        }
        document = {
            "detector": self.detector.name,
            "row": self.detector.name,
            "options": self.detector.options.model_dump(mode="json"),
            "protocol": self.detector.protocol.model_dump(mode="json"),
            "weights": weights,
            "threshold": self.threshold,
            "edits": self.edits.model_dump(mode="json"),
            "micro_batches": self.micro_batches,
            "numerics": {"threads": self.threads},
        }
        write_atomic(folder / "fitted.json", to_json(document))
        return folder


def load_detector(
    name: str,
    weights: str | None = None,
    *,
    protocol: str = "paper",
    weights_root: str | Path = "pretrained",
    **options: Any,
) -> DetectorHandle:
    """A detector by name; ``weights`` is a path, ``random``, ``random:SEED``, or None for the official file.

    Raises:
        ConfigError: unknown detector or option.
        WeightsError: the weights are not there (says which file, where from, where to put it), or do not fit.
    """
    row = DetectorRow.model_validate({"detector": name, "weights": weights, **options})
    prepared = prepare_row(name, row, Protocol.named(protocol), Path(weights_root))
    if prepared.missing is not None:
        raise WeightsError(prepared.missing, where=f"detector {name}")
    return DetectorHandle(prepared.detector, dict(prepared.weights))


def load_fitted(folder: str | Path, weights: str | Path | None = None) -> DetectorHandle:
    """A fitted detector from its folder (``fitted/<row>`` of a run, or what ``save`` wrote).

    Args:
        folder: the fitted folder.
        weights: the weights file it names by digest; not needed for random weights or none.

    Raises:
        DataError: no fitted folder. WeightsError: the weights file is needed and absent, or has another digest.
    """
    folder = Path(folder)
    try:
        document = json.loads((folder / "fitted.json").read_text(encoding="utf-8"))
        arrays, meta = read_head(folder / "head")
        absent = [key for key in FITTED_KEYS if key not in document]
    except (OSError, ValueError, TypeError, StoreError) as error:
        raise DataError(f"not a fitted detector: {error}", where=folder) from error
    if absent:
        raise DataError(f"not a fitted detector: fitted.json lacks {', '.join(absent)}", where=folder)
    switches = document["protocol"]
    detector = make_detector(document["detector"], document["options"], Protocol.model_validate(switches))
    handle = DetectorHandle.__new__(DetectorHandle)
    handle.detector, handle.chain = detector, Chain.of(detector)
    handle.weights = {slot: _weights(slot, said, weights) for slot, said in document["weights"].items()}
    handle.head = handle.chain.head.fitted_class.restore(arrays, meta)
    handle._threshold = float(document["threshold"])
    handle.edits = _edits(document["edits"])
    handle.threads, handle.micro_batches = document["numerics"]["threads"], document["micro_batches"]
    return handle


def _edits(said: dict[str, Any]) -> InputEdits:
    match = said.get("match_format")
    matched = None if match is None else MatchFormat(size=match["size"], quality=match["quality"])
    return InputEdits(rotate=bool(said.get("rotate", False)), match_format=matched)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Torch's intra-op threads inside; as before outside."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _weights(slot: str, said: dict[str, Any], given: str | Path | None) -> ResolvedWeights:
    from harness.api.weights import file_digest

    if said["kind"] == "random":
        return ResolvedWeights("random", said["identity"], seed=int(said["seed"]))
    if given is None:
        raise WeightsError(f"slot {slot!r} needs its weights file {said['file']}", fix="pass weights=PATH")
    path = Path(given)
    digest = file_digest(path)
    if said["kind"] == "file" and digest != said["identity"]:
        raise WeightsError(f"this is not the file the detector was fitted with ({said['identity'][:12]})", where=path)
    if said["kind"] not in ("file", "recipe"):
        raise ConfigError(f"weights of kind {said['kind']!r}", where=slot)
    return ResolvedWeights("file", digest, path=path)

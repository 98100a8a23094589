"""A detector in Python: features, fit, score, threshold, save and load, with the engine's own batches and heads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.api.contract import Abstain, Chain, Detector, FitData, FittedHead, FixedThreshold, Head
from harness.api.errors import ConfigError, DataError, ProtocolError, StoreError, WeightsError
from harness.api.protocol import Protocol
from harness.api.registry import make_detector
from harness.api.weights import ResolvedWeights
from harness.data.edits import InputEdits, MatchFormat
from harness.engine.bundled import Places
from harness.engine.fitted import check_document, check_fits
from harness.engine.fitting import score_features
from harness.engine.rows import prepare_row
from harness.engine.stream import pinned, stream_features
from harness.engine.suite import DetectorRow
from harness.results.files import to_json, write_atomic
from harness.results.store import read_head, write_head

if TYPE_CHECKING:
    from torch import Tensor

Images = Sequence[str | Path | np.ndarray]


class DetectorHandle:
    """A detector ready to use. Images are paths, or uint8 RGB arrays ``[H, W, 3]``."""

    def __init__(self, detector: Detector, weights: dict[str, ResolvedWeights]) -> None:
        self.detector, self.weights = detector, weights
        self.chain = Chain.of(detector)
        self.head: FittedHead | None = None
        self._threshold: float | None = None
        self.edits = InputEdits()
        self.device = "cpu"
        self.threads: int | None = None
        self.provenance: dict[str, Any] = {}
        self.micro_batches = [*(t.micro_batch for t in self.chain.transforms), self.chain.extractor.micro_batch]
        if self.chain.head.fit_on == "nothing" and isinstance(self.chain.threshold, FixedThreshold):
            self.head = self.chain.head.fit(None, weights)
            self._threshold = self.chain.threshold.value

    def features(self, images: Images) -> np.ndarray:
        """Features ``[N, D]`` float32; a row of NaN where the detector abstains.

        A fitted detector edits images, cuts batches and pins threads as the run did that fitted it.
        """
        out = np.empty((len(images), self.chain.extractor.dim), np.float32)
        tensors = (self._tensor(image) for image in images)
        with pinned(self.threads):
            found = stream_features(self.chain, self.weights, tensors, self.micro_batches, self.device)
            for row, value in zip(out, found, strict=True):
                row[:] = value
        return out

    def _tensor(self, image: str | Path | np.ndarray) -> Tensor | None:
        beside = None if isinstance(image, np.ndarray) else self.chain.preprocess.sidecar(Path(image))
        try:
            return self.chain.preprocess(self._pixels(image), beside)
        except Abstain:
            return None

    def _pixels(self, image: str | Path | np.ndarray) -> np.ndarray:
        from harness.api.images import decode, read_image_file

        if isinstance(image, np.ndarray):
            return self.edits.apply(image)
        return self.edits.apply(decode(read_image_file(Path(image)), name=str(image), rotate=self.edits.rotate))

    def fit(
        self, photographic: Images, generated: Images | None = None, held_out: Images | None = None
    ) -> DetectorHandle:
        """Fit head and threshold; returns itself.

        Args:
            photographic: the fit set, in order.
            generated: needed by heads that learn from both classes.
            held_out: photographs that calibrate the threshold where its rule says so.

        Raises:
            ProtocolError: the threshold is calibrated on held-out photographs and there are none, or generated
                images are missing.
        """
        rule = self.chain.threshold
        apart = not isinstance(rule, FixedThreshold) and rule.calibration == "held_out"
        if apart and not held_out:
            fix = "give held_out=IMAGES, use the protocol 'paper', or run a suite, whose `select` photographs calibrate"
            raise ProtocolError("fit() has no held-out photographs to calibrate on", fix=fix)
        return self.fit_features(
            self.features(photographic),
            None if generated is None else self.features(generated),
            self.features(held_out) if apart and held_out is not None else None,
        )

    def fit_features(
        self, clean: np.ndarray, made: np.ndarray | None = None, calibration: np.ndarray | None = None
    ) -> DetectorHandle:
        """Fit head and threshold on features ``[N, D]`` as a run does; ``calibration`` is ``clean`` unless given."""
        from threadpoolctl import threadpool_limits

        rule = self.chain.threshold
        with threadpool_limits(limits=self.threads):
            head = self._fit(self.chain.head, clean, made)
        self.head = type(head).restore(*head.state())
        scores = score_features(self.head, clean if calibration is None else calibration)
        self._threshold = rule.value if isinstance(rule, FixedThreshold) else rule.value(scores)
        return self

    def _fit(self, head: Head, clean: np.ndarray, made: np.ndarray | None) -> FittedHead:
        above = None if head.upstream is None else self._fit(head.upstream, clean, made)
        if head.fit_on == "nothing":
            return head.fit(None, self.weights)
        parts, labels = [clean], [np.zeros(len(clean), np.int8)]
        if head.fit_on == "both":
            if made is None and head.generators:
                raise ProtocolError(
                    f"{self.detector.name} learns from generated images too: fit(photographic, generated)"
                )
            if made is not None:
                parts.append(made)
                labels.append(np.ones(len(made), np.int8))
        order = head.fit_order(sum(len(part) for part in parts))
        features, label = np.concatenate(parts)[order], np.concatenate(labels)[order]
        good = np.isfinite(features).all(axis=1)
        if not good.any():
            raise ProtocolError(f"{self.detector.name} abstains on every image of the fit set")
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
            "numerics": {"threads": self.threads, "device": self.device.split(":")[0]},
            **self.provenance,
        }
        write_atomic(folder / "fitted.json", to_json(document))
        return folder


def load_detector(
    name: str,
    weights: str | Mapping[str, str] | None = None,
    *,
    protocol: str = "paper",
    weights_root: str | Path = "pretrained",
    **options: Any,
) -> DetectorHandle:
    """A detector by name; ``weights`` is a path, ``random``, ``random:SEED``, a mapping from slots to these, or None
    for the official files. ``options`` are the detector's own, and ``batch_size``.

    Raises:
        ConfigError: unknown detector or option.
        WeightsError: the weights are not there (says which file, where from, where to put it), or do not fit.
    """
    said = dict(weights) if isinstance(weights, Mapping) else weights
    row = DetectorRow.model_validate({"detector": name, "weights": said, **options})
    prepared = prepare_row(name, row, Protocol.named(protocol), Path(weights_root))
    if prepared.missing is not None:
        raise WeightsError(prepared.missing, where=f"detector {name}")
    if prepared.recipes:
        fix = "run a suite with it, and take the weights from the run's fitted folder"
        raise ConfigError("a recipe is trained by a run", where=f"detector {name}", fix=fix)
    handle = DetectorHandle(prepared.detector, dict(prepared.weights))
    if prepared.batch_size is not None:
        size = prepared.batch_size
        handle.micro_batches = [1 if own == 1 else size for own in handle.micro_batches]
    return handle


def load_fitted(
    folder: str | Path,
    weights: str | Path | Sequence[str | Path] | None = None,
    *,
    weights_root: str | Path | None = None,
    device: str | None = None,
) -> DetectorHandle:
    """A fitted detector from its folder (``fitted/<row>`` of a run, or what ``save`` wrote).

    Args:
        folder: the fitted folder.
        weights: the weights file (or files) it names by digest; not needed where they are random, none, or in the
            folder itself.
        weights_root: where they are looked for by digest otherwise.
        device: None takes the kind it was fitted on, where torch sees one, else the CPU.

    Raises:
        DataError: no fitted folder. WeightsError: a weights file is needed and absent, or has another digest.
    """
    folder = Path(folder)
    try:
        document = json.loads((folder / "fitted.json").read_text(encoding="utf-8"))
        arrays, meta = read_head(folder / "head")
    except (OSError, ValueError, TypeError, StoreError) as error:
        raise DataError(f"not a fitted detector: {error}", where=folder) from error
    protocol = check_document(document, folder)
    detector = make_detector(document["detector"], document["options"], protocol)
    handle = DetectorHandle.__new__(DetectorHandle)
    handle.detector, handle.chain = detector, Chain.of(detector)
    check_fits(document, handle.chain, folder)
    given = [weights] if isinstance(weights, str | Path) else list(weights or ())
    places = Places(folder, tuple(Path(g) for g in given), None if weights_root is None else Path(weights_root))
    handle.weights = {slot: places.find(slot, said) for slot, said in document["weights"].items()}
    places.require_used(handle.weights.values())
    handle.head = handle.chain.head.fitted_class.restore(arrays, meta)
    handle._threshold = float(document["threshold"])
    handle.edits = _edits(document["edits"])
    handle.threads, handle.micro_batches = document["numerics"]["threads"], document["micro_batches"]
    handle.device = device or _device(document["numerics"].get("device", "cpu"))
    kept = ("fit_images", "fit_set", "calibration_images", "calibration_set")
    handle.provenance = {key: document[key] for key in kept if key in document}
    return handle


def _edits(said: dict[str, Any]) -> InputEdits:
    match = said.get("match_format")
    matched = None if match is None else MatchFormat(size=match["size"], quality=match["quality"])
    return InputEdits(rotate=bool(said.get("rotate", False)), match_format=matched)


def _device(said: str) -> str:
    if said == "cpu":
        return said
    import torch

    return said if getattr(torch, said, None) is not None and getattr(torch, said).is_available() else "cpu"

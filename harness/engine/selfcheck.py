"""Checks any detector with stated random weights on a few made images: does it keep the contract?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harness.api.contract import (
    Abstain,
    Chain,
    Extractor,
    FitData,
    FittedHead,
    FixedThreshold,
    Head,
    Transform,
)
from harness.api.registry import make_detector
from harness.api.weights import ResolvedWeights
from harness.engine.fitting import score_features
from harness.engine.inline import batches, forward
from harness.engine.source import closure
from harness.results.store import read_head, write_head

SEED = 7
IMAGES = 24


@dataclass
class CheckResult:
    """What was found of one detector: named checks that passed, and faults."""

    name: str
    passed: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No fault."""
        return not self.faults

    def expect(self, what: str, holds: bool, detail: str = "") -> None:
        """Note a check."""
        if holds:
            self.passed.append(what)
        else:
            self.faults.append(f"{what}: {detail}" if detail else what)


def made_images(count: int = IMAGES, side: int = 160) -> list[np.ndarray]:
    """Smooth coloured noise, uint8 ``[side, side, 3]``, the same for every caller."""
    rng = np.random.default_rng(SEED)
    coarse = rng.random((count, 8, 8, 3))
    fine = np.repeat(np.repeat(coarse, side // 8, axis=1), side // 8, axis=2)
    noisy = 255 * fine + rng.normal(0, 8, fine.shape)
    return list(noisy.clip(0, 255).round().astype(np.uint8))


def features_now(
    chain: Chain,
    weights: Mapping[str, ResolvedWeights],
    images: Sequence[np.ndarray],
    batch: int | Sequence[int],
    sidecars: Sequence[Path | None] | None = None,
) -> np.ndarray:
    """Features ``[N, D]`` of pixels in memory, computed as a run computes them; NaN: abstains.

    Args:
        chain, weights: the detector.
        images: uint8 RGB ``[H, W, 3]``.
        batch: the micro-batch size, or one for each transform and the extractor.
        sidecars: the file beside each image that the preprocess asks for.
    """
    import torch

    stages: tuple[Transform | Extractor, ...] = (*chain.transforms, chain.extractor)
    sizes = [batch] * len(stages) if isinstance(batch, int) else list(batch)
    tensors: list[torch.Tensor | None] = []
    for index, pixels in enumerate(images):
        try:
            tensors.append(chain.preprocess(pixels, None if sidecars is None else sidecars[index]))
        except Abstain:
            tensors.append(None)
    for stage, size in zip(stages, sizes, strict=True):
        run, results = stage.load(weights, "cpu"), []
        for part in batches(((b"", tensor) for tensor in tensors), size):
            results += forward(run, part, stage, size, "cpu")
        tensors = [None if value is None else torch.from_numpy(np.array(value)) for value in results]
    out = np.full((len(images), chain.extractor.dim), np.nan, np.float32)
    for row, value in zip(out, tensors, strict=True):
        if value is not None:
            row[:] = value.numpy()
    return out


def _fit(chain: Chain, features: np.ndarray, weights: dict[str, ResolvedWeights]) -> FittedHead:
    def fitted(head: Head) -> FittedHead:
        above = None if head.upstream is None else fitted(head.upstream)
        if head.fit_on == "nothing":
            return head.fit(None, weights)
        labels = np.zeros(len(features), np.int8)
        if head.fit_on == "both":
            labels[len(labels) // 2 :] = 1
        names = ["made" if label else "" for label in labels]
        return head.fit(FitData(features, labels, names, above), weights)

    return fitted(chain.head)


def check_detector(name: str) -> CheckResult:
    """Finite, deterministic, batch invariant, fitted and restored alike, with random weights of seed 7.

    Where a head needs more images than are made here (a mixture of many components), it is fitted on drawn
    features of the right width instead.

    Raises:
        ConfigError, PluginError: no such detector, or its chain cannot be built.
    """
    result = CheckResult(name)
    chain = Chain.of(make_detector(name))
    try:
        _check_chain(result, chain)
    except Exception as error:  # a plugin can fail in any way; that is what is looked for here
        first = (str(error).splitlines() or [""])[0]
        result.expect("runs to the end", False, f"{type(error).__name__}: {first}")
    return result


def _check_chain(result: CheckResult, chain: Chain) -> None:
    weights = {s: ResolvedWeights("random", f"random:{SEED}", seed=SEED, label="random") for s in chain.slots}
    images = made_images()
    batch = chain.extractor.micro_batch
    first = features_now(chain, weights, images, min(batch, 8))
    finite = np.isfinite(first).all(axis=1)
    result.expect("shape", first.shape == (len(images), chain.extractor.dim), str(first.shape))
    result.expect("finite or abstains on whole rows", bool((finite | np.isnan(first).all(axis=1)).all()))
    again = features_now(chain, weights, images, min(batch, 8))
    result.expect("deterministic", np.array_equal(first, again, equal_nan=True))
    order = np.random.default_rng(SEED).permutation(len(images))
    shuffled = features_now(chain, weights, [images[i] for i in order], min(batch, 8))
    result.expect(
        "independent of order and companions, to the bit", np.array_equal(first[order], shuffled, equal_nan=True)
    )
    alone = features_now(chain, weights, images[:4], 1)
    scale = max(1.0, float(np.nanmax(np.abs(first))) if finite.any() else 1.0)
    gap = float(np.nanmax(np.abs(alone - first[:4]))) / scale if finite[:4].any() else 0.0
    result.expect("batch of 1 equals batch of 8 to 1e-5", gap <= 1e-5, f"{gap:.1e}")
    _check_head(result, chain, weights, first[finite])


def _check_head(result: CheckResult, chain: Chain, weights: dict[str, ResolvedWeights], features: np.ndarray) -> None:
    rng = np.random.default_rng(SEED)
    drawn = rng.standard_normal((400, chain.extractor.dim)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    head = _fit(chain, drawn, weights)
    use = features if len(features) else drawn[:8]
    scores = score_features(head, use)
    result.expect("one finite score an image", scores.shape == (len(use),) and bool(np.isfinite(scores).all()))
    rows = np.array([score_features(head, use[i : i + 1])[0] for i in range(len(use))])
    result.expect("scores row by row equal, to the bit", np.array_equal(scores, rows))
    with tempfile.TemporaryDirectory() as folder:
        write_head(Path(folder) / "head", *head.state())
        restored = type(head).restore(*read_head(Path(folder) / "head"))
    result.expect("saved and restored alike, to the bit", np.array_equal(scores, score_features(restored, use)))
    rule = chain.threshold
    value = rule.value if isinstance(rule, FixedThreshold) else rule.value(score_features(head, drawn))
    result.expect("threshold is a number", bool(np.isfinite(value)))


def source_modules(name: str) -> list[str]:
    """Modules whose source is in the key of a detector's features."""
    return list(closure(type(Chain.of(make_detector(name)).extractor)))

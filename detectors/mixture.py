"""What detectors have in common that fit a mixture of Gaussians to a frozen network's features of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from harness.api.contract import Detector, DetectorOptions, Head, Preprocess, QuantileThreshold, ThresholdRule
from harness.api.heads import MixtureHead, mixture_parameters
from harness.api.preprocess import CLIP_MEAN, CLIP_STD, CenterCrop, Normalise, Resize, TensorResize

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

Framing = Literal["squash", "shorter_side", "crop"]


@dataclass(frozen=True)
class FramedPreprocess(Preprocess):
    """`size`×`size` pixels of an image, with CLIP's mean and deviation.

    Attributes:
        framing: `squash`: the float tensor resized bilinearly, aspect ratio ignored (AIGFD_EXIF at 38033ae).
            `shorter_side`: Pillow's bicubic resize of the shorter side, then the centre (OpenAI's `_transform`).
            `crop`: the centre at the image's own resolution; black is added where it is smaller.
        size: side of the result.
        antialias: of `squash` (FIDELITY `resize_antialias`); `shorter_side` always is, `crop` has no resize.
    """

    framing: Framing
    size: int = 224
    antialias: bool = False

    def __call__(self, pixels: np.ndarray, sidecar: Path | None = None) -> Tensor:
        """`[3, size, size]` float32 of pixels `[H, W, 3]` uint8."""
        normalise = Normalise(CLIP_MEAN, CLIP_STD)
        if self.framing == "squash":
            return normalise(TensorResize(self.size, self.antialias)(pixels))
        if self.framing == "shorter_side":
            pixels = Resize(self.size, "bicubic")(pixels)
        return normalise(CenterCrop(self.size)(pixels))


class MixtureOptions(DetectorOptions):
    """Options that all these detectors have.

    Attributes:
        components: Gaussians in the mixture of photographs.
        normalise: scale features to unit norm before the mixture, as BLADES does.
        seed: of the mixture's k-means++ start.
        fpr: share of the calibration photographs that the threshold rejects.
    """

    components: int = Field(default=10, ge=1)
    normalise: bool = True
    seed: int = 2024
    fpr: float = Field(default=0.05, gt=0, lt=1)


class MixtureDetector(Detector):
    """Head, threshold and warnings; subclasses give the facts, the preprocess and the extractor."""

    Options = MixtureOptions
    options: MixtureOptions

    def head(self) -> Head:
        """The mixture of photographs' features; score = −log p."""
        return MixtureHead(
            components=self.options.components,
            normalise=self.options.normalise,
            seed=self.options.seed,
            order=self.protocol.gmm_fit_order,
        )

    def threshold(self) -> ThresholdRule:
        """The quantile that rejects the share `fpr` of the calibration photographs (in_sample as released)."""
        return QuantileThreshold(self.options.fpr, self.protocol.threshold)

    def warnings(self, fit_images: int) -> Sequence[str]:
        """Says when photographs are few for the mixture: less than 2·D a component (METHOD "OC")."""
        return few_photographs(fit_images, self.options.components, self.extractor().dim, self.protocol.threshold)


def few_photographs(
    images: int, components: int, dim: int, calibration: Literal["in_sample", "held_out"]
) -> tuple[str, ...]:
    """A warning, or none, of a mixture of `components` on `images` photographs of `dim` features.

    Fewer than 2·`dim` photographs a component are few: the paper's own 25,000 are 3.3·D, and with 3,000 (0.4·D)
    no unseen photograph was kept by the in-sample threshold.
    """
    if images >= 2 * dim * components:
        return ()
    in_sample = (
        "; the in-sample threshold will reject far more than its share of unseen photographs "
        "(protocol clean calibrates on held-out ones)"
    )
    return (
        f"{images} photographs are few for {components} components of "
        f"{mixture_parameters(1, dim):,} parameters each (D = {dim}){in_sample if calibration == 'in_sample' else ''}",
    )

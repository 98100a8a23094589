"""BLADES-OC: a Gaussian mixture of photographs' features; what is unlike them is called generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from detectors.blades.config import EncoderConfig
from detectors.blades.image_tower import BladesImageTower, BladesPreprocess
from harness.api.contract import (
    Detector,
    DetectorOptions,
    Extractor,
    Facts,
    Head,
    Preprocess,
    QuantileThreshold,
    ThresholdRule,
    WeightsFile,
)
from harness.api.heads import MixtureHead, mixture_parameters

CITATION = (
    "Mian Zou, Nan Zhong, Baosheng Yu, Yibing Zhan, Kede Ma: Bi-Level Optimization for Self-Supervised "
    "AI-Generated Face Detection. ICCV 2025, pages 18959-18968."
)
CODE = "https://github.com/MZMMSEC/AIGFD_BLO (read at 5f26ede)"


class BladesOptions(DetectorOptions):
    """Options that both BLADES detectors have.

    Attributes:
        encoder: size of the encoder; must be that of the weights.
        image_size: side that images are resized to; the paper: 224.
        components: Gaussians in the mixture of photographs.
        seed: of the mixture's k-means++ start.
    """

    encoder: Literal["paper", "demo", "tiny"] = "paper"
    image_size: int = Field(default=224, ge=32, le=1024)
    components: int = Field(default=10, ge=1)
    seed: int = 2024


class OneClassOptions(BladesOptions):
    """Options of BLADES-OC: `fpr` is the share of calibration photographs that the threshold rejects."""

    fpr: float = Field(default=0.05, gt=0, lt=1)


class BladesDetector(Detector):
    """The stages that both BLADES detectors have: equal options give equal stages, and so shared features."""

    options: BladesOptions

    def preprocess(self) -> Preprocess:
        """Whole image, 224×224, without antialias unless the protocol says otherwise."""
        return BladesPreprocess(self.options.image_size, self.protocol.resize_antialias)

    def extractor(self) -> Extractor:
        """The frozen image tower."""
        return BladesImageTower(self.options.encoder)

    def mixture(self) -> MixtureHead:
        """The mixture of photographs: OC's head, and what ranks BC's pseudo-outliers."""
        return MixtureHead(
            components=self.options.components, seed=self.options.seed, order=self.protocol.gmm_fit_order
        )


class BladesOC(BladesDetector):
    """BLADES-OC (METHOD "Detection")."""

    name = "blades-oc"
    facts = Facts(
        title="BLADES-OC",
        citation=CITATION,
        code=CODE,
        licence="Apache-2.0 (code); weights without a stated licence; training data FDF CC BY-NC-SA 2.0",
        published_row="BLADES-OC",
        notes=("fitted on the first 25,000 photographs of the CelebA-HQ training list; sees no generated image",),
    )
    Options = OneClassOptions
    weights_files: ClassVar = {
        "weights": WeightsFile(
            name="blades/OC.pth",
            where="https://pan.baidu.com/s/19aB91CXXBZEe9X9e3expnQ?pwd=6irr (OC-GMM in the authors' README)",
            licence="not stated; code Apache-2.0",
        )
    }
    options: OneClassOptions

    def head(self) -> Head:
        """The mixture; score = −log p."""
        return self.mixture()

    def threshold(self) -> ThresholdRule:
        """The quantile that rejects the share `fpr` of the calibration photographs (in_sample as released)."""
        return QuantileThreshold(self.options.fpr, self.protocol.threshold)

    def warnings(self, fit_images: int) -> Sequence[str]:
        """Says when photographs are few for the mixture: less than 2·D a component (METHOD "OC").

        The paper's own 25,000 are 3.3·D a component; with 3,000 (0.4·D) no unseen photograph was kept.
        """
        dim = EncoderConfig.named(self.options.encoder).feature_dim
        if fit_images >= 2 * dim * self.options.components:
            return ()
        in_sample = (
            "; the in-sample threshold will reject far more than its share of unseen photographs "
            "(protocol clean calibrates on held-out ones)"
        )
        return (
            f"{fit_images} photographs are few for {self.options.components} components of "
            f"{mixture_parameters(1, dim):,} parameters each (D = {dim})"
            f"{in_sample if self.protocol.threshold == 'in_sample' else ''}",
        )

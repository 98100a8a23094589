"""CNND: a ResNet-50 trained on one GAN's images with blur and JPEG augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from detectors.logit import NativeResNetLogit, ResNetLogit, SigmoidHead
from harness.api.contract import (
    Detector,
    DetectorOptions,
    Extractor,
    Facts,
    FixedThreshold,
    Head,
    Preprocess,
    ThresholdRule,
    WeightsFile,
)
from harness.api.preprocess import IMAGENET_MEAN, IMAGENET_STD, CenterCrop, Normalise

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor


class CnndOptions(DetectorOptions):
    """Options of CNND.

    Attributes:
        crop: `center` cuts the middle out (the paper's numbers); `none` keeps the image whole at its own size (the
            authors' later advice, with higher accuracy).
        crop_size: side of that middle; smaller images get a black border.
        network: `resnet50`, the official one, or `small`, for trainings on a CPU.
    """

    crop: Literal["center", "none"] = "center"
    crop_size: int = Field(default=224, ge=32, le=2048)
    network: Literal["resnet50", "small"] = "resnet50"


@dataclass(frozen=True)
class CnndPreprocess(Preprocess):
    """No resize; the middle `crop` × `crop` pixels (None: all of them), then ImageNet's mean and deviation.

    Source: CNNDetection at ea0b562, demo_dir.py and data/datasets.py.
    """

    crop: int | None = 224

    def __call__(self, pixels: np.ndarray, sidecar: Path | None = None) -> Tensor:
        """`[3, crop, crop]`, or `[3, H, W]`, float32 of pixels `[H, W, 3]` uint8."""
        image = pixels if self.crop is None else CenterCrop(self.crop)(pixels)
        return Normalise(IMAGENET_MEAN, IMAGENET_STD)(image)


class Cnnd(Detector):
    """CNND (Wang et al., CVPR 2020): score = p(generated)."""

    name = "cnnd"
    facts = Facts(
        title="CNND",
        citation=(
            "Sheng-Yu Wang, Oliver Wang, Richard Zhang, Andrew Owens, Alexei A. Efros: CNN-Generated Images Are "
            "Surprisingly Easy to Spot... for Now. CVPR 2020."
        ),
        code="https://github.com/PeterWang512/CNNDetection (read at ea0b562)",
        licence="CC BY-NC-SA 4.0 (code and weights)",
        published_row="CNND",
        notes=(
            "the released weights were trained on ProGAN against LSUN; those of blur_jpg_prob0.1.pth can be named too",
            "the paper's row was probably retrained on faces (99.89 % on VQGAN, about chance elsewhere)",
            "of a face larger than 224 pixels, crop: center sees the middle only",
        ),
    )
    Options = CnndOptions
    weights_files: ClassVar = {
        "weights": WeightsFile(
            name="cnnd/blur_jpg_prob0.5.pth",
            where="the Dropbox link in weights/download_weights.sh of the authors' repository",
            licence="CC BY-NC-SA 4.0",
        )
    }
    options: CnndOptions

    def preprocess(self) -> Preprocess:
        """The middle of the image, or all of it."""
        return CnndPreprocess(self.options.crop_size if self.options.crop == "center" else None)

    def extractor(self) -> Extractor:
        """The network's logit; one image at a time where they keep their own sizes."""
        kind = ResNetLogit if self.options.crop == "center" else NativeResNetLogit
        return kind(self.options.network)

    def head(self) -> Head:
        """The logit's sigmoid."""
        return SigmoidHead()

    def threshold(self) -> ThresholdRule:
        """0.5, the authors'."""
        return FixedThreshold(0.5)

"""LGrad: a GAN discriminator's gradient with respect to the image, as an image, classified by a ResNet-50."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from detectors.logit import ResNetLogit, SigmoidHead
from harness.api.contract import (
    Detector,
    DetectorOptions,
    Extractor,
    Facts,
    FixedThreshold,
    Head,
    Preprocess,
    ThresholdRule,
    Transform,
    Weights,
    WeightsFile,
)
from harness.api.preprocess import IMAGENET_MEAN, IMAGENET_STD, Normalise, Resize

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from torch import Tensor

SIDE = 256
"""Side of the images that the discriminator was trained on, and of the gradient images."""
DISCRIMINATOR_PARAMETERS = 23_052_353
"""Weights and biases in the discriminator's file; the six `input` layers of smaller images are never used."""


class LgradOptions(DetectorOptions):
    """Options of LGrad.

    Attributes:
        filter: Pillow's filter for the resize to 256×256. The released data was probably made by the TensorFlow
            script with Pillow's default (bicubic since Pillow 7); the authors' PyTorch script says bilinear. With
            random weights the two move the gradient image by 3 to 5 grey levels on average.
    """

    filter: Literal["bicubic", "bilinear"] = "bicubic"


@dataclass(frozen=True)
class LgradPreprocess(Preprocess):
    """The whole image at 256×256, aspect ratio ignored, values in [−1, 1].

    Source: LGrad at 7cb5973, img2gad_pytorch/gen_imggrad.py.
    """

    filter: str = "bicubic"

    def __call__(self, pixels: np.ndarray, sidecar: Path | None = None) -> Tensor:
        """`[3, 256, 256]` float32 of pixels `[H, W, 3]` uint8."""
        half = (0.5, 0.5, 0.5)
        return Normalise(half, half)(Resize((SIDE, SIDE), self.filter)(pixels))


@dataclass(frozen=True)
class GradientImage(Transform):
    """The discriminator's gradient with respect to the image, its minimum at 0 and its maximum at 255.

    Kept as 8 bits, as the authors' PNG files are (the smallest of all channels and pixels becomes 0, the largest
    255, rounded half to even; a constant gradient gives 0). Each image by itself, as with the authors' batch of 1.
    Some pixels' values turn on the sign of a leaky ReLU's input, and so on rounding: another machine may differ
    by a few grey levels in some tenths of a per cent of them.
    """

    slots: ClassVar[tuple[str, ...]] = ("discriminator",)
    micro_batch: ClassVar[int] = 1
    map_bytes: ClassVar[int] = 3 * SIDE * SIDE
    num_parameters = DISCRIMINATOR_PARAMETERS

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """A function: images `[B, 3, 256, 256]` float32 in [−1, 1] → maps of that shape, uint8.

        Raises:
            WeightsError: the file is absent, unsafe, or does not fit the discriminator.
        """
        import torch

        from detectors.networks.stylegan_discriminator import StyleGanDiscriminator

        source = weights["discriminator"]
        if source.kind == "random":
            network = StyleGanDiscriminator.seeded(source.seed)
        else:
            network = StyleGanDiscriminator.from_genforce(source.tensors(), source.path or source.label)
        network = network.to(device)

        def one(image: Tensor) -> Tensor:
            gradient = network.gradient(image)
            gradient = gradient - gradient.min()
            largest = gradient.max()
            if largest != 0:
                gradient = gradient / largest
            return (gradient * 255).round().to(torch.uint8)

        return lambda images: torch.stack([one(image) for image in images.to(device)])


@dataclass(frozen=True)
class GradientLogit(ResNetLogit):
    """A ResNet-50's logit of a gradient image at its own 256×256, with ImageNet's mean and deviation."""

    def training_preprocess(self) -> Callable[[np.ndarray], Tensor]:
        """ImageNet's mean and deviation."""
        return Normalise(IMAGENET_MEAN, IMAGENET_STD)

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """The frozen network as a function of maps `[B, 3, 256, 256]` uint8 → `[B, 1]` float32.

        Raises:
            WeightsError: the file is absent, unsafe, or does not fit a ResNet-50 with one output.
        """
        import torch

        network = super().load(weights, device)
        mean = torch.tensor(IMAGENET_MEAN, device=device)[:, None, None]
        deviation = torch.tensor(IMAGENET_STD, device=device)[:, None, None]
        return lambda maps: network((maps.to(device).float() / 255 - mean) / deviation)


class Lgrad(Detector):
    """LGrad (Tan et al., CVPR 2023): score = p(generated)."""

    name = "lgrad"
    facts = Facts(
        title="LGrad",
        citation=(
            "Chuangchuang Tan, Yao Zhao, Shikui Wei, Guanghua Gu, Yunchao Wei: Learning on Gradients: Generalized "
            "Artifacts Representation for GAN-Generated Images Detection. CVPR 2023."
        ),
        code="https://github.com/chuangchuangtan/LGrad (read at 7cb5973); GenForce's discriminator",
        licence="code: none stated; the discriminator's weights CC BY-NC 4.0 (NVIDIA)",
        published_row="LGrad",
        notes=(
            "three classifiers were released (1, 2 and 4 classes of ProGAN); the paper does not say which it used",
            "gradient images are stored: 197 kB an image",
        ),
    )
    Options = LgradOptions
    weights_files: ClassVar = {
        "discriminator": WeightsFile(
            name="lgrad/karras2019stylegan-bedrooms-256x256_discriminator.pth",
            where="the link in img2gad_pytorch/README.md of the authors' repository",
            licence="CC BY-NC 4.0 (NVIDIA)",
        ),
        "weights": WeightsFile(
            name="lgrad/LGrad-4class-Trainon-Progan_car_cat_chair_horse.pth",
            where="Google Drive folder 17-MAyCpMqyn4b_DFP2LekrmIgRovwoix (the authors' README)",
            licence="not stated",
        ),
    }
    options: LgradOptions

    def preprocess(self) -> Preprocess:
        """256×256, in [−1, 1]."""
        return LgradPreprocess(self.options.filter)

    def transforms(self) -> Sequence[Transform]:
        """The gradient image."""
        return (GradientImage(),)

    def extractor(self) -> Extractor:
        """The ResNet-50's logit of the gradient image."""
        return GradientLogit()

    def head(self) -> Head:
        """The logit's sigmoid."""
        return SigmoidHead()

    def threshold(self) -> ThresholdRule:
        """0.5, the authors'."""
        return FixedThreshold(0.5)

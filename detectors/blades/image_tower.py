"""What BLADES-OC and BLADES-BC share: the preprocess and the frozen image tower.

The source of this module and of what it imports is in the key of every stored feature. It therefore imports
neither the text tower nor the losses, and reaches the training code by name only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from detectors.blades.config import EncoderConfig
from detectors.networks.sizes import resnet_parameters
from harness.api.contract import Extractor, Preprocess, Weights
from harness.api.preprocess import CLIP_MEAN, CLIP_STD, Normalise, TensorResize, resize_batch

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from harness.api.protocol import Protocol
    from harness.api.training import TrainingImages, TrainStep


@dataclass(frozen=True)
class BladesPreprocess(Preprocess):
    """The whole image as a float tensor, resized to `size`×`size` bilinearly, CLIP's mean and deviation.

    Source: METHOD "Preprocessing"; AIGFD_BLO at 5f26ede. `antialias` is FIDELITY's `resize_antialias`.
    """

    size: int = 224
    antialias: bool = False

    def __call__(self, pixels: np.ndarray, sidecar: Path | None = None) -> Tensor:
        """`[3, size, size]` float32 of pixels `[H, W, 3]` uint8."""
        return Normalise(CLIP_MEAN, CLIP_STD)(TensorResize(self.size, self.antialias)(pixels))

    def batch(self, images: Sequence[np.ndarray]) -> Tensor:
        """`[B, 3, size, size]` float32; equal to image by image to 1e-5, several times as fast."""
        if self.antialias:
            return super().batch(images)
        return resize_batch(images, self.size, CLIP_MEAN, CLIP_STD)


@dataclass(frozen=True)
class BladesImageTower(Extractor):
    """Unit-norm features z of the image tower (METHOD "Encoder"), from OC.pth, BC.pth or a file we trained.

    Attributes:
        encoder: size, by the name of a preset of `EncoderConfig`.
    """

    encoder: str = "paper"

    slots: ClassVar[tuple[str, ...]] = ("weights",)
    trained_by: ClassVar[Mapping[str, str]] = {
        "joint": "detectors.blades.joint:BladesJointStep",
        "bilevel": "detectors.blades.bilevel_step:BladesBilevelStep",
    }

    @property
    def config(self) -> EncoderConfig:
        """The sizes behind the preset."""
        return EncoderConfig.named(self.encoder)

    @property
    def dim(self) -> int:
        """D: 768 for the paper's encoder."""
        return self.config.feature_dim

    @property
    def num_parameters(self) -> int:
        """Of the image tower; the text tower is for training alone."""
        sizes = self.config
        return resnet_parameters(
            sizes.feature_dim, stem=sizes.stem, hidden_sizes=sizes.hidden_sizes, depths=sizes.depths
        )

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """The frozen tower as a function `[B, 3, H, W]` → `[B, D]` float32, unit norm.

        Raises:
            WeightsError: the file is absent, unsafe, or does not fit the encoder's size (tensors are named).
        """
        import torch

        from detectors.blades.vision import ImageTower, for_inference

        source = weights["weights"]
        if source.kind == "random":
            tower = ImageTower.random(self.config, source.seed)
        else:
            tower = ImageTower.from_authors(source.tensors(), self.config, source.path or source.label)
        tower = for_inference(tower).to(device)

        def features(images: Tensor) -> Tensor:
            with torch.inference_mode():
                return tower.features(images.to(device, memory_format=torch.channels_last))

        return features

    def train_step(
        self, settings: Mapping[str, Any], images: TrainingImages, protocol: Protocol, step: str = "joint"
    ) -> TrainStep:
        """Training with the text tower: task weights fixed (`joint`) or learnt (`bilevel`)."""
        make: Callable[..., TrainStep] = self.step_class(step)
        return make(self.config, settings, images, protocol)

"""Supervised training of the ResNets that end in one logit: CNND, and those that took its training over.

Imported by name from `logit.ResNetLogit.trained_by` alone, so that training code is no part of what keys features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from detectors.logit import SIZES, ResNetLogit
from detectors.networks.resnet import ResNet
from harness.api.augment import augmentations
from harness.api.contract import Weights
from harness.api.errors import ConfigError
from harness.api.preprocess import IMAGENET_MEAN, IMAGENET_STD, Normalise
from harness.api.protocol import Protocol
from harness.api.supervised import SupervisedStep
from harness.api.training import TrainingImages

HEAD_DEVIATION = 0.02


class LogitSettings(BaseModel):
    """The `settings` of a supervised recipe.

    Attributes:
        augment: augmentations of the training images in order (`harness.api.augment`); the last crop decides the size.
        balanced: each batch is half generated, whatever the numbers of images (the official code's `--class_bal`, which
            draws with replacement; here the smaller class goes round and round).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    augment: tuple[dict[str, Any], ...] = ()
    balanced: bool = False


class ResNetLogitStep(SupervisedStep):
    """Photographs against generated images, binary cross-entropy on the logit, in training mode.

    The last layer starts from N(0, 0.02) and a bias of 0, whatever the rest starts from.

    Source: CNNDetection at ea0b562, networks/trainer.py and data/datasets.py; ImageNet start as there.
    *Deviation*: an epoch leaves out what does not fill its last batch, and `select` images are as the detector is given
    them (the official validation blurs and compresses them too, at the middle of each range).

    Slot `weights`: a ResNet under torchvision's names to start from (ImageNet's; its last layer is left out). Without
    it the network starts from torchvision's own draw (He's) of the recipe's seed.

    Raises:
        ConfigError: unknown settings.
        DataError: not both classes in `train`.
    """

    def __init__(
        self, extractor: ResNetLogit, settings: Mapping[str, Any], images: TrainingImages, protocol: Protocol
    ) -> None:
        self.sizes, settled = SIZES[extractor.network], _settings(settings)
        self.pretrained: Weights = {}
        super().__init__(
            ResNet(1, **self.sizes),
            images,
            preprocess=extractor.training_preprocess(),
            augment=augmentations(settled.augment),
            train_preprocess=Normalise(IMAGENET_MEAN, IMAGENET_STD),
            rename=self._renamed,
            balanced=settled.balanced,
        )

    def begin_with(self, weights: Weights) -> None:
        """ImageNet's weights: slot `weights`."""
        spare = [slot for slot in weights if slot != "weights"]
        if spare:
            raise ConfigError(f"unknown slot {spare[0]!r}", where="recipe, start", fix="slots: weights")
        self.pretrained = weights

    def start(self, seed: int, device: str) -> None:
        """A network of that seed, or with the pretrained weights, channels-last (faster on a CPU).

        Raises:
            WeightsError: the pretrained weights do not fit.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = ResNet(1, **self.sizes)
            _he(network)
            nn.init.normal_(network.fc.weight, 0, HEAD_DEVIATION)
            nn.init.zeros_(network.fc.bias)
        if "weights" in self.pretrained:
            source = self.pretrained["weights"]
            tensors = {k: v for k, v in source.tensors().items() if not k.startswith("fc.")}
            tensors |= {f"fc.{name}": value.detach() for name, value in network.fc.named_parameters()}
            network = ResNet.from_torchvision(tensors, 1, source.path or source.label, **self.sizes)
        self.module, self.device = network.to(device).to(memory_format=torch.channels_last), device  # type: ignore[call-overload]

    def _renamed(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Under torchvision's names, which `ResNetLogit.load` reads."""
        network = ResNet(1, **self.sizes)
        network.load_state_dict(tensors)
        return {name: value.detach().contiguous().clone() for name, value in network.to_torchvision().items()}


def _settings(values: Mapping[str, Any]) -> LogitSettings:
    try:
        return LogitSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        known = ", ".join(LogitSettings.model_fields)
        raise ConfigError(f"recipe settings, {key}: {first['msg']}", fix=f"known settings: {known}") from None


def _he(network: ResNet) -> None:
    """torchvision's own start of a ResNet: He's for convolutions, 1 and 0 for BatchNorm."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.reset_running_stats()

"""Supervised training of the ResNets that end in one logit: CNND, and those that took its training over.

Imported by name from `logit.ResNetLogit.trained_by` alone, so that training code is no part of what keys features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from detectors.logit import SIZES, ResNetLogit
from detectors.networks.resnet import ResNet
from harness.api.augment import augmentations
from harness.api.errors import ConfigError, WeightsError
from harness.api.preprocess import IMAGENET_MEAN, IMAGENET_STD, Normalise
from harness.api.protocol import Protocol
from harness.api.supervised import SupervisedStep
from harness.api.training import TrainingImages
from harness.api.weights import file_digest, read_tensors

HEAD_DEVIATION = 0.02


class LogitSettings(BaseModel):
    """The `settings` of a supervised recipe.

    Attributes:
        augment: augmentations of the training images in order (`harness.api.augment`); the last crop decides the size.
        init: `random`, or a file of ImageNet weights under torchvision's names (its `fc` is left out).
        init_sha256: what that file must be, where it is named: it is in the recipe's key, and the file is not.
        init_seed: of random weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    augment: tuple[dict[str, Any], ...] = ()
    init: str = "random"
    init_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    init_seed: int = 0


class ResNetLogitStep(SupervisedStep):
    """Photographs against generated images, binary cross-entropy on the logit, in training mode.

    The last layer starts from N(0, 0.02) and a bias of 0, whatever the rest starts from.

    Source: CNNDetection at ea0b562, networks/trainer.py and data/datasets.py; ImageNet start as there.
    *Deviation*: an epoch leaves out what does not fill its last batch.

    Raises:
        ConfigError: unknown settings, or ImageNet weights without their sha256.
        WeightsError: the ImageNet weights cannot be read, or are another file.
        DataError: not both classes in `train`.
    """

    def __init__(
        self, extractor: ResNetLogit, settings: Mapping[str, Any], images: TrainingImages, protocol: Protocol
    ) -> None:
        self.settings = _settings(settings)
        super().__init__(
            _network(extractor.network, self.settings),
            images,
            augment=augmentations(self.settings.augment),
            train_preprocess=Normalise(IMAGENET_MEAN, IMAGENET_STD),
            rename=lambda tensors: _renamed(extractor.network, tensors),
        )

    def start(self, seed: int, device: str) -> None:
        """As the network was made, channels-last (faster on a CPU)."""
        super().start(seed, device)
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _settings(values: Mapping[str, Any]) -> LogitSettings:
    try:
        return LogitSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        known = ", ".join(LogitSettings.model_fields)
        raise ConfigError(f"recipe settings, {key}: {first['msg']}", fix=f"known settings: {known}") from None


def _network(size: str, settings: LogitSettings) -> ResNet:
    sizes = SIZES[size]
    network = ResNet.seeded(1, settings.init_seed, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.init_seed)
        if settings.init == "random":
            _he(network)
        else:
            tensors = {k: v for k, v in _imagenet(settings).items() if not k.startswith("fc.")}
            tensors |= {"fc.weight": network.fc.weight.detach(), "fc.bias": network.fc.bias.detach()}
            network = ResNet.from_torchvision(tensors, 1, settings.init, **sizes)
        nn.init.normal_(network.fc.weight, 0, HEAD_DEVIATION)
        nn.init.zeros_(network.fc.bias)
    return network


def _he(network: ResNet) -> None:
    """torchvision's own start of a ResNet: He's for convolutions, 1 and 0 for BatchNorm."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.reset_running_stats()


def _imagenet(settings: LogitSettings) -> Mapping[str, torch.Tensor]:
    path = Path(settings.init)
    if settings.init_sha256 is None:
        raise ConfigError(
            "ImageNet weights need their sha256 in the recipe", "settings.init_sha256", f"sha256sum {settings.init}"
        )
    if not path.is_file():
        raise WeightsError("the ImageNet weights are not here", path, "name the file in settings.init, or init: random")
    if file_digest(path) != settings.init_sha256:
        raise WeightsError("the ImageNet weights are another file than the recipe says", path, "settings.init_sha256")
    return read_tensors(path)


def _renamed(size: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Under torchvision's names, which `ResNetLogit.load` reads."""
    network = ResNet(1, **SIZES[size])
    network.load_state_dict(dict(tensors))
    return {name: value.detach().contiguous().clone() for name, value in network.to_torchvision().items()}

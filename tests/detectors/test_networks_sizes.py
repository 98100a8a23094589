"""Parameters stated without building a network are those of the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detectors.blades.config import EncoderConfig
from detectors.blades.image_tower import BladesImageTower
from detectors.blades.vision import ImageTower
from detectors.clip import ClipFeatures
from detectors.cnnd import Cnnd
from detectors.eal import EalFeatures
from detectors.farl import FarlFeatures
from detectors.hu21 import HighlightsByDlib, HighlightsOfEyes
from detectors.lgrad import GradientImage, GradientLogit
from detectors.networks.clip import vision_tower
from detectors.networks.resnet import ResNet
from detectors.networks.sizes import VISION_SIZES, resnet_parameters
from detectors.networks.stylegan_discriminator import StyleGanDiscriminator
from detectors.zou25 import Zou25Features
from harness.api.contract import Chain, Extractor, Transform


def count(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def resnet(outputs: int) -> int:
    with torch.device("meta"):
        return count(ResNet(outputs))


@pytest.mark.parametrize("size", ["paper", "demo", "tiny"])
def test_a_blades_encoder_states_the_parameters_of_its_image_tower(size: str) -> None:
    with torch.device("meta"):
        tower = ImageTower(EncoderConfig.named(size))
    assert BladesImageTower(size).num_parameters == count(tower)


@pytest.mark.parametrize("network", VISION_SIZES)
def test_clip_states_the_parameters_of_each_network(network: str) -> None:
    assert ClipFeatures(network).num_parameters == count(vision_tower(VISION_SIZES[network]))


def test_farl_is_clips_network() -> None:
    assert FarlFeatures().num_parameters == ClipFeatures("vit-b-16").num_parameters


@pytest.mark.parametrize(
    ("stage", "outputs"),
    [(EalFeatures(), 768), (Zou25Features(), 768), (Chain.of(Cnnd()).extractor, 1), (GradientLogit(), 1)],
)
def test_a_resnet_50_states_its_parameters(stage: Extractor, outputs: int) -> None:
    assert stage.num_parameters == resnet(outputs)


@pytest.mark.parametrize(
    ("stem", "hidden_sizes", "depths"), [(8, (8, 16), (2, 1)), (16, (16,), (3,)), (4, (8, 8), (1, 2))]
)
def test_a_resnet_of_any_size_is_counted_right(
    stem: int, hidden_sizes: tuple[int, ...], depths: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        network = ResNet(5, stem=stem, hidden_sizes=hidden_sizes, depths=depths)
    assert resnet_parameters(5, stem=stem, hidden_sizes=hidden_sizes, depths=depths) == count(network)


def test_the_discriminator_states_every_parameter_of_its_file() -> None:
    stage: Transform = GradientImage()
    with torch.device("meta"):
        assert stage.num_parameters == count(StyleGanDiscriminator())


def test_nothing_is_learnt_in_hu21_and_dlibs_own_is_not_stated() -> None:
    assert HighlightsOfEyes().num_parameters == 0
    assert HighlightsByDlib().num_parameters is None

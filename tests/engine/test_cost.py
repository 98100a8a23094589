"""Parameters as stages state them, FLOPs as counted: attention and gradients on a CPU included, failures said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.cnnd import Cnnd
from detectors.hu21 import Hu21
from harness.api.contract import Abstain, Chain, Extractor, Preprocess, Transform, Weights
from harness.engine.cost import cost_of


@dataclass(frozen=True)
class Small(Preprocess):
    """`[3, 8, 8]` ones; abstains where told to."""

    abstains: bool = False

    def __call__(self, pixels, sidecar=None) -> Tensor:
        if self.abstains:
            raise Abstain
        return torch.ones(3, 8, 8)


@dataclass(frozen=True)
class Attention(Extractor):
    """Scaled dot product attention of 2 heads, 16 tokens, 8 numbers a token."""

    dim = 1
    num_parameters = 5

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        def run(images: Tensor) -> Tensor:
            with torch.inference_mode():
                tokens = torch.ones(len(images), 2, 16, 8)
                return F.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0, 0, :1]

        return run


@dataclass(frozen=True)
class ImageGradient(Transform):
    """Gradient through a 3×3 convolution of 3 to 4 channels, as LGrad takes its own."""

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        convolution = torch.nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False)

        def run(images: Tensor) -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                at = images.detach().clone().requires_grad_()
                return torch.autograd.grad(convolution(at).square().sum(), at)[0]

        return run


@dataclass(frozen=True)
class Broken(Extractor):
    """Cannot be loaded."""

    dim = 1

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        raise RuntimeError("no such device\nand more")


def chain(extractor: Extractor, *transforms: Transform, abstains: bool = False) -> Chain:
    whole = Chain.of(Cnnd())
    return replace(whole, preprocess=Small(abstains), transforms=transforms, extractor=extractor)


def test_attention_on_a_cpu_is_counted_two_a_multiply_add() -> None:
    cost = cost_of(chain(Attention()))
    assert cost.flops == 2 * (2 * 16 * 16 * 8 * 2)
    assert (cost.parameters, cost.reason) == (5, "")


def test_a_gradient_image_costs_its_forward_and_its_backward_and_adds_to_the_sum() -> None:
    cost = cost_of(chain(Attention(), ImageGradient()))
    forward = 2 * 8 * 8 * 4 * 3 * 9
    assert [stage.flops for stage in cost.stages] == [2 * forward, 16384]
    assert cost.flops == 2 * forward + 16384
    assert cost.parameters is None, "one stage does not state its own"


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (chain(Broken()), "RuntimeError: no such device"),
        (chain(Attention(), abstains=True), "the detector abstains on a made image"),
        (Chain.of(Hu21()), "the detector abstains on a made image"),
    ],
)
def test_what_cannot_be_counted_is_said_and_not_zero(made: Chain, reason: str) -> None:
    cost = cost_of(made)
    assert (cost.flops, cost.reason) == (None, reason)
    assert [stage.flops for stage in cost.stages] == [None] * len(cost.stages)


def test_nothing_is_loaded_unless_flops_are_asked_for() -> None:
    assert cost_of(chain(Broken()), flops=False).reason == "not asked for"


@pytest.mark.slow
def test_a_resnet_50_costs_what_its_layers_say() -> None:
    sizes, side, before, total = (256, 512, 1024, 2048), 56, 64, 112**2 * 64 * 3 * 49
    for index, (width, depth) in enumerate(zip(sizes, (3, 4, 6, 3), strict=True)):
        inner, large = width // 4, side * (1 if index == 0 else 2)
        for block in range(depth):
            entry = large if block == 0 else side
            total += entry**2 * inner * before + side**2 * (9 * inner**2 + inner * width)
            total += side**2 * before * width if block == 0 else 0
            before = width
        side //= 2
    assert cost_of(Chain.of(Cnnd())).flops == 2 * (total + 2048)

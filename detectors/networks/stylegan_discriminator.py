"""StyleGAN's discriminator for 256×256 images under GenForce's names: what LGrad takes image gradients of."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.networks.states import Name, load_named
from harness.api.errors import WeightsError

RESOLUTION = 256
SLOPE = 0.2
STD_EPSILON = 1e-8
FUSED_FROM = 128
"""Resolutions from this on are halved by a strided convolution, smaller ones by an average."""


def channels(resolution: int) -> int:
    """Channels of the layers that work at a resolution: 64 at 256, 128 at 128, 256 at 64, 512 below."""
    return min(16384 // resolution, 512)


class Blur(nn.Module):
    """A fixed 3×3 filter on every channel apart; its kernel `[C, 1, 3, 3]` is in the file."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0])
        kernel = (line[:, None] * line / 16).expand(num_channels, 1, 3, 3).clone()
        self.register_buffer("kernel", kernel)
        self.kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]`, blurred."""
        return F.conv2d(x, self.kernel, padding=1, groups=len(self.kernel))


class Layer(nn.Module):
    """A convolution or a dense layer with an equalised learning rate, then a leaky ReLU (but for the last).

    Args:
        shape: of the weight, `[out, in, k, k]` or `[out, in]`; at run time it is scaled by gain / √(fan-in).
        halves: the resolution is halved: after a blur, by a strided convolution (`"fused"`) or by an average.
        last: no activation and gain 1 instead of √2.
    """

    def __init__(self, *shape: int, halves: str = "", last: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(shape[0]), requires_grad=False)
        self.scale = (1.0 if last else math.sqrt(2)) / math.sqrt(math.prod(shape[1:]))
        self.halves, self.last = halves, last
        if halves:
            self.blur = Blur(shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """`[B, out, h, w]`, or `[B, out]` of a dense layer."""
        weight = self.weight * self.scale
        if weight.dim() == 2:
            x = F.linear(x.flatten(1), weight, self.bias)
        elif self.halves == "fused":
            wide = F.pad(weight, (1, 1, 1, 1))
            weight = (wide[:, :, 1:, 1:] + wide[:, :, :-1, 1:] + wide[:, :, 1:, :-1] + wide[:, :, :-1, :-1]) * 0.25
            x = F.conv2d(self.blur(x), weight, self.bias, stride=2, padding=1)
        elif self.halves:
            x = F.avg_pool2d(F.conv2d(self.blur(x), weight, self.bias, padding=1), 2)
        else:
            x = F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2)
        return x if self.last else F.leaky_relu(x, SLOPE)


class StyleGanDiscriminator(nn.Module):
    """Images `[B, 3, 256, 256]` in [−1, 1] to `[B, 1]`, higher = more like the GAN's training photographs.

    Each image is judged as in a batch of its own: the minibatch-deviation channel is then the constant √1e−8, and
    row i depends on row i alone. `input1` to `input6` belong to smaller resolutions; they are in the file and
    unused here (`lod` is 0).

    Source: GenForce's StyleGANDiscriminator, as LGrad at 7cb5973 uses it (img2gad_pytorch); 23,052,353 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lod", torch.zeros(()))
        self.lod: Tensor
        resolution = RESOLUTION
        for block in range(6):
            here, next_ = channels(resolution), channels(resolution // 2)
            self.add_module(f"input{block}", Layer(here, 3, 1, 1))
            self.add_module(f"layer{2 * block}", Layer(here, here, 3, 3))
            halves = "fused" if resolution >= FUSED_FROM else "average"
            self.add_module(f"layer{2 * block + 1}", Layer(next_, here, 3, 3, halves=halves))
            resolution //= 2
        width = channels(resolution)
        self.add_module("input6", Layer(width, 3, 1, 1))
        self.layer12 = Layer(width, width + 1, 3, 3)
        self.layer13 = Layer(width, width * resolution**2)
        self.layer14 = Layer(1, width, last=True)

    @classmethod
    def from_genforce(cls, tensors: Mapping[str, Tensor], where: object) -> Self:
        """The network of the released file (a bare state dictionary), loaded strictly.

        Raises:
            WeightsError: tensors that do not fit, or a file that was saved for another resolution (`lod` not 0).
        """
        network = cls()
        load_named(network, [Name(key, key) for key in network.state_dict()], tensors, prefix="", where=where)
        if float(network.lod) != 0:
            raise WeightsError(f"lod is {float(network.lod)}, expected 0", where=where, fix="use the official file")
        return network.eval().requires_grad_(False)

    @classmethod
    def seeded(cls, seed: int) -> Self:
        """The network with stated random weights: each tensor n(0, 1) by (seed, its name), biases 0, real blurs."""
        network = cls()
        for key, parameter in network.named_parameters():
            if key.endswith("bias"):
                parameter.zero_()
                continue
            digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
            draws = np.random.default_rng(int.from_bytes(digest[:16], "little"))
            parameter.copy_(torch.from_numpy(draws.standard_normal(tuple(parameter.shape), np.float32)))
        return network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 1]`."""
        x = self.get_submodule("input0")(images)
        for index in range(12):
            x = self.get_submodule(f"layer{index}")(x)
        deviation = x.new_full((len(x), 1, *x.shape[2:]), math.sqrt(STD_EPSILON))
        x = self.layer12(torch.cat([x, deviation], dim=1))
        x = self.layer14(self.layer13(x))
        return x

    def gradient(self, image: Tensor) -> Tensor:
        """d(output)/d(image) `[3, 256, 256]` float32 at one image `[3, 256, 256]`; works under `no_grad` too."""
        with torch.inference_mode(False), torch.enable_grad():
            at = image.detach().clone()[None].requires_grad_()
            (gradient,) = torch.autograd.grad(self(at).sum(), at)
        return gradient[0]

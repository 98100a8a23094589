"""Sizes of the networks, known without building one: CLIP's vision transformers, parameters of these and of ResNets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class VisionSize:
    """A vision transformer of CLIP.

    Attributes:
        width: of a token; layers, heads: of the transformer.
        patch, image: sides in pixels.
        dim: of the projected image feature.
    """

    width: int
    layers: int
    heads: int
    patch: int
    dim: int
    image: int = 224

    @property
    def num_parameters(self) -> int:
        """Weights and biases of the tower with its projection."""
        width = self.width
        tokens = (self.image // self.patch) ** 2 + 1
        embedding = width + 3 * width * self.patch**2 + tokens * width
        attention, perceptron, norm = 4 * (width + 1) * width, 8 * width**2 + 5 * width, 2 * width
        return embedding + self.layers * (attention + perceptron + 2 * norm) + 2 * norm + width * self.dim


VISION_SIZES = {
    "vit-b-32": VisionSize(width=768, layers=12, heads=12, patch=32, dim=512),
    "vit-b-16": VisionSize(width=768, layers=12, heads=12, patch=16, dim=512),
    "vit-l-14": VisionSize(width=1024, layers=24, heads=16, patch=14, dim=768),
}
"""OpenAI's ViT-B/32, ViT-B/16 and ViT-L/14 (openai/CLIP, model cards); FaRL is a ViT-B/16."""


def resnet_parameters(
    num_outputs: int,
    *,
    stem: int = 64,
    hidden_sizes: Sequence[int] = (256, 512, 1024, 2048),
    depths: Sequence[int] = (3, 4, 6, 3),
) -> int:
    """Weights and biases of a `ResNet` of these sizes on RGB images, BatchNorm's scales and shifts included (its
    running statistics are no parameters). A ResNet-50 unless sizes say otherwise."""
    total = 3 * stem * 49 + 2 * stem
    before = stem
    for index, (width, depth) in enumerate(zip(hidden_sizes, depths, strict=True)):
        inner = width // 4
        for block in range(depth):
            total += inner * before + 9 * inner**2 + inner * width + 2 * (2 * inner + width)
            if block == 0 and (before != width or index > 0):  # the shortcut changes channels or halves the side
                total += before * width + 2 * width
            before = width
    return total + (before + 1) * num_outputs

"""Sizes of CLIP's vision transformers, known without building one."""

from __future__ import annotations

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


VISION_SIZES = {
    "vit-b-32": VisionSize(width=768, layers=12, heads=12, patch=32, dim=512),
    "vit-b-16": VisionSize(width=768, layers=12, heads=12, patch=16, dim=512),
    "vit-l-14": VisionSize(width=1024, layers=24, heads=16, patch=14, dim=768),
}
"""OpenAI's ViT-B/32, ViT-B/16 and ViT-L/14 (openai/CLIP, model cards); FaRL is a ViT-B/16."""

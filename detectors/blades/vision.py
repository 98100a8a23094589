"""The image tower of BLADES: a ResNet with the stride on its 3×3 convolutions, pooled, then one linear layer.

Apart from the text tower, so that inference builds, loads and is keyed by nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.blades.config import EncoderConfig
from detectors.blades.states import Name, container_prefix, load_named, to_named
from detectors.networks.resnet import ResNet, for_inference, torchvision_names
from detectors.networks.states import fill_random

__all__ = ["OTHER_PARTS", "ImageTower", "for_inference", "image_names"]

FIX = "use the official file, or set the encoder size that made this one"

OTHER_PARTS: dict[str, tuple[str, ...]] = {
    "text tower": (
        "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection", "text_fc.",
        "logit_scale",
    ),
    "binary head": ("fc1.", "fc2."),
}  # fmt: skip
"""What else stands in the authors' files: the text tower under the container's prefix, BC's head without it."""


def image_names(module: nn.Module, at: str = "") -> list[Name]:
    """Both names of every state tensor of an `ImageTower`; `at` stands before ours, `visual.` before theirs."""
    return torchvision_names(module, at, theirs="visual.")


class ImageTower(ResNet):
    """Images to raw features; the unit-norm feature is `features` (METHOD "Encoder", f)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config.feature_dim, stem=config.stem, hidden_sizes=config.hidden_sizes, depths=config.depths)

    @classmethod
    def random(cls, config: EncoderConfig, seed: int) -> ImageTower:
        """A tower with stated random weights (`states.fill_random`), in training mode."""
        with torch.device("meta"):
            tower = cls(config)
        fill_random(tower, seed)
        return tower

    @classmethod
    def from_authors(cls, tensors: Mapping[str, Tensor], config: EncoderConfig, where: object) -> ImageTower:
        """The image tower of a file under the authors' names: OC (`model.visual.*`), BC (`model.model.visual.*`).

        The text tower's and BC's head's tensors may be there and are left alone; any other is an error.

        Raises:
            WeightsError: no image tower, or tensors that do not fit `config` (see `states.load_named`).
        """
        prefix = container_prefix(tensors, where)
        ignore = [prefix + key for key in OTHER_PARTS["text tower"]]
        if prefix == "model.model.":
            ignore += OTHER_PARTS["binary head"]
        with torch.device("meta"):
            tower = cls(config)
        load_named(tower, image_names(tower), tensors, prefix=prefix, where=where, ignore=ignore, fix=FIX)
        return tower

    def to_authors(self, prefix: str = "model.") -> dict[str, Tensor]:
        """The state under the authors' names: what `from_authors` reads."""
        return to_named(self, image_names(self), prefix)

    def features(self, images: Tensor) -> Tensor:
        """Unit-norm features `[B, D]`: what the detectors, and the logits, are built on."""
        return F.normalize(self(images), dim=-1)

"""The joint encoder of BLADES: both towers, the learnable scale, logits of images against prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from detectors.blades.config import EncoderConfig
from detectors.blades.prompt_tree import PromptTree
from detectors.blades.states import Name, container_prefix, fill_random, load_named, to_named
from detectors.blades.text import TextTower, text_names
from detectors.blades.vision import OTHER_PARTS, ImageTower, image_names

__all__ = ["EncoderConfig", "ImageTower", "JointEncoder", "TextTower", "batch_statistics_only"]


class JointEncoder(nn.Module):
    """Both towers and s: logits[b, p] = exp(s)·⟨z_b, w_p⟩ (METHOD "Encoder").

    `forward` gives the logits, so that `torch.func.functional_call(encoder, params, (images, tokens))` is the
    whole forward as a function of a dictionary of parameters.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.image = ImageTower(config)
        self.text = TextTower(config)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale))

    @classmethod
    def _empty(cls, config: EncoderConfig) -> JointEncoder:
        with torch.device("meta"):
            encoder = cls(config)
        encoder.logit_scale = nn.Parameter(torch.tensor(config.logit_scale, device="cpu"))
        # not in the state, so no loading fills it: left on the meta device it would break `.to(device)`
        positions = torch.arange(config.context, device="cpu").expand(1, -1)
        encoder.text.clip.embeddings.register_buffer("position_ids", positions, persistent=False)
        return encoder

    @classmethod
    def random(cls, config: EncoderConfig, seed: int) -> JointEncoder:
        """An encoder with stated random weights (`states.fill_random`), in training mode, float32."""
        encoder = cls._empty(config)
        fill_random(encoder, seed)
        return encoder

    @classmethod
    def from_authors(cls, tensors: Mapping[str, Tensor], config: EncoderConfig, where: object) -> JointEncoder:
        """The encoder of a whole file under the authors' names: OC.pth, or BC.pth without its head.

        Raises:
            WeightsError: naming tensors that are missing, spare, misshaped or not finite.
        """
        prefix = container_prefix(tensors, where)
        ignore = OTHER_PARTS["binary head"] if prefix == "model.model." else ()
        encoder = cls._empty(config)
        load_named(encoder, encoder.names(), tensors, prefix=prefix, where=where, ignore=ignore)
        return encoder

    def names(self) -> list[Name]:
        """Both names of every state tensor."""
        return [
            *image_names(self.image, at="image."),
            *text_names(self.text, at="text."),
            Name("logit_scale", "logit_scale"),
        ]

    def to_authors(self, prefix: str = "model.") -> dict[str, Tensor]:
        """The state under the authors' names (OC.pth's, or BC.pth's with `model.model.`)."""
        return to_named(self, self.names(), prefix)

    def features(self, images: Tensor) -> Tensor:
        """Unit-norm image features `[B, D]` of normalised images `[B, 3, H, W]`."""
        return self.image.features(images)

    def text_features(self, tokens: Tensor | PromptTree) -> Tensor:
        """Unit-norm text features `[P, D]` of token ids `[P, L] int64`, or of the prompts' tree."""
        return self.text.features(tokens)

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """exp(s)·⟨z, w⟩ `[B, P]` of unit-norm features `[B, D]` and `[P, D]`."""
        return self.logit_scale.exp() * image_features @ text_features.T

    def forward(self, images: Tensor, tokens: Tensor | PromptTree) -> Tensor:
        """Logits `[B, P]` of images `[B, 3, H, W]` against prompts `[P, L] int64`, or their tree."""
        return self.logits(self.features(images), self.text_features(tokens))


@contextmanager
def batch_statistics_only(module: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm in training mode uses the batch's statistics and leaves the running ones alone.

    For every forward of a step but the one that may update them (FIDELITY `bn_updates`), and for forward-mode
    derivatives, which cannot pass through the in-place updates. Evaluation mode is not affected.
    """
    changed = [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.BatchNorm2d) and layer.training and layer.track_running_stats
    ]
    for layer in changed:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in changed:
            layer.track_running_stats = True

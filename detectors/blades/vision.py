"""The image tower of BLADES: a ResNet with the stride on its 3×3 convolutions, pooled, then one linear layer.

Apart from the text tower, so that inference builds, loads and is keyed by nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import ResNetConfig, ResNetModel

from detectors.blades.config import EncoderConfig
from detectors.blades.states import Name, container_prefix, fill_random, load_named, to_named
from harness.api.errors import WeightsError

OTHER_PARTS: dict[str, tuple[str, ...]] = {
    "text tower": (
        "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection", "text_fc.",
        "logit_scale",
    ),
    "binary head": ("fc1.", "fc2."),
}  # fmt: skip
"""What else stands in the authors' files: the text tower under the container's prefix, BC's head without it."""


def image_names(module: nn.Module, at: str = "") -> list[Name]:
    """Both names of every state tensor of an `ImageTower`; `at` stands before ours, `visual.` before theirs.

    Theirs are torchvision's: `conv1`, `bn1`, `layer1.0.conv2.weight`, `layer2.0.downsample.1.bias`, `fc`.
    """
    return [Name(at + key, "visual." + _torchvision_name(key)) for key in module.state_dict()]


def _torchvision_name(key: str) -> str:
    if key.startswith("fc."):
        return key
    parts = key.split(".")
    last = parts[-1]
    if parts[1] == "embedder":
        return f"{'conv1' if parts[3] == 'convolution' else 'bn1'}.{last}"
    stage, block = int(parts[3]) + 1, parts[5]
    if parts[6] == "shortcut":
        return f"layer{stage}.{block}.downsample.{0 if parts[7] == 'convolution' else 1}.{last}"
    kind = "conv" if parts[8] == "convolution" else "bn"
    return f"layer{stage}.{block}.{kind}{int(parts[7]) + 1}.{last}"


class ImageTower(nn.Module):
    """Images to raw features; the unit-norm feature is `features` (METHOD "Encoder", f)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.net = ResNetModel(
            ResNetConfig(
                embedding_size=config.stem,
                hidden_sizes=list(config.hidden_sizes),
                depths=list(config.depths),
                layer_type="bottleneck",
                downsample_in_bottleneck=False,
            )
        )
        self.fc = nn.Linear(config.hidden_sizes[-1], config.feature_dim)

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
        load_named(tower, image_names(tower), tensors, prefix=prefix, where=where, ignore=ignore)
        return tower

    def to_authors(self, prefix: str = "model.") -> dict[str, Tensor]:
        """The state under the authors' names: what `from_authors` reads."""
        return to_named(self, image_names(self), prefix)

    def forward(self, images: Tensor) -> Tensor:
        """Raw features `[B, D]` of normalised images `[B, 3, H, W]` (the released `visual(x)`)."""
        pooled = self.net(images).pooler_output
        return self.fc(pooled.flatten(1))

    def features(self, images: Tensor) -> Tensor:
        """Unit-norm features `[B, D]`: what the detectors, and the logits, are built on."""
        return F.normalize(self(images), dim=-1)


def for_inference(tower: ImageTower) -> ImageTower:
    """The same tower in its fastest form: evaluation mode, channels-last, BatchNorm folded into convolutions.

    Changes the tower in place and returns it; it can no longer be trained or saved. Features agree with the
    unfolded tower's to about 1e-7 (the same sums, rounded elsewhere).

    Raises:
        WeightsError: when folding gives a weight that is not finite (a variance that no training gives).
    """
    tower.eval().requires_grad_(False)
    for module in tower.modules():
        convolution, normalization = getattr(module, "convolution", None), getattr(module, "normalization", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(normalization, nn.BatchNorm2d):
            folded = fuse_conv_bn_eval(convolution, normalization)
            if not torch.isfinite(folded.weight).all():
                raise WeightsError("a BatchNorm's running variance is negative", fix="use an intact checkpoint")
            module.convolution = folded
            module.normalization = nn.Identity()
        if isinstance(module, nn.ReLU):
            module.inplace = True
    return tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

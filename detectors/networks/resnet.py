"""ResNet with torchvision's checkpoint names, through transformers; ResNet-50 unless sizes say otherwise.

The stride of a block is on its 3×3 convolution ("v1.5"), as in torchvision and every released file used here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import ResNetConfig, ResNetModel

from detectors.networks.states import Name, fill_random, load_named, to_named
from harness.api.errors import WeightsError

Network = TypeVar("Network", bound=nn.Module)


def torchvision_names(module: nn.Module, at: str = "", theirs: str = "") -> list[Name]:
    """Both names of every state tensor of a `ResNet`; `at` stands before ours, `theirs` before torchvision's.

    Torchvision's: `conv1`, `bn1`, `layer1.0.conv2.weight`, `layer2.0.downsample.1.bias`, `fc`.
    """
    return [Name(at + key, theirs + _torchvision_name(key)) for key in module.state_dict()]


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


class ResNet(nn.Module):
    """Images `[B, C, H, W]` to `num_outputs` numbers each: bottleneck blocks, global average, one linear layer.

    Args:
        num_outputs: rows of the last layer `fc`.
        stem: channels after the first 7×7 convolution.
        hidden_sizes: channels after each stage; each a multiple of 4.
        depths: blocks of each stage.
        num_channels: of the input.
    """

    def __init__(
        self,
        num_outputs: int,
        *,
        stem: int = 64,
        hidden_sizes: Sequence[int] = (256, 512, 1024, 2048),
        depths: Sequence[int] = (3, 4, 6, 3),
        num_channels: int = 3,
    ) -> None:
        super().__init__()
        self.net = ResNetModel(
            ResNetConfig(
                num_channels=num_channels,
                embedding_size=stem,
                hidden_sizes=list(hidden_sizes),
                depths=list(depths),
                layer_type="bottleneck",
                downsample_in_bottleneck=False,
            )
        )
        self.fc = nn.Linear(hidden_sizes[-1], num_outputs)

    @classmethod
    def seeded(cls, num_outputs: int, seed: int, **sizes: Any) -> Self:
        """A network of these sizes with stated random weights (`states.fill_random`), in training mode."""
        with torch.device("meta"):
            network = cls(num_outputs, **sizes)
        fill_random(network, seed)
        return network

    @classmethod
    def from_torchvision(
        cls,
        tensors: Mapping[str, Tensor],
        num_outputs: int,
        where: object,
        *,
        prefix: str = "",
        ignore: Iterable[str] = (),
        **sizes: Any,
    ) -> Self:
        """A network of these sizes (ResNet-50) filled from torchvision's names, strictly; float32, in training mode.

        Args:
            prefix: what stands before those names in the file.
            where: what errors call the file.
            ignore: beginnings of whole keys that belong to other parts of the same file.

        Raises:
            WeightsError: naming tensors that are missing, spare, misshaped or not finite.
        """
        with torch.device("meta"):
            network = cls(num_outputs, **sizes)
        load_named(network, torchvision_names(network), tensors, prefix=prefix, where=where, ignore=ignore)
        return network

    def to_torchvision(self, prefix: str = "") -> dict[str, Tensor]:
        """The state under torchvision's names: what `from_torchvision` reads."""
        return to_named(self, torchvision_names(self), prefix)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, num_outputs]` of images `[B, C, H, W]`, of any size."""
        return self.fc(self.net(images).pooler_output.flatten(1))


def for_inference(network: Network) -> Network:
    """The same network in its fastest form: evaluation mode, channels-last, BatchNorm folded into convolutions.

    Changes the network in place and returns it; it can no longer be trained or saved. Outputs agree with the
    unfolded network's to about 1e-7 of their size (the same sums, rounded elsewhere).

    Raises:
        WeightsError: when folding gives a weight that is not finite (a variance that no training gives).
    """
    network.eval().requires_grad_(False)
    for module in network.modules():
        convolution, normalization = getattr(module, "convolution", None), getattr(module, "normalization", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(normalization, nn.BatchNorm2d):
            folded = fuse_conv_bn_eval(convolution, normalization)
            if not torch.isfinite(folded.weight).all():
                raise WeightsError("a BatchNorm's running variance is negative", fix="use an intact checkpoint")
            module.convolution = folded
            module.normalization = nn.Identity()
        if isinstance(module, nn.ReLU):
            module.inplace = True
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def frozen(network: ResNet, device: str) -> Callable[[Tensor], Tensor]:
    """The network (changed by `for_inference`) as a function `[B, C, H, W]` → `[B, num_outputs]` float32."""
    ready = for_inference(network).to(device)

    def outputs(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return ready(images.to(device, memory_format=torch.channels_last))

    return outputs

"""CLIP: general image features and a mixture of photographs' ones; a row of BLADES' separability table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from detectors.mixture import FramedPreprocess, MixtureDetector, MixtureOptions
from detectors.networks.sizes import VISION_SIZES
from harness.api.contract import Extractor, Facts, Preprocess, Weights, WeightsFile

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ClipFeatures(Extractor):
    """Projected image features of CLIP's vision transformer, raw.

    Attributes:
        network: a key of `VISION_SIZES`; must be that of the weights.

    Source: openai/CLIP, `encode_image`; transformers' CLIPVisionModelWithProjection.
    """

    network: str = "vit-b-16"

    slots: ClassVar[tuple[str, ...]] = ("weights",)

    @property
    def dim(self) -> int:
        """512 of a base network, 768 of the large one."""
        return VISION_SIZES[self.network].dim

    @property
    def num_parameters(self) -> int:
        """Of the image tower; the text tower is not loaded."""
        return VISION_SIZES[self.network].num_parameters

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """The frozen tower as a function `[B, 3, 224, 224]` → `[B, dim]` float32.

        Reads Hugging Face's files and OpenAI's state dictionaries. OpenAI's own `.pt` is a TorchScript archive,
        which is code: it is refused here and has to be converted to safetensors first.

        Raises:
            WeightsError: absent, unsafe, or not exactly this network's tensors (they are named).
        """
        from detectors.networks.clip import from_checkpoint, frozen, seeded

        source, size = weights["weights"], VISION_SIZES[self.network]
        if source.kind == "random":
            return frozen(seeded(size, source.seed), device)
        return frozen(from_checkpoint(source.tensors(), size, source.path or source.label), device)


class ClipOptions(MixtureOptions):
    """As all mixtures; `network` must be that of the weights; `framing`: OpenAI's `shorter_side`, or BLADES'
    `squash`. BLADES says of neither which it used."""

    network: Literal["vit-b-32", "vit-b-16", "vit-l-14"] = "vit-b-16"
    framing: Literal["shorter_side", "squash"] = "shorter_side"


class Clip(MixtureDetector):
    """CLIP's image features with BLADES-OC's mixture."""

    name = "clip"
    facts = Facts(
        title="CLIP",
        citation=(
            "Alec Radford, Jong Wook Kim, Chris Hallacy et al.: Learning Transferable Visual Models From Natural "
            "Language Supervision. ICML 2021."
        ),
        code="https://github.com/openai/CLIP",
        licence="MIT",
        published_row="CLIP",
        notes=(
            "no detector of its own: features and the mixture protocol of BLADES-OC; sees no generated image",
            "BLADES does not say which CLIP; ViT-B/16 is FaRL's size. CLIP's ResNets are not offered",
            "the published AUC on StyleGAN2 is below chance (33.99 %): the sign is kept, not flipped",
        ),
    )
    Options = ClipOptions
    options: ClipOptions
    weights_files: ClassVar[Mapping[str, WeightsFile]] = {
        "weights": WeightsFile(
            name="clip/clip-vit-base-patch16/model.safetensors",
            where=(
                "https://huggingface.co/openai/clip-vit-base-patch16 (pytorch_model.bin is read as well; other "
                "networks: clip-vit-base-patch32, clip-vit-large-patch14), or converted from OpenAI's ViT-B-16.pt"
            ),
            licence="MIT",
        )
    }

    def preprocess(self) -> Preprocess:
        """224×224 by the option `framing`."""
        return FramedPreprocess(self.options.framing, antialias=self.protocol.resize_antialias)

    def extractor(self) -> Extractor:
        """The frozen vision transformer."""
        return ClipFeatures(self.options.network)

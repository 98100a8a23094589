"""FaRL: CLIP-style features learnt on faces, and a mixture of photographs' ones; BLADES' separability table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from detectors.mixture import FramedPreprocess, MixtureDetector, MixtureOptions
from detectors.networks.sizes import VISION_SIZES
from harness.api.contract import Extractor, Facts, Preprocess, Weights, WeightsFile

if TYPE_CHECKING:
    from torch import Tensor

MASKED_MODELLING = ("visual.mask_token", "visual.lm_transformer.", "visual.ln_lm.", "visual.lm_head.")
"""Tensors of FaRL's masked-image-modelling branch, which its image features do not use."""


@dataclass(frozen=True)
class FarlFeatures(Extractor):
    """Projected image features (ln_post of the class token, times `visual.proj`), 512 numbers an image, raw.

    Source: FaRL at 3fb4694, README and `VisualTransformer.forward`.
    """

    slots: ClassVar[tuple[str, ...]] = ("weights",)
    dim = VISION_SIZES["vit-b-16"].dim
    num_parameters = VISION_SIZES["vit-b-16"].num_parameters

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """The frozen tower as a function `[B, 3, 224, 224]` → `[B, 512]` float32.

        Raises:
            WeightsError: absent, unsafe, or not exactly a ViT-B/16's tensors beside the masked modelling's.
        """
        from detectors.networks.clip import from_checkpoint, frozen, seeded

        source, size = weights["weights"], VISION_SIZES["vit-b-16"]
        if source.kind == "random":
            return frozen(seeded(size, source.seed), device)
        return frozen(from_checkpoint(source.tensors(), size, source.path or source.label, MASKED_MODELLING), device)


class FarlOptions(MixtureOptions):
    """As all mixtures, and `framing`: `shorter_side` as in FaRL's README, or `squash`, the bilinear resize of
    its downstream wrapper, which is also BLADES' own. BLADES does not say which it used for FaRL."""

    framing: Literal["shorter_side", "squash"] = "shorter_side"


class Farl(MixtureDetector):
    """FaRL's image features with BLADES-OC's mixture."""

    name = "farl"
    facts = Facts(
        title="FaRL",
        citation=(
            "Yinglin Zheng, Hao Yang, Ting Zhang et al.: General Facial Representation Learning in a "
            "Visual-Linguistic Manner. CVPR 2022."
        ),
        code="https://github.com/FacePerceiver/FaRL (read at 3fb4694)",
        licence="MIT",
        published_row="FaRL",
        notes=(
            "no detector of its own: features and the mixture protocol of BLADES-OC; sees no generated image",
            "BLADES does not say whether it took ep16 (FaRL's paper) or ep64; both files have the same names",
            "made for loosely cropped, aligned faces",
        ),
    )
    Options = FarlOptions
    options: FarlOptions
    weights_files: ClassVar[Mapping[str, WeightsFile]] = {
        "weights": WeightsFile(
            name="farl/FaRL-Base-Patch16-LAIONFace20M-ep16.pth",
            where=(
                "https://github.com/FacePerceiver/FaRL/releases/download/pretrained_weights/"
                "FaRL-Base-Patch16-LAIONFace20M-ep16.pth"
            ),
            licence="MIT",
        )
    }

    def preprocess(self) -> Preprocess:
        """224×224 by the option `framing`."""
        return FramedPreprocess(self.options.framing, antialias=self.protocol.resize_antialias)

    def extractor(self) -> Extractor:
        """The frozen vision transformer."""
        return FarlFeatures()

"""EAL (EXIF as Language): features that match photographs to their metadata as text, and a mixture of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from detectors.mixture import FramedPreprocess, MixtureDetector, MixtureOptions
from detectors.networks.sizes import resnet_parameters
from harness.api.contract import Extractor, Facts, Preprocess, Weights, WeightsFile

if TYPE_CHECKING:
    from torch import Tensor

UNUSED = (
    "model.transformer.", "model.token_embedding.", "model.positional_embedding", "model.ln_final.",
    "model.text_projection", "model.logit_scale", "sink_temp",
)  # fmt: skip
"""What else stands in the released file: DistilBERT, leftovers of CLIP's text tower, two temperatures."""


@dataclass(frozen=True)
class EalFeatures(Extractor):
    """Raw image embeddings of the ResNet-50 `model.visual.*`, 768 numbers an image.

    Source: exif-as-language at 6706f0d.
    """

    slots: ClassVar[tuple[str, ...]] = ("weights",)
    dim = 768
    num_parameters = resnet_parameters(dim)

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """The frozen network as a function `[B, 3, H, W]` → `[B, 768]` float32.

        Raises:
            WeightsError: absent, unsafe, or not exactly the released network's tensors (they are named).
        """
        from detectors.networks.resnet import ResNet, frozen

        source = weights["weights"]
        if source.kind == "random":
            return frozen(ResNet.seeded(self.dim, source.seed), device)
        where = source.path or source.label
        tensors = source.tensors()
        return frozen(ResNet.from_torchvision(tensors, self.dim, where, prefix="model.visual.", ignore=UNUSED), device)


class EalOptions(MixtureOptions):
    """As all mixtures, and `framing`: `squash` as BLADES prepares faces, or `crop`, the centre without a resize,
    nearest to EAL's own training crops. BLADES does not say which it used for EAL."""

    framing: Literal["squash", "crop"] = "squash"


class Eal(MixtureDetector):
    """EAL's image features with BLADES-OC's mixture: a row of BLADES' separability table."""

    name = "eal"
    facts = Facts(
        title="EAL",
        citation=(
            "Chenhao Zheng, Ayush Shrivastava, Andrew Owens: EXIF as Language: Learning Cross-Modal Associations "
            "Between Images and Camera Metadata. CVPR 2023."
        ),
        code="https://github.com/hellomuffin/exif-as-language (read at 6706f0d)",
        licence="MIT",
        published_row="EAL",
        notes=(
            "no detector of its own: features and the mixture protocol of BLADES-OC; sees no generated image",
            "framing and unit norm are not published; normalise=false gives Zou25's protocol",
            "its image tower is where the training of Zou25 and of BLADES starts",
        ),
    )
    Options = EalOptions
    options: EalOptions
    weights_files: ClassVar[Mapping[str, WeightsFile]] = {
        "weights": WeightsFile(
            name="eal/wrapper_75_new.pth",
            where=(
                "https://drive.google.com/drive/folders/1V9g3I2SoQtjAUz71hZeMutqoGpUiPl3u, or the EXIF-pretrained "
                "file of Zou25: https://drive.google.com/file/d/17MW-fZRRQQ8dSRv52X_9DmcmdQD7TmHZ"
            ),
            licence="MIT",
        )
    }

    def preprocess(self) -> Preprocess:
        """224×224 by the option `framing`; antialias where the protocol says so."""
        return FramedPreprocess(self.options.framing, antialias=self.protocol.resize_antialias)

    def extractor(self) -> Extractor:
        """The frozen ResNet-50."""
        return EalFeatures()

"""Zou25: features learnt by ranking EXIF tags of photographs; what is unlike their mixture is called generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from detectors.mixture import FramedPreprocess, MixtureDetector, MixtureOptions
from detectors.networks.sizes import resnet_parameters
from harness.api.contract import Extractor, Facts, Preprocess, Weights, WeightsFile
from harness.api.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

HEADS = ("fc_iso", "fc_av", "fc_et", "fc_fl", "fc_face")
"""The released file's training heads, one number each; scoring needs none of them."""
UNUSED = (
    *(f"{head}." for head in HEADS), "model.token_embedding.", "model.positional_embedding", "model.ln_final.",
    "model.logit_scale",
)  # fmt: skip
"""What else stands in the released file: the heads, and leftovers of CLIP ViT-B/32's text tower."""


@dataclass(frozen=True)
class Zou25Features(Extractor):
    """Raw features of the ResNet-50 `model.visual.*`, 768 numbers an image, *not* scaled to unit norm.

    Source: AIGFD_EXIF at 38033ae, `encode_image`.
    """

    slots: ClassVar[tuple[str, ...]] = ("weights",)
    dim = 768
    num_parameters = resnet_parameters(dim)

    def load(self, weights: Weights, device: str) -> Callable[[Tensor], Tensor]:
        """The frozen network as a function `[B, 3, H, W]` → `[B, 768]` float32.

        *Deviation*: loaded strictly; the released code loads with `strict=False`, which takes its own variants
        without the face head, or the file it started from, for the released model.

        Raises:
            WeightsError: absent, unsafe, another variant, or not exactly the released network's tensors.
        """
        from detectors.networks.resnet import ResNet, frozen

        source = weights["weights"]
        if source.kind == "random":
            return frozen(ResNet.seeded(self.dim, source.seed), device)
        where = source.path or source.label
        tensors = source.tensors()
        _check_heads(tensors, where)
        return frozen(ResNet.from_torchvision(tensors, self.dim, where, prefix="model.visual.", ignore=UNUSED), device)


def _check_heads(tensors: Mapping[str, Tensor], where: object) -> None:
    wanted = {f"{head}.weight": [1, 768] for head in HEADS} | {f"{head}.bias": [1] for head in HEADS}
    absent = [key for key, shape in wanted.items() if key not in tensors or list(tensors[key].shape) != shape]
    if absent:
        raise WeightsError(
            f"not the released five-head model of Zou25: {', '.join(absent[:3])} absent or of another shape",
            where=where,
            fix="use the file that the authors call 'our model', not a variant or the EXIF-pretrained one",
        )


class Zou25Options(MixtureOptions):
    """As all mixtures; 12 components of raw features, as released."""

    components: int = Field(default=12, ge=1)
    normalise: bool = False


class Zou25(MixtureDetector):
    """Zou25 (AIGFD_EXIF)."""

    name = "zou25"
    facts = Facts(
        title="Zou25",
        citation=(
            "Mian Zou, Baosheng Yu, Yibing Zhan, Kede Ma: Self-Supervised Learning for Detecting AI-Generated "
            "Faces as Anomalies. ICASSP 2025. arXiv 2501.02207."
        ),
        code="https://github.com/MZMMSEC/AIGFD_EXIF (read at 38033ae)",
        licence="CC BY-NC-SA 2.0 (code and weights), academic use only",
        published_row="Zou25",
        notes=(
            "fitted on the first 25,000 photographs of the CelebA-HQ training list; sees no generated image",
            "the released script computes AP with photographs as the positive class (ap_photographic here)",
            "the released fit order is a shuffling loader's (protocol switch gmm_fit_order)",
        ),
    )
    Options = Zou25Options
    weights_files: ClassVar[Mapping[str, WeightsFile]] = {
        "weights": WeightsFile(
            name="zou25/our_model.pth",
            where=(
                "https://drive.google.com/file/d/1rpKta773mA-hgKOoycZODUAbNpDUyZ8f ('our model' in the authors' "
                "README, which gives no file name: save it under this one)"
            ),
            licence="CC BY-NC-SA 2.0",
        )
    }

    def preprocess(self) -> Preprocess:
        """The whole image resized to 224×224, without antialias unless the protocol says otherwise."""
        return FramedPreprocess("squash", antialias=self.protocol.resize_antialias)

    def extractor(self) -> Extractor:
        """The frozen ResNet-50."""
        return Zou25Features()

"""The encoder at the start of a training: random, or from pretrained towers (METHOD "Encoder", Initialisation)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from detectors.blades.config import EncoderConfig
from detectors.blades.encoder import JointEncoder
from detectors.blades.vision import OTHER_PARTS
from harness.api.errors import ConfigError, WeightsError
from harness.api.weights import ResolvedWeights

SLOTS = ("encoder", "image", "text")
NEW = ("text_fc.",)  # layers that no pretrained text tower has: they stay random
_FIX = "name the official file: EAL's or torchvision's ResNet-50 for image, CLIP RN50's for text"


def begun_encoder(config: EncoderConfig, seed: int, weights: Mapping[str, ResolvedWeights]) -> JointEncoder:
    """An encoder with stated random weights, of which parts come from files.

    Args:
        weights: `encoder`: a whole file under the authors' names (OC.pth, or one that was trained here). `image`: a
            ResNet-50 under torchvision's names, bare (ImageNet's, whose last layer is left out) or as `visual.*` in a
            container (EAL's). `text`: the text part of a CLIP RN50 file, with its logit scale; `text_fc` is new.

    Raises:
        ConfigError: a slot that is none of these, or `encoder` together with another.
        WeightsError: a file that cannot be read, lacks tensors of its part, or does not fit the sizes.
    """
    unknown = [slot for slot in weights if slot not in SLOTS]
    if unknown or ("encoder" in weights and len(weights) > 1):
        what = f"unknown slot {unknown[0]!r}" if unknown else "`encoder` is the whole; it goes with no other slot"
        raise ConfigError(what, where="recipe, start", fix=f"slots: {', '.join(SLOTS)}")
    if "encoder" in weights:
        source = weights["encoder"]
        return JointEncoder.from_authors(source.tensors(), config, source.path or source.label)
    encoder = JointEncoder.random(config, seed)
    if not weights:
        return encoder
    tensors = encoder.to_authors()
    for slot, source in weights.items():
        where = source.path or source.label
        part = _image(source.tensors(), where) if slot == "image" else _text(source.tensors(), where)
        wanted = {k for k in tensors if k.startswith("model.visual.") == (slot == "image")}
        absent = sorted(k for k in wanted - part.keys() if not _may_be_new(k))
        if absent:
            named = ", ".join(absent[:3]).replace("model.", "")
            raise WeightsError(f"the file lacks {len(absent)} tensors of the {slot} tower: {named}", where, _FIX)
        tensors |= {k: v for k, v in part.items() if k in wanted}
    return JointEncoder.from_authors(tensors, config, "the files of the recipe's `start`")


def _may_be_new(key: str) -> bool:
    return key.startswith(("model.visual.fc.", *(f"model.{name}" for name in NEW))) or key.endswith(
        "num_batches_tracked"
    )


def _image(tensors: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """`model.visual.*`; a last layer of 1,000 classes is left out."""
    for prefix in ("model.visual.", "visual.", ""):
        if f"{prefix}conv1.weight" in tensors and f"{prefix}layer1.0.conv1.weight" in tensors:
            found = {f"model.visual.{k[len(prefix) :]}": v for k, v in tensors.items() if k.startswith(prefix)}
            if prefix == "":
                found = {k: v for k, v in found.items() if not k.startswith("model.visual.fc.")}
            return {k: v.float() if v.is_floating_point() else v for k, v in found.items()}
    raise WeightsError("holds no ResNet-50 under torchvision's names", where, _FIX)


def _text(tensors: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """The text part under the authors' names, in float32 (CLIP's files hold halves)."""
    prefix = "model." if any(k.startswith("model.transformer.") for k in tensors) else ""
    wanted = tuple(name for name in OTHER_PARTS["text tower"] if name not in NEW)
    found = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    return {f"model.{k}": v.float() for k, v in found.items() if k.startswith(wanted)}

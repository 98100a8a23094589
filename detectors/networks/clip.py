"""CLIP's image tower (a vision transformer and its projection), from Hugging Face or OpenAI names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from detectors.networks.sizes import VisionSize
from detectors.networks.states import Name, fill_random, load_named
from harness.api.errors import WeightsError

OPENAI_UNUSED = (
    "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection", "logit_scale",
    "input_resolution", "context_length", "vocab_size",
)  # fmt: skip
"""What else stands in a file under OpenAI's names: the text tower, the scale, three sizes of the archive."""

HUGGING_FACE_UNUSED = ("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids")
"""What else stands in a file of transformers' CLIPModel: the text tower, the scale, an old buffer."""

_TOP = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "visual_projection.weight": "visual.proj",
}
_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_STACKED = ("q_proj", "k_proj", "v_proj")
_FIX = "use the official file, or set the detector's network option to the one that this file holds"


def openai_names(module: nn.Module) -> list[Name]:
    """Both names of every state tensor of a tower that `vision_tower` built; theirs are OpenAI CLIP's.

    `visual.proj` is the transpose of ours; `from_checkpoint` turns it.
    """
    names = [
        Name(key, _TOP[key]) if key in _TOP else _block_name(key, key.removeprefix("vision_model.encoder.layers."))
        for key in module.state_dict()
    ]
    return sorted(names, key=lambda name: name.part)  # q, k, v of one stacked tensor must come in this order


def _block_name(ours: str, inner: str) -> Name:
    number, rest = inner.split(".", 1)
    layer, last = rest.rsplit(".", 1)
    block = f"visual.transformer.resblocks.{number}."
    if layer in _BLOCK:
        return Name(ours, f"{block}{_BLOCK[layer]}.{last}")
    return Name(ours, f"{block}attn.in_proj_{last}", _STACKED.index(layer.rsplit(".", 1)[-1]))


def vision_tower(size: VisionSize) -> CLIPVisionModelWithProjection:
    """The network without weights (on the meta device), its one constant set; nothing is downloaded."""
    config = CLIPVisionConfig(
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        image_size=size.image,
        patch_size=size.patch,
        projection_dim=size.dim,
        hidden_act="quick_gelu",
    )
    with torch.device("meta"):
        tower = CLIPVisionModelWithProjection(config)
    # not in the state, so no loading fills it: left on the meta device it would break `.to(device)`
    embeddings = tower.vision_model.embeddings
    positions = torch.arange(embeddings.num_positions, device="cpu").expand(1, -1)
    embeddings.register_buffer("position_ids", positions, persistent=False)
    return tower


def seeded(size: VisionSize, seed: int) -> CLIPVisionModelWithProjection:
    """A tower with stated random weights (`states.fill_random`)."""
    tower = vision_tower(size)
    fill_random(tower, seed)
    return tower


def from_checkpoint(
    tensors: Mapping[str, Tensor], size: VisionSize, where: object, ignore: Iterable[str] = ()
) -> CLIPVisionModelWithProjection:
    """The tower of a file with OpenAI's names (`visual.*`) or Hugging Face's (`vision_model.*`), in float32.

    Args:
        tensors: the whole file; the text tower (`OPENAI_UNUSED`, `HUGGING_FACE_UNUSED`) is left alone.
        where: what errors call the file.
        ignore: beginnings of further keys that are known and not needed.

    Raises:
        WeightsError: no image tower, or tensors that are missing, spare, misshaped or not finite.
    """
    tower = vision_tower(size)
    unused: tuple[str, ...]
    if any(key.startswith("visual.") for key in tensors):
        names, unused = openai_names(tower), OPENAI_UNUSED
        projection = tensors.get("visual.proj")
        if projection is not None and projection.dim() == 2:
            tensors = {**tensors, "visual.proj": projection.T}
    elif any(key.startswith("vision_model.") for key in tensors):
        names, unused = [Name(key, key) for key in tower.state_dict()], HUGGING_FACE_UNUSED
    else:
        raise WeightsError(
            f"holds no image tower of CLIP: none of its {len(tensors)} tensors is called visual.* or vision_model.*",
            where=where,
            fix="give a checkpoint with OpenAI's or Hugging Face's names",
        )
    load_named(tower, names, tensors, prefix="", where=where, ignore=(*unused, *ignore), fix=_FIX)
    return tower


def frozen(tower: CLIPVisionModelWithProjection, device: str) -> Callable[[Tensor], Tensor]:
    """The tower as a function `[B, 3, H, W]` → projected features `[B, dim]` float32, not normalised."""
    ready = tower.eval().requires_grad_(False).to(device)

    def features(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return ready(pixel_values=images.to(device)).image_embeds

    return features

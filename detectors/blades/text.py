"""The text tower of BLADES: CLIP RN50's causal text transformer, its projection, and one linear layer more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, CLIPTextConfig, CLIPTextModel

from detectors.blades.config import EncoderConfig
from detectors.blades.prompt_tree import PromptTree
from detectors.blades.states import Name

ATTENTION = "blades_causal"
_STACKED = ("q_proj", "k_proj", "v_proj")
_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_TOP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def causal_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Causal attention in the dtype of its input: `[P, heads, L, d]` each → `([P, L, heads, d], weights)`.

    `attention_mask [L, L]` bool, where given, says which keys a query sees instead of all earlier ones.

    Written out because transformers' eager attention rounds its softmax to float32, which ruins float64 checks,
    and torch's fused one has no forward-mode derivative, which the bi-level step needs. CLIP's text tower has no
    dropout, so `dropout` is not read.
    """
    if attention_mask is None:
        length = query.shape[-2]
        hidden = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    else:
        hidden = ~attention_mask
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(hidden, float("-inf"))
    weights = scores.softmax(dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(ATTENTION, causal_attention)


def text_names(module: nn.Module, at: str = "") -> list[Name]:
    """Both names of every state tensor of a `TextTower`; `at` stands before ours. Theirs are OpenAI CLIP's."""
    names: list[Name] = []
    for key in module.state_dict():
        inner = key.removeprefix("clip.")
        if inner in _TOP:
            names.append(Name(at + key, _TOP[inner]))
        elif inner.startswith("encoder.layers."):
            names.append(_block_name(at + key, inner))
        else:
            names.append(Name(at + key, "text_projection" if key == "projection" else f"text_{key}"))
    return sorted(names, key=lambda name: name.part)  # q, k, v of one stacked tensor must come in this order


def _block_name(ours: str, inner: str) -> Name:
    number, rest = inner.removeprefix("encoder.layers.").split(".", 1)
    layer, last = rest.rsplit(".", 1)
    block = f"transformer.resblocks.{number}."
    if layer in _BLOCK:
        return Name(ours, f"{block}{_BLOCK[layer]}.{last}")
    return Name(ours, f"{block}attn.in_proj_{last}", _STACKED.index(layer.rsplit(".", 1)[-1]))


class TextTower(nn.Module):
    """Token ids to features in the space that prompts share with images (METHOD "Encoder", g)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        sizes = CLIPTextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            max_position_embeddings=config.context,
            hidden_act="quick_gelu",
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        sizes._attn_implementation = ATTENTION
        self.clip = CLIPTextModel(sizes)
        self.projection = nn.Parameter(torch.empty(config.text_width, config.text_embed))
        self.fc = nn.Linear(config.text_embed, config.feature_dim)

    def forward(self, tokens: Tensor | PromptTree) -> Tensor:
        """Raw text features `[P, D]` of token ids `[P, L] int64`, read at the end token (the highest id).

        Any L from the longest prompt to the context gives the same features: attention is causal. So does the
        prompts' tree, where what several prompts begin with is gone through once.
        """
        embeddings = self.clip.embeddings
        if isinstance(tokens, PromptTree):
            hidden = embeddings.token_embedding(tokens.ids) + embeddings.position_embedding(tokens.depths)
            hidden = self.clip.encoder(inputs_embeds=hidden[None], attention_mask=tokens.visible).last_hidden_state
            return self._project(hidden[0, tokens.ends])
        hidden = embeddings.token_embedding(tokens) + embeddings.position_embedding.weight[: tokens.shape[1]]
        hidden = self.clip.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        at_end = hidden[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=-1)]
        return self._project(at_end)

    def _project(self, at_end: Tensor) -> Tensor:
        return self.fc(self.clip.final_layer_norm(at_end) @ self.projection)

    def features(self, tokens: Tensor | PromptTree) -> Tensor:
        """Unit-norm text features `[P, D]`."""
        return F.normalize(self(tokens), dim=-1)

"""Sizes of the BLADES encoder: the paper's, and small ones for demonstrations and tests."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.api.errors import ConfigError


@dataclass(frozen=True)
class EncoderConfig:
    """Every size of the two towers; the defaults are the paper's (METHOD "Encoder").

    Attributes:
        stem: channels after the first 7×7 convolution (`embedding_size` of transformers' ResNet).
        hidden_sizes: channels after each stage of bottleneck blocks; each a multiple of 4.
        depths: blocks of each stage.
        feature_dim: D, the dimension that images and prompts share.
        text_width, text_layers, text_heads: of CLIP's text transformer.
        text_embed: width of CLIP's own text projection, between the transformer and `feature_dim`.
        context: longest prompt, in tokens.
        vocab_size: rows of the token embedding (`prompts.compact_vocabulary` needs about 90).
        logit_scale: initial s of exp(s)·⟨z, w⟩; released CLIP weights hold ln 100.
    """

    stem: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    feature_dim: int = 768
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    text_embed: int = 1024
    context: int = 77
    vocab_size: int = 49408
    logit_scale: float = math.log(1 / 0.07)

    def __post_init__(self) -> None:
        if len(self.hidden_sizes) != len(self.depths) or any(size % 4 for size in self.hidden_sizes):
            raise ConfigError(
                f"stages do not fit: hidden_sizes {self.hidden_sizes}, depths {self.depths}",
                fix="give one depth for each hidden size, and hidden sizes that are multiples of 4",
            )
        if self.text_width % self.text_heads:
            raise ConfigError(f"text_width {self.text_width} is no multiple of {self.text_heads} heads")

    @classmethod
    def paper(cls) -> EncoderConfig:
        """ResNet-50 and CLIP RN50's text transformer: 89.6 million parameters, D = 768."""
        return cls()

    @classmethod
    def demo(cls) -> EncoderConfig:
        """254,129 parameters, D = 32: trains from scratch in minutes on two cores (128 px or less)."""
        return cls(
            stem=16, hidden_sizes=(32, 64, 128, 256), depths=(1, 1, 1, 1), feature_dim=32,
            text_width=64, text_layers=2, text_heads=2, text_embed=64, context=24, vocab_size=128,
        )  # fmt: skip

    @classmethod
    def tiny(cls) -> EncoderConfig:
        """The least that still has every kind of layer, for tests and float64 checks."""
        return cls(
            stem=8, hidden_sizes=(8, 16), depths=(2, 1), feature_dim=6,
            text_width=16, text_layers=2, text_heads=2, text_embed=12, context=24, vocab_size=128,
        )  # fmt: skip

    @classmethod
    def named(cls, preset: str) -> EncoderConfig:
        """The preset called `paper`, `demo` or `tiny`; ConfigError with these names otherwise."""
        presets = {"paper": cls.paper, "demo": cls.demo, "tiny": cls.tiny}
        if preset not in presets:
            raise ConfigError(f"unknown encoder size {preset!r}", fix=f"use one of: {', '.join(presets)}")
        return presets[preset]()

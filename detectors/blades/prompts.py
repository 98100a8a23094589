"""The sentences of each task's classes and their token ids for CLIP's text tower."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from detectors.blades.tasks import Kind, Task, TaskTable
from harness.api.errors import ConfigError

CONTEXT = 77  # CLIP's context length, in tokens

_LEVEL = "a photo of a face with the {} value of {}"
_MODE = "A photo of the face captured using the {} {}"
_TAGS: dict[str, str] = {
    "iso": "ISO speed rating",
    "aperture": "aperture",
    "exposure_time": "exposure time",
    "focal_length": "focal length",
    "metering_mode": "metering mode",
    "exposure_mode": "exposure mode",
    "white_balance": "white balance mode",
}
_TEMPLATES: dict[str, str] = {
    "make": "a photo of a face taken with the {} brand camera",
    "exposure_program": "A photo of the face captured using the exposure program set to {}",
    "face_coarse": "a photo of a {} face",
    "face_fine": "a photo of a face with a manipulated {} region",
}


def task_prompts(task: Task) -> tuple[str, ...]:
    """The sentences of one task's classes, in the order of its logits."""
    if task.name in _TEMPLATES:
        return tuple(_TEMPLATES[task.name].format(value) for value in task.classes)
    template = _LEVEL if task.kind is Kind.ORDINAL else _MODE
    return tuple(template.format(value, _TAGS[task.name]) for value in task.classes)


def prompts(table: TaskTable) -> tuple[str, ...]:
    """All sentences `[P]` in the order of the logits (METHOD "The 50 prompts and their logit slices")."""
    return tuple(sentence for task in table for sentence in task_prompts(task))


@lru_cache(maxsize=1)
def _tokenizer():  # type: ignore[no-untyped-def]  # the class is compiled and has no type stubs
    from instant_clip_tokenizer import Tokenizer

    return Tokenizer()


def tokenize(sentences: tuple[str, ...], context: int | None = CONTEXT) -> np.ndarray:
    """Token ids `[P, context] int64` of CLIP's tokenizer: start, words, end, then zeros.

    `context=None` cuts to the longest sentence. This is exact, not an approximation: the text tower's
    attention is causal and its feature is read at the end token, so what follows cannot reach it.

    Raises:
        ConfigError: when a sentence does not fit into `context` tokens (cutting it would drop its end).
    """
    tokenizer = _tokenizer()
    start, end = tokenizer.start_of_text(), tokenizer.end_of_text()
    rows = [[start, *tokenizer.encode(sentence), end] for sentence in sentences]
    longest = max((len(row) for row in rows), default=0)
    width = longest if context is None else context
    if longest > width or width > CONTEXT:
        raise ConfigError(
            f"the longest prompt has {longest} tokens and the context {width} of at most {CONTEXT}",
            fix=f"use context=None or a number from {longest} to {CONTEXT}",
        )
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens


def prompt_tokens(table: TaskTable, context: int | None = None) -> np.ndarray:
    """Token ids `[P, L] int64` of a table's prompts; L is the longest prompt (17), or `context`."""
    return tokenize(prompts(table), context)


def compact_vocabulary(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same tokens renumbered 0, 1, 2, … in rising order, and the CLIP id of each number.

    For small encoders, whose token embedding would else be larger than all the rest (49,408 rows, about
    90 of them used). The order is kept, so the end token is still the highest and the feature position
    the same. Returns `(ids like tokens int64, vocabulary [V] int64)`, with `vocabulary[ids] == tokens`.
    """
    vocabulary, ids = np.unique(tokens, return_inverse=True)
    return ids.reshape(tokens.shape).astype(np.int64), vocabulary

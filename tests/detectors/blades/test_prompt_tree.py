"""The tree of the prompts: the same features and gradients as row by row, with far fewer tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.blades.config import EncoderConfig
from detectors.blades.encoder import JointEncoder
from detectors.blades.prompt_tree import prompt_tree
from detectors.blades.prompts import compact_vocabulary, prompt_tokens
from detectors.blades.tasks import task_table

TINY = EncoderConfig.tiny()


@pytest.fixture(scope="module")
def encoder() -> JointEncoder:
    return JointEncoder.random(TINY, seed=0).double()


@pytest.mark.parametrize("levels", [3, 5])
def test_features_and_gradients_are_those_of_the_rows(encoder: JointEncoder, levels: int) -> None:
    tokens, _ = compact_vocabulary(prompt_tokens(task_table(levels)))
    tree, rows = prompt_tree(tokens), torch.from_numpy(tokens)
    assert len(tree.ids) < tokens.size / 3
    found, expected = encoder.text_features(tree), encoder.text_features(rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaves = list(encoder.text.parameters())
    ours, theirs = (torch.autograd.grad((f * direction).sum(), leaves) for f in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(1, 3), max_size=5), min_size=1, max_size=6))
def test_any_prompts_share_what_they_begin_with(encoder: JointEncoder, sentences: list[list[int]]) -> None:
    tokens = np.zeros((len(sentences), 8), np.int64)
    for row, words in zip(tokens, sentences, strict=True):
        row[: len(words) + 2] = [100, *words, 101]
    tree = prompt_tree(tokens)
    rows = [[100, *words, 101] for words in sentences]
    assert len(tree.ids) == len({tuple(row[: i + 1]) for row in rows for i in range(len(row))})
    for row, end in zip(rows, tree.ends.tolist(), strict=True):
        assert tree.ids[tree.visible[end]].tolist() == row
        assert tree.depths[tree.visible[end]].tolist() == list(range(len(row)))
    expected = encoder.text_features(torch.from_numpy(tokens))
    torch.testing.assert_close(encoder.text_features(tree), expected, rtol=0, atol=1e-13)

"""Prompts and token ids: to the letter those of the released code; the cut context loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detectors.blades.prompts import compact_vocabulary, prompt_tokens, prompts, tokenize
from detectors.blades.tasks import task_table
from harness.api.errors import ConfigError


@pytest.mark.parametrize("levels", [3, 5])
def test_prompts_equal_the_released_ones_to_the_letter(golden_dir: Path, levels: int) -> None:
    golden = json.loads((golden_dir / "prompts.json").read_text())[f"levels{levels}"]
    assert list(prompts(task_table(levels))) == golden


@pytest.mark.parametrize("levels", [3, 5])
def test_token_ids_equal_the_reference_tokenizers(golden_dir: Path, levels: int) -> None:
    golden = np.load(golden_dir / "encoder.npz", allow_pickle=False)[f"tokens{levels}"]
    np.testing.assert_array_equal(prompt_tokens(task_table(levels), context=77), golden)


def test_cut_context_is_the_full_one_without_its_zeros() -> None:
    table = task_table()
    full, cut = prompt_tokens(table, context=77), prompt_tokens(table)
    assert cut.shape == (50, 17)
    np.testing.assert_array_equal(full[:, :17], cut)
    assert not full[:, 17:].any()


def test_a_context_too_short_for_a_prompt_is_an_error_and_cuts_nothing() -> None:
    with pytest.raises(ConfigError, match="17"):
        prompt_tokens(task_table(), context=16)
    with pytest.raises(ConfigError):
        tokenize(("a " * 90,), context=None)


def test_compact_vocabulary_keeps_order_ends_and_meaning() -> None:
    tokens = prompt_tokens(task_table(5), context=77)
    ids, vocabulary = compact_vocabulary(tokens)
    np.testing.assert_array_equal(vocabulary[ids], tokens)
    np.testing.assert_array_equal(ids.argmax(axis=1), tokens.argmax(axis=1))
    assert ids.max() == len(vocabulary) - 1 < 128

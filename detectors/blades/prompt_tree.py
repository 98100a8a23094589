"""The prompts as a tree: what several of them begin with goes through the text tower once.

Attention is causal and a feature is read at the end token, so the state of a token depends on what stands before it
and on nothing else. Prompts with the same beginning therefore share its states *exactly*: the 50 prompts hold 702
tokens up to their ends (3,850 with the full context), but only 236 different beginnings.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class PromptTree(NamedTuple):
    """All different beginnings of the prompts, one row each, parents before children.

    `ids [N]` token ids and `depths [N]` positions, int64; `visible [N, N]` bool: row i may attend to column j (its
    ancestors and itself); `ends [P]` int64: the row at which each prompt ends.
    """

    ids: Tensor
    depths: Tensor
    visible: Tensor
    ends: Tensor

    def to(self, device: str | torch.device) -> PromptTree:
        """The same tree on a device."""
        return PromptTree(*(part.to(device) for part in self))


def prompt_tree(tokens: np.ndarray) -> PromptTree:
    """The tree of token ids `[P, L] int64`, each row read up to its end token (its highest id, the first if several).

    `TextTower` gives the same features for it as for the rows, up to the order of sums.
    """
    rows: dict[tuple[int, ...], int] = {}
    ids: list[int] = []
    depths: list[int] = []
    parents: list[int] = []
    ends: list[int] = []
    for prompt in tokens.tolist():
        parent, prompt = -1, prompt[: int(np.argmax(prompt)) + 1]
        for depth in range(len(prompt)):
            beginning = tuple(prompt[: depth + 1])
            if beginning not in rows:
                rows[beginning] = len(ids)
                ids.append(prompt[depth])
                depths.append(depth)
                parents.append(parent)
            parent = rows[beginning]
        ends.append(parent)
    visible = np.eye(len(ids), dtype=bool)
    for row, parent in enumerate(parents):
        if parent >= 0:
            visible[row] |= visible[parent]
    whole = (np.asarray(values, np.int64) for values in (ids, depths))
    return PromptTree(*map(torch.from_numpy, (*whole, visible, np.asarray(ends, np.int64))))

"""Digests of images as arrays: ``S32``, 32 raw bytes each, which sort and compare fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def digests_array(hex_digests: Sequence[str] | np.ndarray | pd.Series) -> np.ndarray:
    """Hex digests -> array ``[N] S32`` of raw bytes, the form all store calls take."""
    out = np.empty(len(hex_digests), "S32")
    rows = getattr(hex_digests, "iloc", hex_digests)
    for start in range(0, len(out), 65_536):  # a column of a million is never a million Python words at once
        part = rows[start : start + 65_536]
        out[start : start + len(part)] = np.frombuffer(bytes.fromhex("".join(part)), dtype="S32")
    return out


def distinct(digests: np.ndarray) -> np.ndarray:
    """Distinct digests ``[M] S32``, sorted. (numpy's own ``unique`` hashes strings, five times slower.)"""
    ranked = np.sort(digests)
    return ranked[np.append(True, ranked[1:] != ranked[:-1])] if len(ranked) else ranked


def as_rows(digests: np.ndarray) -> np.ndarray:
    """Digests ``[N] S32`` -> bytes ``[N, 32]``."""
    return np.frombuffer(np.ascontiguousarray(digests, dtype="S32").tobytes(), dtype=np.uint8).reshape(-1, 32)


def from_rows(rows: np.ndarray) -> np.ndarray:
    """Bytes ``[N, 32]`` -> digests ``[N] S32``."""
    return np.frombuffer(np.ascontiguousarray(rows).tobytes(), dtype="S32")

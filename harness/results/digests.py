"""Digests of images as arrays: ``S32``, 32 raw bytes each. They are sorted and looked up by their first bytes."""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 65_536
"""Rows that are turned into Python objects, or looked up, at a time: what bounds the memory of both."""


def row_type(count: int) -> type[np.signedinteger[Any]]:
    """The smallest type of integers that number so many rows."""
    return np.int32 if count < 2**31 else np.int64


def digests_array(hex_digests: Sequence[str] | np.ndarray | pd.Series) -> np.ndarray:
    """Hex digests -> array ``[N] S32`` of raw bytes, the form all store calls take."""
    out = np.empty(len(hex_digests), "S32")
    rows = getattr(hex_digests, "iloc", hex_digests)
    for start in range(0, len(out), CHUNK):  # a column of a million is never a million Python words at once
        part = rows[start : start + CHUNK]
        out[start : start + len(part)] = np.frombuffer(_from_hex(part), dtype="S32")
    return out


def _from_hex(texts: Any) -> bytes:
    """The bytes of hex digests; those of a column are read where Arrow has them, one after another."""
    if not hasattr(texts, "array") or not hasattr(texts.array, "__arrow_array__"):
        return bytes.fromhex("".join(texts))
    import pyarrow as pa

    column = pa.chunked_array([texts.array.__arrow_array__()]).cast(pa.large_string()).combine_chunks()
    if len(column) == 0:
        return b""
    _, starts, data = column.buffers()
    bounds = np.frombuffer(starts, np.int64)[column.offset : column.offset + len(column) + 1]
    return binascii.unhexlify(memoryview(data)[bounds[0] : bounds[-1]])


def hex_digests(digests: np.ndarray) -> list[str]:
    """Digests ``[N] S32`` -> their 64 hex digits each."""
    text = np.ascontiguousarray(digests, dtype="S32").tobytes().hex()
    return [text[i : i + 64] for i in range(0, len(text), 64)]


class HexDigests(Sequence[str]):
    """Digests ``[N] S32`` read as their 64 hex digits, one at a time: 32 bytes each instead of a Python word."""

    def __init__(self, digests: np.ndarray) -> None:
        self.digests = digests

    def __len__(self) -> int:
        return len(self.digests)

    @overload
    def __getitem__(self, which: int) -> str: ...
    @overload
    def __getitem__(self, which: slice) -> list[str]: ...
    def __getitem__(self, which: int | slice) -> str | list[str]:
        if isinstance(which, slice):
            return hex_digests(self.digests[which])
        return bytes(self.digests[which]).ljust(32, b"\0").hex()  # numpy takes zeros off the end of what it gives


def as_rows(digests: np.ndarray) -> np.ndarray:
    """Digests ``[N] S32`` -> bytes ``[N, 32]``."""
    return np.frombuffer(np.ascontiguousarray(digests, dtype="S32").tobytes(), dtype=np.uint8).reshape(-1, 32)


def from_rows(rows: np.ndarray) -> np.ndarray:
    """Bytes ``[N, 32]`` -> digests ``[N] S32``."""
    return np.frombuffer(np.ascontiguousarray(rows).tobytes(), dtype="S32")


def words(digests: np.ndarray, which: int = 0) -> NDArray[np.uint64]:
    """Bytes 8·which to 8·which + 7 of digests ``[N] S32`` as numbers: the first ones sort as the digests do, ties
    aside, and some twenty times as fast."""
    return np.ascontiguousarray(digests, dtype="S32").view(">u8").reshape(-1, 4)[:, which].astype(np.uint64)


def order_of(digests: np.ndarray) -> NDArray[np.int64]:
    """The order ``[N]`` that sorts digests ``[N] S32``; equal ones stay as they were."""
    first = words(digests)
    order = np.argsort(first, kind="stable")
    ranked = first[order]
    ties = np.flatnonzero(ranked[1:] == ranked[:-1])
    unlike = ties[digests[order[ties]] != digests[order[ties + 1]]]
    if len(unlike):  # eight bytes in common and not all 32: of made-up digests
        places = np.flatnonzero(np.isin(ranked, ranked[unlike]))
        some = order[places]
        order[places] = some[np.argsort(digests[some], kind="stable")]
    return order


def distinct_places(digests: np.ndarray, mask: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Places of the distinct digests among ``[N] S32`` (of those in a mask ``[N]``), the first of each, in the order of
    the digests."""
    order = order_of(digests)
    if mask is not None and not mask.all():
        order = order[mask[order]]
    if len(order) == 0:
        return order
    first = words(digests)[order]
    new = np.append(True, first[1:] != first[:-1])
    ties = np.flatnonzero(~new)
    new[ties] = digests[order[ties]] != digests[order[ties - 1]]
    return order if new.all() else order[new]


class Picked:
    """Digests ``[M] S32`` of some rows of a table of digests, without a copy of them: 4 bytes each instead of 32.

    Attributes:
        table: digests ``[N] S32``.
        rows: places ``[M]`` in it, of the type :func:`row_type`.
    """

    def __init__(self, table: np.ndarray, rows: np.ndarray) -> None:
        self.table, self.rows = table, rows.astype(row_type(len(table)), copy=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Any) -> Any:
        """Digests of a part (a slice, places, a mask), as an array of its own; one digest of a number."""
        return self.table[self.rows[which]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def where(self, mask: np.ndarray) -> Picked:
        """Those of a mask ``[M] bool``; itself where that is all."""
        return self if mask.all() else Picked(self.table, self.rows[mask])


NONE = Picked(np.empty(0, "S32"), np.empty(0, np.int64))
"""No digests."""
Digests = np.ndarray | Picked


class Lookup:
    """Where digests stand in a list ``[N] S32``, at 20 bytes a digest.

    A digest is known by its first 8 bytes and a sum over the other 24: two among a billion images agree in those by
    chance once in 10^20. Whoever reads what stands at a place compares all 32 bytes (the store does).
    """

    def __init__(self, first: NDArray[np.uint64], rest: NDArray[np.uint64]) -> None:
        """What :func:`split` gives of the list."""
        order = np.argsort(first, kind="stable")
        self._ranked = first[order]
        self._order = order.astype(row_type(len(first)))
        self._rest = rest

    @staticmethod
    def split(digests: np.ndarray) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Digests ``[N] S32`` -> their first word and the sum over the others, ``[N]`` each."""
        rest = words(digests, 1)
        for which, factor in ((2, 0x9E3779B97F4A7C15), (3, 0xBF58476D1CE4E5B9)):  # odd: no change of a word is lost
            rest += words(digests, which) * np.uint64(factor)
        return words(digests), rest

    def __len__(self) -> int:
        return len(self._order)

    def columns(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """What it was made of."""
        first = np.empty_like(self._ranked)
        first[self._order] = self._ranked
        return first, self._rest

    def places(self, digests: Digests) -> NDArray[np.signedinteger[Any]]:
        """The lowest place ``[M]`` of each of ``[M] S32`` in the list; -1 where it is not."""
        out = np.full(len(digests), -1, row_type(len(self)))
        for start in range(0, len(digests), CHUNK):
            part = digests[start : start + CHUNK]
            first, rest = self.split(part)
            at = np.searchsorted(self._ranked, first)
            unsure = np.arange(len(part))
            while len(unsure):  # once, unless different digests share their first eight bytes
                unsure = unsure[at[unsure] < len(self._ranked)]
                unsure = unsure[self._ranked[at[unsure]] == first[unsure]]
                place = self._order[at[unsure]]
                same = self._rest[place] == rest[unsure]
                out[start + unsure[same]] = place[same]
                unsure = unsure[~same]
                at[unsure] += 1
        return out

    def num_distinct(self) -> int:
        """Number of different digests in the list."""
        if not (self._ranked[1:] == self._ranked[:-1]).any():
            return len(self)
        rest = self._rest[self._order]
        order = np.lexsort((rest, self._ranked))
        first, rest = self._ranked[order], rest[order]
        return 1 + int(((first[1:] != first[:-1]) | (rest[1:] != rest[:-1])).sum())

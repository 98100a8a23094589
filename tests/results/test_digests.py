"""Digests sorted and found by their first bytes: the same as by all of them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.results.digests import (
    CHUNK,
    HexDigests,
    Lookup,
    Picked,
    digests_array,
    distinct_places,
    hex_digests,
    order_of,
)

# few different bytes in few places: many equal digests, and many that agree in their first eight bytes
WORDS = st.lists(st.sampled_from(["00", "01", "ff"]), min_size=3, max_size=3)
HEX = st.builds(lambda a, b: a[0] + "ab" * 7 + a[1] + "cd" * 7 + a[2] + "ef" * 14 + b[0], WORDS, WORDS)
HEX = HEX.map(lambda text: text.ljust(64, "0"))


def naive(digests: np.ndarray) -> list[bytes]:
    return [bytes(d).ljust(32, b"\0") for d in digests]


@settings(max_examples=200, deadline=None)
@given(st.lists(HEX, max_size=30), st.data())
def test_sorting_and_finding_agree_with_plain_bytes(texts: list[str], data: st.DataObject) -> None:
    digests = digests_array(texts)
    plain = naive(digests)
    assert order_of(digests).tolist() == sorted(range(len(plain)), key=lambda i: (plain[i], i))
    assert naive(digests[distinct_places(digests)]) == sorted(set(plain))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))), bool)
    kept = sorted({plain[i] for i in np.flatnonzero(mask)})
    assert [plain[i] for i in distinct_places(digests, mask)] == kept
    first = [next(i for i in np.flatnonzero(mask) if plain[i] == one) for one in kept]
    assert distinct_places(digests, mask).tolist() == first
    asked = digests_array(data.draw(st.lists(HEX, max_size=20)))
    lookup = Lookup(*Lookup.split(digests))
    expected = [plain.index(one) if one in plain else -1 for one in naive(asked)]
    assert lookup.places(asked).tolist() == expected
    assert lookup.num_distinct() == len(set(plain))
    again = Lookup(*lookup.columns())
    assert again.places(asked).tolist() == expected


def test_finding_does_not_end_with_the_first_chunk() -> None:
    count = CHUNK + 1000
    digests = digests_array([hashlib.sha256(b"%d" % i).hexdigest() for i in range(count)])
    lookup = Lookup(*Lookup.split(digests[: count - 10]))
    assert lookup.places(digests).tolist() == [*range(count - 10), *[-1] * 10]
    assert lookup.num_distinct() == count - 10


@pytest.mark.parametrize("which", [slice(1, 3), np.array([2, 0]), np.array([True, False, True])])
def test_picked_digests_are_those_of_their_rows(which) -> None:
    table = digests_array([hashlib.sha256(b"%d" % i).hexdigest() for i in range(5)])
    picked = Picked(table, np.array([4, 1, 3]))
    assert len(picked) == 3
    assert picked[which].tolist() == table[[4, 1, 3]][which].tolist()
    assert np.asarray(picked).tolist() == table[[4, 1, 3]].tolist()
    mask = np.array([True, False, True])
    assert picked.where(mask)[:].tolist() == table[[4, 3]].tolist()
    assert picked.where(np.ones(3, bool)) is picked


def test_hex_and_bytes_are_each_others_inverse() -> None:
    texts = ["ab" * 31 + "00", "00" * 32, "0f" * 32]
    assert hex_digests(digests_array(texts)) == texts


def test_hex_digits_read_one_at_a_time_are_those_of_all() -> None:
    texts = ["ab" * 31 + "00", "00" * 32, "0f" * 32]
    words = HexDigests(digests_array(texts))
    assert (list(words), len(words), words[-1], words[1:]) == (texts, 3, texts[-1], texts[1:])

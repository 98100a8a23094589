"""Listing, verifying and collecting a store."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from harness.data.training.cache import build_cache
from harness.results.digests import digests_array
from harness.results.store import Store
from harness.results.upkeep import collect, listing, verify

HOUR = 3600


def old(path: Path, seconds: float) -> None:
    stamp = time.time() - seconds
    os.utime(path, (stamp, stamp))


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.items("features").describe({"kind": "features"})
    for part in ("aa", "bb"):
        store.items("features").put(digests_array([part * 32]), np.ones((1, 500), np.float32))
    store.put_head("head", {"a": np.ones(3)}, {})
    store.put_blob(b"weights" * 10)
    return store


def test_everything_is_listed_with_its_kind_images_and_size(store: Store) -> None:
    rows = {row.kind: row for row in listing(store)}
    assert rows["features"].images == 2
    assert rows["features"].bytes > 4000
    assert rows["head"].key == "head"
    assert rows["weights"].bytes == 70
    assert [r.bytes for r in listing(store)] == sorted((r.bytes for r in listing(store)), reverse=True)


def test_what_was_set_aside_is_not_listed_as_a_head_or_weights(store: Store) -> None:
    spoil(store.root / "heads/head/head.safetensors")
    spoil(next((store.root / "blobs").iterdir()))
    assert len(verify(store)) == 2
    assert {row.kind for row in listing(store)} == {"features"}


def test_a_key_with_damaged_description_is_listed(store: Store) -> None:
    (store.root / "items/features/key.json").write_text("{")
    assert {row.kind for row in listing(store)} == {"?", "head", "weights"}


def test_verify_finds_each_damage_once_and_sets_it_aside(store: Store) -> None:
    assert verify(store) == []
    spoil(sorted((store.root / "items/features").glob("*.data"))[0])
    spoil(store.root / "heads/head/head.safetensors")
    spoil(next((store.root / "blobs").iterdir()))
    faults = "\n".join(verify(store))
    assert faults.count("\n") == 2
    assert all(word in faults for word in ("features/", "heads/head", "blobs/"))
    assert verify(Store(store.root)) == []
    assert store.items("features").count() == 1


def test_collect_takes_debris_and_nothing_else(store: Store) -> None:
    damaged = sorted((store.root / "items/features").glob("*.data"))[0]
    spoil(damaged)
    verify(store)
    old(damaged, 2 * HOUR)
    dead, living = store.root / "items/features/.tmp-dead", store.root / "items/features/.tmp-living"
    dead.write_bytes(b"x" * 10)
    living.write_bytes(b"x" * 10)
    old(dead, 2 * HOUR)
    count, size = collect(store, dry_run=True)
    assert dead.exists()
    assert (count, size) == collect(store)
    assert count == 3, "the index set aside, its data, and the dead temporary file"
    assert not dead.exists()
    assert living.exists()
    assert collect(store) == (0, 0)
    assert store.items("features").count() == 1
    assert store.head("head") is not None


def test_collect_takes_old_data_that_no_index_names(store: Store) -> None:
    orphan = store.root / "items/features" / f"{'0' * 40}.data"
    orphan.write_bytes(b"x")
    assert collect(store)[0] == 0, "it may belong to a segment that is being written"
    old(orphan, 2 * HOUR)
    assert collect(store)[0] == 1
    assert store.items("features").matrix(digests_array(["aa" * 32, "bb" * 32]), 500)[1].all()


def test_collect_on_a_store_with_a_damaged_index_goes_on(store: Store) -> None:
    spoil(sorted((store.root / "items/features").glob("*.index"))[0])
    collect(Store(store.root))
    assert Store(store.root).items("features").count() == 1


def test_collect_takes_keys_not_written_for_long_only_where_asked(store: Store) -> None:
    for path in (store.root / "items/features", store.root / "heads/head"):
        old(path, 10 * 86400)
    old(next((store.root / "blobs").iterdir()), 10 * 86400)
    assert collect(store)[0] == 0
    assert collect(store, unused_days=30)[0] == 0
    assert collect(store, unused_days=5)[0] == 3
    assert listing(Store(store.root)) == []


def test_caches_of_pixels_are_listed_verified_and_collected(store: Store) -> None:
    path = store.root / "pixels" / "abc.pixels"
    build_cache(path, 2, lambda i: np.full((4, 4, 3), i, np.uint8))
    assert [(row.kind, row.key) for row in listing(store) if row.kind == "pixels"] == [("pixels", "abc")]
    assert verify(store) == []
    spoil(path)
    assert verify(store) == ["pixels/abc.pixels: does not match its digest"]
    assert not path.exists()
    assert collect(store)[0] == 3
    build_cache(path, 2, lambda i: np.full((4, 4, 3), i, np.uint8))
    old(path, 3 * 24 * HOUR)
    collect(store, unused_days=2)
    assert list((store.root / "pixels").iterdir()) == []

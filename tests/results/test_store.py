"""The store: first writer wins, nothing partial is visible, damage is found, said and mended by recomputing."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.api.errors import StoreError
from harness.results.digests import digests_array
from harness.results.store import Store, read_head, write_head


def digests(*numbers: int) -> np.ndarray:
    return digests_array([hashlib.sha256(str(n).encode()).hexdigest() for n in numbers])


def values(*numbers: int) -> np.ndarray:
    return np.array([[n, -n] for n in numbers], np.float32)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> Store:
    return Store(tmp_path / "store", warn=said.append)


def reopened(store: Store, said: list[str] | None = None) -> Store:
    return Store(store.root, warn=None if said is None else said.append)


def one(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def spoil(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# what is stored comes back -----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True), max_size=6), st.data())
def test_every_image_has_the_value_its_first_writer_gave(tmp_path_factory, batches, data) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    expected: dict[int, int] = {}
    for number, batch in enumerate(batches):
        store.items("k").put(digests(*batch), np.array([[n, number] for n in batch], np.float32))
        for n in batch:
            expected.setdefault(n, number)
    asked = data.draw(st.lists(st.integers(0, 50), max_size=20))
    for items in (store.items("k"), reopened(store).items("k")):
        found, mask = items.matrix(digests(*asked), 2)
        assert mask.tolist() == [n in expected for n in asked]
        assert items.stored(digests(*asked)).tolist() == mask.tolist()
        for n, row, here in zip(asked, found, mask, strict=True):
            assert row.tolist() == [n, expected[n]] if here else np.isnan(row).all()
    assert store.items("k").count() == len(expected)


def test_a_digest_that_ends_in_zero_bytes_is_a_digest_like_any_other(store: Store) -> None:
    odd = digests_array(["ab" * 30 + "0000", "ab" * 31 + "00", "00" * 32])
    store.items("k").put(odd, values(1, 2, 3))
    found, mask = reopened(store).items("k").matrix(odd, 2)
    assert mask.all()
    assert found[:, 0].tolist() == [1, 2, 3]


def test_maps_of_different_sizes_live_under_one_key(store: Store) -> None:
    small, large = np.zeros((2, 1, 4, 4), np.float32), np.ones((1, 1, 6, 8), np.float32)
    store.items("k").put(digests(1, 2), small)
    store.items("k").put(digests(3), large)
    maps, mask = store.items("k").get(digests(3, 1, 9))
    assert mask.tolist() == [True, True, False]
    assert maps[0] is not None
    assert maps[0].shape == (1, 6, 8)
    assert maps[1] is not None
    assert maps[1].shape == (1, 4, 4)
    assert maps[2] is None


def test_what_another_process_stored_meanwhile_is_seen(store: Store) -> None:
    mine, other = store.items("k"), reopened(store).items("k")
    assert not mine.stored(digests(1))[0]
    other.put(digests(1), values(1))
    assert mine.stored(digests(1))[0]


def test_a_key_is_described_once(store: Store) -> None:
    store.items("k").describe({"kind": "features"})
    store.items("k").describe({"kind": "other"})
    assert json.loads((store.root / "items/k/key.json").read_text()) == {"kind": "features"}


# damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["*.data", "*.index"])
@pytest.mark.parametrize("how", ["a bit flipped", "cut short", "emptied", "gone"])
def test_a_damaged_segment_is_set_aside_said_and_can_be_computed_again(store, said, part, how) -> None:
    store.items("k").put(digests(1, 2), values(1, 2))
    store.items("k").put(digests(3), values(3))
    path = sorted((store.root / "items/k").glob(part))[0]
    if how == "a bit flipped":
        spoil(path)
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2 if how == "cut short" else 0])
    again = reopened(store, said)
    _, mask = again.items("k").matrix(digests(1, 2, 3), 2)
    lost = np.flatnonzero(~mask)
    assert len(lost) in (1, 2)
    assert said if (part, how) != ("*.index", "gone") else not said
    assert all("computed again" in text for text in said)
    names = np.array([1, 2, 3])
    again.items("k").put(digests(*names[lost]), values(*names[lost]))
    for items in (again.items("k"), reopened(store).items("k")):
        mended, mask = items.matrix(digests(1, 2, 3), 2)
        assert mask.all(), "the same values computed again must not meet the damaged file"
        assert mended[:, 0].tolist() == [1, 2, 3]
    assert reopened(store).items("k").verify() == []


def test_a_segment_that_belongs_to_other_images_is_refused(store: Store, said: list[str]) -> None:
    store.items("k").put(digests(1), values(1))
    store.items("other").put(digests(2), values(2))
    index = one(store.root / "items/k", "*.index")
    stolen = one(store.root / "items/other", "*.data")
    sha = hashlib.sha256(stolen.read_bytes())
    tail = sha.digest() + digests(1).tobytes()
    index.write_bytes(hashlib.sha256(tail).digest() + tail)
    shutil.copy(stolen, index.parent)
    _, mask = reopened(store, said).items("k").matrix(digests(1), 2)
    assert not mask[0]
    assert "other images" in said[0]


def test_two_processes_that_find_the_same_damage_both_go_on(store: Store) -> None:
    store.items("k").put(digests(1), values(1))
    first, second = reopened(store).items("k"), reopened(store).items("k")
    assert first.stored(digests(1))[0]
    assert second.stored(digests(1))[0]
    spoil(one(store.root / "items/k", "*.data"))
    assert not first.matrix(digests(1), 2)[1][0]
    assert not second.matrix(digests(1), 2)[1][0]


def test_one_process_never_sets_aside_what_another_has_mended(store: Store) -> None:
    store.items("k").put(digests(1), values(1))
    first, second = reopened(store).items("k"), reopened(store).items("k")
    assert second.stored(digests(1))[0]
    spoil(one(store.root / "items/k", "*.data"))
    assert not first.matrix(digests(1), 2)[1][0]
    first.put(digests(1), values(1))
    assert second.matrix(digests(1), 2)[1][0]
    assert reopened(store).items("k").matrix(digests(1), 2)[1][0]


def test_a_damaged_head_is_set_aside_said_and_can_be_stored_again(store: Store, said: list[str]) -> None:
    store.put_head("k", {"a": np.arange(3.0)}, {"n": 1})
    spoil(store.root / "heads/k/head.safetensors")
    assert store.head("k") is None
    assert "fitted again" in said[0]
    store.put_head("k", {"a": np.arange(3.0)}, {"n": 1})
    stored = store.head("k")
    assert stored is not None
    assert stored[0]["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["head.json", "head.safetensors"])
def test_a_head_without_one_of_its_files_is_no_head(tmp_path: Path, name: str) -> None:
    write_head(tmp_path / "head", {"a": np.arange(3.0)}, {})
    (tmp_path / "head" / name).unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        read_head(tmp_path / "head")


def test_the_first_head_wins(store: Store) -> None:
    store.put_head("k", {"a": np.zeros(1)}, {"writer": 1})
    store.put_head("k", {"a": np.ones(1)}, {"writer": 2})
    stored = store.head("k")
    assert stored is not None
    assert stored[1] == {"writer": 1}
    assert [p.name for p in (store.root / "heads").iterdir()] == ["k"]


def test_a_damaged_entry_is_said_and_made_again(store: Store, said: list[str]) -> None:
    store.put_entry("thresholds", "k", {"threshold": 0.5})
    (store.root / "entries/thresholds/k.json").write_text('{"threshold"')
    assert store.entry("thresholds", "k") is None
    assert "damaged" in said[0]
    store.put_entry("thresholds", "k", {"threshold": 0.5})
    assert store.entry("thresholds", "k") == {"threshold": 0.5}


# opening -----------------------------------------------------------------------------------------------------------


def test_a_folder_with_other_things_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(StoreError, match=r"is no store[\s\S]*--store"):
        Store(tmp_path)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"no store[\s\S]*--store"):
        Store(tmp_path / "file")


@pytest.mark.parametrize("text", ['{"format": 99}', "not JSON", "[]", ""])
def test_a_store_of_another_format_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "format.json").write_text(text)
    with pytest.raises(StoreError, match="format"):
        Store(tmp_path)


def test_a_store_that_is_only_read_is_not_made(tmp_path: Path) -> None:
    store = Store(tmp_path / "none", read_only=True)
    assert not store.items("k").stored(digests(1)).any()
    assert store.entry("thresholds", "k") is None
    assert list(tmp_path.iterdir()) == []


# processes ---------------------------------------------------------------------------------------------------------


def _write_all(root: str, writer: int, gate) -> None:
    gate.wait(60)
    store = Store(Path(root))
    for start in range(0, 60, 3):
        numbers = range(start, start + 3)
        store.items("k").put(digests(*numbers), np.array([[n, writer] for n in numbers], np.float32))
    store.put_head("h", {"a": np.full(2, float(writer))}, {})


def test_processes_that_start_one_store_and_write_the_same_images_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Event()
    root = str(tmp_path / "store")
    writers = [context.Process(target=_write_all, args=(root, n, gate)) for n in range(4)]
    for writer in writers:
        writer.start()
    gate.set()
    for writer in writers:
        writer.join(60)
    assert [w.exitcode for w in writers] == [0] * 4
    views = [Store(Path(root)).items("k").matrix(digests(*range(60)), 2) for _ in range(2)]
    assert views[0][1].all()
    assert np.array_equal(views[0][0], views[1][0])
    assert views[0][0][:, 0].tolist() == list(range(60))
    assert Store(Path(root)).items("k").verify() == []


def test_a_writer_killed_at_any_moment_leaves_a_sound_store(tmp_path: Path) -> None:
    code = (
        "import sys, hashlib, itertools, pathlib, numpy as np\n"
        "from harness.results.digests import digests_array\nfrom harness.results.store import Store\n"
        "items = Store(pathlib.Path(sys.argv[1])).items('k')\n"
        "for n in itertools.count():\n"
        "    d = digests_array([hashlib.sha256(f'{n}-{i}'.encode()).hexdigest() for i in range(2000)])\n"
        "    items.put(d, np.full((2000, 64), n, np.float32))\n"
        "    print(n, flush=True)\n"
    )
    root = tmp_path / "store"
    process = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    done = [int(process.stdout.readline()) for _ in range(4)][-1] + 1
    process.kill()
    process.wait()
    process.stdout.close()
    items = Store(root).items("k")
    assert items.verify() == []
    for n in range(done):
        wanted = digests_array([hashlib.sha256(f"{n}-{i}".encode()).hexdigest() for i in range(0, 2000, 500)])
        found, mask = items.matrix(wanted, 64)
        assert mask.all()
        assert (found == n).all()


def test_a_full_disk_leaves_earlier_work_and_nothing_partial(store: Store) -> None:
    store.items("k").put(digests(1), values(1))
    before = sorted(p.name for p in store.root.rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StoreError, match="what was computed before is kept"):
            store.items("k").put(digests(*range(2, 202)), values(*range(2, 202)))
        with pytest.raises(StoreError, match="what was computed before is kept"):
            store.put_head("h", {"a": np.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in store.root.rglob("*") if p.name != "heads") == before
    assert reopened(store).items("k").matrix(digests(1), 2)[1].all()
    store.items("k").put(digests(*range(2, 202)), values(*range(2, 202)))
    assert store.items("k").count() == 201


def test_a_blob_lies_under_its_digest(store: Store) -> None:
    sha = store.put_blob(b"weights")
    assert sha == hashlib.sha256(b"weights").hexdigest()
    assert store.blob(sha).read_bytes() == b"weights"
    assert store.put_blob(b"weights") == sha
    assert os.listdir(store.root / "blobs") == [f"{sha}.safetensors"]

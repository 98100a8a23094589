"""The content-addressed store: per-image results in segments, fitted heads, thresholds, trained weights.

Layout under the root::

    format.json
    items/<key>/key.json                what the key is the hash of
    items/<key>/00000007.index          image digests of one segment and the sha256 of its data (linked last)
    items/<key>/<sha256 prefix>.data    the values of those images, safetensors
    heads/<key>/{head.json,head.safetensors}
    entries/<kind>/<key>.json           thresholds, recipes
    blobs/<sha256>.safetensors          trained weights

Append only; a file is there whole or not at all. Where two writers stored one image, the segment with the lower
number wins. Data is checked against its digest whenever it is read: a segment that does not match is set aside
(``.bad``), reported, and its images count as missing. Computed again, often to the same bits and so under the same
name, the data replaces what is damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.api.errors import StoreError
from harness.results.digests import Digests, Lookup, as_rows, from_rows, row_type
from harness.results.files import locked, to_json, write_atomic, write_numbered, write_once

FORMAT = 1
MOST_PASSES = 100
"""Times that damage is met, or another process changes the store, while one set of images is read."""
Warn = Callable[[str], None]


def _keep(path: Path, data: bytes) -> None:
    """Write a file that is named by its content; one that is there and damaged is replaced."""
    if not write_once(path, data) and path.read_bytes() != data:
        write_atomic(path, data)


def _json_digest(value: Any) -> str:
    return hashlib.sha256(to_json(json.loads(to_json(value)))).hexdigest()  # as it is when read again


@dataclass(frozen=True)
class _Index:
    """Where each stored image of a key is. The list that ``lookup`` knows are the segments' images one after another,
    those of segment i from ``starts[i]`` to ``starts[i + 1]``."""

    names: tuple[str, ...]
    starts: np.ndarray
    lookup: Lookup


_EMPTY = _Index((), np.zeros(1, np.int64), Lookup(np.empty(0, np.uint64), np.empty(0, np.uint64)))
SUFFIXES = (".index", ".bad")
"""Endings of a segment's number: in use, and set aside."""


class Items:
    """Per-image values under one key: features, or an image map of one shape a segment."""

    def __init__(self, folder: Path, warn: Warn) -> None:
        self.folder = folder
        self._warn = warn
        self._cached = _EMPTY
        self._next: int | None = None

    def describe(self, description: Mapping[str, Any]) -> None:
        """Keep what the key was made of beside the values (once)."""
        if not (self.folder / "key.json").exists():
            write_once(self.folder / "key.json", to_json(description))

    def _index_names(self) -> tuple[str, ...]:
        if not self.folder.is_dir():
            return ()
        return tuple(sorted(n for n in os.listdir(self.folder) if n.endswith(".index")))

    def _read_index(self, name: str) -> tuple[str, np.ndarray]:
        """sha256 of the data and digests ``[N, 32]`` of one segment."""
        raw = (self.folder / name).read_bytes()
        if len(raw) < 64 or (len(raw) - 64) % 32 or hashlib.sha256(raw[32:]).digest() != raw[:32]:
            raise ValueError("index damaged")
        return raw[32:64].hex(), np.frombuffer(raw[64:], dtype=np.uint8).reshape(-1, 32)

    def _stated_rows(self, name: str) -> int:
        """Images of a segment by the length of its index; 0 where another process has just set it aside."""
        try:
            return max((self.folder / name).stat().st_size - 64, 0) // 32
        except FileNotFoundError:
            return 0

    def _index(self) -> _Index:
        """The index of the segments that are there now; only what is new is read."""
        names, old = self._index_names(), self._cached
        if old.names == names:
            return old
        if names[: len(old.names)] != old.names:
            old = _EMPTY
        kept, starts = list(old.names), old.starts.tolist()
        most = starts[-1] + sum(self._stated_rows(name) for name in names[len(kept) :])
        first, rest = np.empty(most, np.uint64), np.empty(most, np.uint64)
        first[: starts[-1]], rest[: starts[-1]] = old.lookup.columns()
        del old
        self._cached = _EMPTY  # never two whole indexes
        for name in names[len(kept) :]:
            try:
                _, rows = self._read_index(name)
            except (ValueError, OSError):
                self._set_aside(name, "its index is damaged")
                continue
            stop = starts[-1] + len(rows)
            first[starts[-1] : stop], rest[starts[-1] : stop] = Lookup.split(from_rows(rows))
            kept.append(name)
            starts.append(stop)
        self._cached = _Index(tuple(kept), np.array(starts), Lookup(first[: starts[-1]], rest[: starts[-1]]))
        return self._cached

    def _set_aside(self, name: str, why: str) -> None:
        path = self.folder / name
        self._cached = _EMPTY
        with contextlib.suppress(FileNotFoundError):  # another process found the same damage first
            path.rename(path.with_suffix(".bad"))
            self._warn(f"stored segment {path.parent.name[:12]}/{name} set aside: {why}; its images are computed again")

    def stored(self, digests: Digests) -> np.ndarray:
        """Mask ``[N] bool`` of the images ``[N] S32`` that have a value."""
        return np.asarray(self._index().lookup.places(digests) >= 0)

    def data_names(self) -> set[str]:
        """Stems of the data files that a sound index names."""
        return {self._read_index(name)[0][:40] for name in self._index().names}

    def count(self) -> int:
        """Number of images with a value."""
        return self._index().lookup.num_distinct()

    def put(self, digests: np.ndarray, values: np.ndarray) -> None:
        """Store values ``[N, ...]`` of images ``[N] S32`` as one segment.

        Raises:
            StoreError: not writable or disk full; nothing partial remains visible.
        """
        from safetensors.numpy import save

        rows = as_rows(digests)
        data = save({"digest": np.ascontiguousarray(rows), "value": np.ascontiguousarray(values)})
        sha = hashlib.sha256(data)
        _keep(self.folder / f"{sha.hexdigest()[:40]}.data", data)
        tail = sha.digest() + rows.tobytes()
        content = hashlib.sha256(tail).digest() + tail
        if self._next is None:  # after that the list, long where segments are many, is not read again
            taken = [int(n.split(".")[0]) for n in os.listdir(self.folder) if n.endswith(SUFFIXES)]
            self._next = max(taken, default=-1) + 1
        self._next = 1 + write_numbered(self.folder, self._next, SUFFIXES, content)

    def _read_data(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Digests ``[N] S32`` and values ``[N, ...]`` of a segment, checked."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        sha, rows = self._read_index(name)
        raw = (self.folder / f"{sha[:40]}.data").read_bytes()
        if hashlib.sha256(raw).hexdigest() != sha:
            raise ValueError("data does not match its digest")
        try:
            content = load(raw)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        if not np.array_equal(content["digest"], rows):
            raise ValueError("data belongs to other images")
        return from_rows(rows), content["value"]

    def each(self, digests: Digests) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions ``[n]`` among the images ``[N] S32`` and their values ``[n, ...]``, a segment after the other: what
        to go through more than fits in memory with. Images without a value are left out. A damaged segment is set
        aside and said, and its images are looked for once more.
        """
        wanted: np.ndarray | None = None  # all of them
        for _ in range(MOST_PASSES):
            index = self._index()
            place = index.lookup.places(digests if wanted is None else digests[wanted])
            order = np.argsort(place, kind="stable").astype(row_type(len(place)))
            place = place[order]
            bounds = np.searchsorted(place, index.starts)
            again = []
            for name, low, high, start in zip(index.names, bounds, bounds[1:], index.starts, strict=False):
                if low == high:
                    continue
                positions, rows = order[low:high], place[low:high] - start
                if wanted is not None:
                    positions = wanted[positions]
                try:
                    there, values = self._read_data(name)
                except (ValueError, OSError) as error:
                    self._set_aside(name, str(error))
                    again.append(positions)
                    continue
                if rows.max() >= len(there) or not np.array_equal(there[rows], digests[positions]):
                    self._cached = _EMPTY  # the store was mended and collected under our feet: look again
                    again.append(positions)
                    continue
                yield positions, values[rows]
            if not again:
                return
            wanted = np.concatenate(again)
        raise StoreError("segments change while they are read", where=self.folder, fix="run `harness store verify`")

    def _fill(self, digests: Digests, take: Callable[[np.ndarray, np.ndarray], None]) -> np.ndarray:
        """Call ``take(positions, values)`` for every segment that holds some of the images; mask of those found."""
        found = np.zeros(len(digests), bool)
        for positions, values in self.each(digests):
            take(positions, values)
            found[positions] = True
        return found

    def get(self, digests: Digests) -> tuple[list[np.ndarray | None], np.ndarray]:
        """Values of images ``[N] S32`` (None where missing; shapes may differ) and the mask of those found."""
        out: list[np.ndarray | None] = [None] * len(digests)

        def take(positions: np.ndarray, values: np.ndarray) -> None:
            for position, value in zip(positions, values, strict=True):
                out[position] = value

        found = self._fill(digests, take)
        return [v if f else None for v, f in zip(out, found, strict=True)], found

    def matrix(self, digests: Digests, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Features ``[N, width]`` float32 of images ``[N] S32`` (NaN where missing) and the mask of those found."""
        out = np.full((len(digests), width), np.nan, np.float32)

        def take(positions: np.ndarray, values: np.ndarray) -> None:
            out[positions] = values

        return out, self._fill(digests, take)

    def verify(self) -> list[str]:
        """Every fault found, one line each; faulty segments are set aside."""
        faults = []
        for name in self._index_names():
            try:
                self._read_data(name)
            except (ValueError, OSError) as error:
                faults.append(f"{self.folder.name}/{name}: {error}")
                self._set_aside(name, str(error))
        return faults


class Store:
    """A store folder; made on first use, unless it is to be ``read_only`` (then an absent one is an empty one).

    Raises:
        StoreError: the folder cannot be made or written, or was written by another format version.
    """

    def __init__(self, root: Path, warn: Warn | None = None, *, read_only: bool = False) -> None:
        self.root, self.read_only = root, read_only
        self._warn: Warn = warn or (lambda text: None)
        self._items: dict[str, Items] = {}
        marker = root / "format.json"
        another = "name another folder with --store"
        if root.exists() and not root.is_dir():
            raise StoreError("this is a file, and no store", where=root, fix=another)
        if not marker.exists() and root.is_dir():
            others = [n for n in os.listdir(root) if not n.startswith(".tmp-") and n != marker.name]
            # looked for once more: another process may just have made this store, its marker first
            if others and not marker.exists():
                raise StoreError("folder is not empty and is no store", where=root, fix=another)
        if not read_only:
            what = {"format": FORMAT, "what": "blades-bench store; safe to delete, then recomputed"}
            write_once(marker, to_json(what))
            if not os.access(root, os.W_OK):
                raise StoreError("store is not writable", where=root, fix=another)
        if marker.exists():
            self._check_format(marker, another)

    def _check_format(self, marker: Path, fix: str) -> None:
        try:
            document = json.loads(marker.read_text())
            found = document["format"]
        except (ValueError, KeyError, TypeError):
            raise StoreError("the store's format.json is damaged", where=marker, fix=fix) from None
        if found != FORMAT:
            raise StoreError(f"store has format {found}, this version reads {FORMAT}", where=self.root, fix=fix)

    def items(self, key: str) -> Items:
        """Per-image values under a key."""
        if key not in self._items:
            self._items[key] = Items(self.root / "items" / key, self._warn)
        return self._items[key]

    def item_keys(self) -> Iterator[str]:
        """Every key with per-image values."""
        folder = self.root / "items"
        yield from sorted(os.listdir(folder)) if folder.is_dir() else ()

    # entries: small JSON documents -----------------------------------------------------------------------------

    def entry(self, kind: str, key: str) -> dict[str, Any] | None:
        """A stored JSON document, or None."""
        path = self.root / "entries" / kind / f"{key}.json"
        if not path.exists():
            return None
        try:
            document = json.loads(path.read_text())
            value: dict[str, Any] = document["value"]
            if _json_digest(value) != document["sha256"]:
                raise ValueError("the entry does not match its digest")
        except (ValueError, KeyError, TypeError):
            self._warn(f"stored {kind} {key[:12]} is damaged and is made again")
            with contextlib.suppress(FileNotFoundError):  # another process found the same damage first
                path.rename(path.with_suffix(".bad"))
            return None
        return value

    def put_entry(self, kind: str, key: str, value: Mapping[str, Any], *, replace: bool = False) -> None:
        """Store a JSON document; the first writer wins, unless it is to ``replace`` (what an entry names is gone)."""
        write = write_atomic if replace else write_once
        document = {"sha256": _json_digest(value), "value": dict(value)}
        write(self.root / "entries" / kind / f"{key}.json", to_json(document))

    # heads -------------------------------------------------------------------------------------------------------

    def head(self, key: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and meta of a stored head, or None; a damaged one is set aside and said."""
        folder = self.root / "heads" / key
        if not folder.is_dir():
            return None
        try:
            return read_head(folder)
        except StoreError as error:
            self._warn(f"stored head {key[:12]} set aside: {error.what}; it is fitted again")
            folder.rename(folder.with_name(f"{key}.bad-{uuid.uuid4().hex[:8]}"))
            return None

    def put_head(self, key: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Store a fitted head; the first writer wins."""
        final = self.root / "heads" / key
        temporary = self.root / "heads" / f".tmp-{uuid.uuid4().hex}"
        try:
            write_head(temporary, arrays, meta)
            temporary.rename(final)
        except OSError as error:
            if not final.is_dir():
                raise StoreError(f"cannot store a fitted head: {error.strerror}", where=final) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    # blobs ---------------------------------------------------------------------------------------------------------

    def put_blob(self, data: bytes) -> str:
        """Store bytes under their sha256, which is returned."""
        sha = hashlib.sha256(data).hexdigest()
        _keep(self.blob(sha), data)
        return sha

    def blob(self, sha256: str) -> Path:
        """Path of a blob (which may not exist)."""
        return self.root / "blobs" / f"{sha256}.safetensors"

    def lock(self, name: str) -> Any:
        """A lock between processes, as context manager."""
        return locked(self.root / "locks" / f"{name}.lock")


def write_head(folder: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write a head's arrays (safetensors) and meta (JSON, with the sha256 of both) into a folder."""
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
    write_atomic(folder / "head.safetensors", data)
    digests = {"sha256": hashlib.sha256(data).hexdigest(), "meta_sha256": _json_digest(meta)}
    write_atomic(folder / "head.json", to_json({**digests, "meta": dict(meta)}))


def read_head(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What :func:`write_head` wrote.

    Raises:
        StoreError: missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        document = json.loads((folder / "head.json").read_text())
        raw = (folder / "head.safetensors").read_bytes()
        whole = hashlib.sha256(raw).hexdigest() == document["sha256"]
        if not whole or _json_digest(document["meta"]) != document["meta_sha256"]:
            raise StoreError("a fitted head does not match its digest", where=folder)
        return load(raw), document["meta"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StoreError(f"a fitted head cannot be read: {error}", where=folder) from error

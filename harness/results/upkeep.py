"""Looking after a store: what is in it, whether it is sound, and removing what nobody used for long."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from harness.data.training.cache import FOLDER, cache_files, is_intact
from harness.results.store import Store

WORDS = "words"
"""Folder of a store for small files by which machines of a cluster know it; they are removed with the run."""
WORD_DAYS = 30.0
"""Age at which the run that left a word is taken for killed."""


@dataclass(frozen=True)
class Listing:
    """One line of ``store ls``."""

    kind: str
    key: str
    images: int
    bytes: int
    last_used: float


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def _kind(described: Path) -> str:
    """What the description beside a key says it is; ``?`` where it says nothing that can be read."""
    try:
        return str(json.loads(described.read_text())["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return "?"


def _heads(store: Store) -> list[Path]:
    """Folders of stored heads, without temporary ones and those set aside."""
    heads = store.root / "heads"
    found = sorted(heads.iterdir()) if heads.is_dir() else []
    return [folder for folder in found if not folder.name.startswith(".") and ".bad" not in folder.name]


def listing(store: Store) -> list[Listing]:
    """Everything in the store: per-image results with counts, heads, trained weights; largest first."""
    rows = []
    for key in store.item_keys():
        folder = store.root / "items" / key
        count = store.items(key).count()
        rows.append(Listing(_kind(folder / "key.json"), key, count, _size(folder), folder.stat().st_mtime))
    for folder in _heads(store):
        rows.append(Listing("head", folder.name, 0, _size(folder), folder.stat().st_mtime))
    blobs = store.root / "blobs"
    for path in sorted(blobs.glob("*.safetensors")) if blobs.is_dir() else ():
        rows.append(Listing("weights", path.stem, 0, path.stat().st_size, path.stat().st_mtime))
    for path in _pixels(store):
        rows.append(Listing("pixels", path.stem, 0, sum(_there(path)), path.stat().st_mtime))
    return sorted(rows, key=lambda r: -r.bytes)


def _pixels(store: Store) -> list[Path]:
    """Caches of decoded training images."""
    return sorted((store.root / FOLDER).glob("*.pixels"))


def _there(path: Path) -> list[int]:
    return [f.stat().st_size for f in cache_files(path) if f.is_file()]


def verify(store: Store) -> list[str]:
    """Read everything and compare digests; faults as text, faulty parts set aside (they are recomputed)."""
    import hashlib

    faults = []
    for key in list(store.item_keys()):
        faults += store.items(key).verify()
    for folder in _heads(store):
        if store.head(folder.name) is None:
            faults.append(f"heads/{folder.name}: damaged")
    blobs = store.root / "blobs"
    for path in sorted(blobs.glob("*.safetensors")) if blobs.is_dir() else ():
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.stem:
            faults.append(f"blobs/{path.name}: does not match its digest")
            path.rename(path.with_suffix(".bad"))
    for path in _pixels(store):
        if not is_intact(path):
            faults.append(f"pixels/{path.name}: does not match its digest")
            for file in cache_files(path):
                if file.is_file():
                    file.rename(file.with_name(f"{file.name}.bad"))
    return faults


def _is_debris(path: Path, now: float) -> bool:
    """Set-aside parts, and temporary files older than an hour (younger ones may have a living writer)."""
    if ".bad" in path.name:
        return True
    return path.name.startswith(".tmp-") and now - path.stat().st_mtime > 3600


def collect(store: Store, unused_days: float | None = None, dry_run: bool = False) -> tuple[int, int]:
    """Remove debris, data that no index names, and (where asked) keys not written for so many days.

    Returns:
        Number of files or folders removed, and their bytes.
    """
    now = time.time()
    doomed: list[Path] = [p for p in store.root.rglob("*") if _is_debris(p, now)]
    for key in store.item_keys():
        folder = store.root / "items" / key
        named = store.items(key).data_names()
        doomed += [p for p in folder.glob("*.data") if p.stem not in named and now - p.stat().st_mtime > 3600]
        if unused_days is not None and now - folder.stat().st_mtime > unused_days * 86400:
            doomed.append(folder)
    doomed += [p for p in (store.root / WORDS).glob("*") if now - p.stat().st_mtime > WORD_DAYS * 86400]
    if unused_days is not None:
        old = [*_heads(store), *(store.root / "blobs").glob("*.safetensors")]
        doomed += [p for p in old if now - p.stat().st_mtime > unused_days * 86400]
        for path in _pixels(store):
            if now - path.stat().st_mtime > unused_days * 86400:
                doomed += [file for file in cache_files(path) if file.is_file()]
    doomed = [p for p in dict.fromkeys(doomed) if not any(parent in doomed for parent in p.parents)]
    total = sum(_size(p) if p.is_dir() else p.stat().st_size for p in doomed)
    if not dry_run:
        for path in doomed:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return len(doomed), total

"""``store ls|verify|gc``."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.api.errors import StoreError
from harness.results import upkeep
from harness.results.store import Store


def _open(path: Path) -> Store:
    if not (path / "format.json").is_file():
        raise StoreError("there is no store here", where=path, fix="name it with --store")
    return Store(path)


def listing(path: Path, as_json: bool) -> tuple[Any, bool, str]:
    """Kind, key, images, megabytes and age of everything stored."""
    rows = upkeep.listing(_open(path))
    lines = [f"{'kind':<10} {'key':<14} {'images':>10} {'MB':>10}  last written"]
    for row in rows:
        stamp = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.last_used))
        lines.append(f"{row.kind:<10} {row.key[:12]:<14} {row.images:>10,} {row.bytes / 1e6:>10.1f}  {stamp}")
    total = sum(r.bytes for r in rows)
    lines.append(f"{len(rows)} entries, {total / 1e6:.1f} MB in {path}")
    return [asdict(r) for r in rows], as_json, "\n".join(lines)


def verify(path: Path) -> list[str]:
    """Faults found (now set aside)."""
    return upkeep.verify(_open(path))


def gc(path: Path, unused_days: float | None, dry_run: bool) -> str:
    """What was, or would be, removed."""
    count, size = upkeep.collect(_open(path), unused_days, dry_run)
    return f"{'would remove' if dry_run else 'removed'} {count} files or folders, {size / 1e6:.1f} MB"

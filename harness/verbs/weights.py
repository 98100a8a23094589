"""``weights list|check|convert``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.api.catalogue import Found, catalogue, check_entry, classes_for, look


def _document(found: Sequence[Found], faults: list[str], root: Path) -> dict[str, Any]:
    return {"weights_root": str(root), "files": [f.document() for f in found], "faults": faults}


def _bytes(size: int | None) -> str:
    return "size unknown" if size is None else f"{size:,} bytes"


def _lines(found: Sequence[Found], faults: list[str], root: Path) -> list[str]:
    width = max((len(f.entry.name) for f in found), default=0)
    lines = [f"weights root: {root}{'' if root.is_dir() else ' (there is no such folder)'}"]
    for item in found:
        entry = item.entry
        users = ", ".join(entry.needed_by) or "no registered detector"
        lines.append(f"{entry.name:<{width}}  {item.state:<12}  {users}")
        digest = f"sha256 {entry.sha256[:12]}" if entry.sha256 else "sha256 unknown"
        lines.append(f"    {entry.licence}; {_bytes(entry.size)}; {digest}{'; ' + entry.note if entry.note else ''}")
        if item.message:
            lines.append(f"    {item.message}")
    lines += [f"not asked: {fault}" for fault in faults]
    return lines


def listing(root: Path, as_json: bool) -> tuple[Any, bool, str]:
    """Every official file: who needs it, where it comes from, whether it is there (not read)."""
    entries, faults = catalogue()
    found = [look(entry, root) for entry in entries]
    lines = _lines(found, faults, root)
    present = sum(f.state != "missing" for f in found)
    lines.append(f"{present} of {len(found)} files are there (`harness weights check` reads them)")
    document = _document(found, faults, root)
    for row in document["files"]:
        row["state"] = "here" if row["state"] == "good" else row["state"]
    text = "\n".join(lines).replace("  good        ", "  here        ")
    return document, as_json, text


def check(root: Path) -> tuple[dict[str, Any], str, bool]:
    """Document, text, and whether every file that is there is good; missing ones are listed and count as no fault."""
    entries, faults = catalogue()
    found = [check_entry(entry, root) for entry in entries]
    bad = [f for f in found if f.bad]
    lines = _lines(found, faults, root)
    good = sum(f.state in ("good", "converted") for f in found)
    missing = sum(f.state == "missing" for f in found)
    lines.append(f"{good} good, {len(bad)} bad, {missing} missing (missing files are listed, and no fault here)")
    return {**_document(found, faults, root), "ok": not bad}, "\n".join(lines), not bad


def convert(source: Path, out: Path, allow: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Document and text of a conversion.

    Raises:
        ConfigError, WeightsError: as :func:`harness.api.convert.convert`.
    """
    from harness.api.convert import convert as run

    entries, _ = catalogue()
    done = run(source, out, allowed=(*classes_for(source, entries), *allow))
    document = {
        "path": str(done.path), "sha256": done.sha256, "tensors": done.tensors, "container": done.container,
        "classes": done.classes.split(", ") if done.classes else [], "source": str(source),
        "source_sha256": done.source_sha256,
    }  # fmt: skip
    classes = f" (classes met, as empty stubs: {done.classes})" if done.classes else ""
    text = f"wrote {done.path}: {done.tensors} tensors of a {done.container}{classes}\nsha256 {done.sha256}"
    return document, text

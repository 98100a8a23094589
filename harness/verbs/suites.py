"""``suites list`` and ``suites copy``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.api.errors import ConfigError
from harness.api.yamlsafe import load_yaml
from harness.engine.suite import find_suite, is_sweep, shipped
from harness.results.files import write_once


def listing(as_json: bool) -> tuple[Any, bool, str]:
    """Name, kind (suite or sweep), version and title of each shipped file."""
    rows: list[dict[str, Any]] = []
    for name, path in shipped().items():
        document = load_yaml(path)
        kind = "sweep" if is_sweep(document) else "suite"
        rows.append({"suite": name, "kind": kind, "version": document.get("version"), "title": document.get("title")})
    width = max((len(r["suite"]) for r in rows), default=0)
    lines = [f"{r['suite']:<{width}}  {r['kind']}  v{r['version']}  {r['title']}" for r in rows]
    return rows, as_json, "\n".join(lines)


def copy(name: str, out: Path) -> Path:
    """The copy's path.

    Raises:
        ConfigError: a file of that name is there already.
        StoreError: it cannot be written.
    """
    source = find_suite(name)
    target = out / source.name if out.is_dir() or out.suffix == "" else out
    if not write_once(target, source.read_bytes()):
        raise ConfigError("a file of that name is there already", where=target, fix="name another with --out")
    return target

"""`harness store` on the store of a real run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from plugin_support import Cli


@pytest.fixture
def copy(base, tmp_path: Path) -> Cli:
    """The base run's command line on a copy of its folder."""
    return Cli(Path(shutil.copytree(base.cli.folder, tmp_path / "copy")), base.cli.packages)


def test_ls_lists_features_maps_and_heads(base) -> None:
    rows = base.cli("store", "ls", "--json").document
    kinds = [row["kind"] for row in rows]
    assert kinds.count("features") == 5
    assert kinds.count("maps") == 1
    assert kinds.count("head") == 6
    assert rows[0]["kind"] == "maps", "the largest first"
    assert "entries," in base.cli("store", "ls").out


def test_verify_finds_damage_and_the_next_run_mends_it(base, copy: Cli, data: Path) -> None:
    assert copy("store", "verify").out.strip() == "sound"
    key = next(p["key"] for p in base.done.document["plan"] if p["stage"] == "maps")
    path = next((copy.folder / ".blades-store/items" / key).glob("*.data"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = copy("store", "verify")
    assert found.code == 1
    assert key in found.out
    plan = copy.run(base.suite, data, "--dry-run").document["plan"]
    assert {p["stage"] for p in plan if p["to_do"]} == {"maps"}
    assert copy("store", "verify").code == 0


def test_gc_keeps_what_is_used_and_removes_what_was_not_written_to_for_long(base, copy: Cli, data: Path) -> None:
    assert copy("store", "gc", "--dry-run").out.startswith("would remove 0 ")
    assert copy("store", "gc").out.startswith("removed 0 ")
    plan = copy.run(base.suite, data, "--dry-run").document["plan"]
    assert not any(p["to_do"] for p in plan)
    refused = copy("store", "gc", "--unused-days", "-3")  # a slip of the hand must not empty a store
    assert refused.code == 2
    assert "greater than or equal to 0" in refused.err
    assert "would remove" in copy("store", "gc", "--unused-days", "0", "--dry-run").out
    copy("store", "gc", "--unused-days", "0")
    assert copy("store", "ls", "--json").document == []
    plan = copy.run(base.suite, data, "--dry-run").document["plan"]
    assert all(p["to_do"] for p in plan)

"""The data of a run, and where a row's weights are found."""

from __future__ import annotations

from pathlib import Path

from plugin_support import make_data

from harness.api.events import silent
from harness.api.protocol import Protocol
from harness.engine import suite as suites
from harness.engine.data import prepare_data
from harness.engine.rows import prepare_row
from harness.results.store import Store


def _prepared(root: Path, folder: Path, seed: int):
    suite = suites.load_suite("cross_generator", settings=["data.generators=all"])
    suite = suite.model_copy(update={"test": suites.TestDraw(per_generator=3, seed=seed)})
    return prepare_data(
        suite, root, Store(folder / f"store-{seed}"), seen=[], limit=None, allow_outside=False,
        on_bad_image="stop", workers=1, emit=silent,
    )  # fmt: skip


def test_another_draw_of_test_sets_moves_no_split(tmp_path: Path) -> None:
    root = make_data(tmp_path / "data")
    one, other = _prepared(root, tmp_path, 1), _prepared(root, tmp_path, 2)
    assert one.manifest["split"].tolist() == other.manifest["split"].tolist()
    assert set(one.cells["sha256"]) != set(other.cells["sha256"])


def test_a_converted_file_beside_the_official_name_is_found(tmp_path: Path) -> None:
    row = suites.DetectorRow(detector="blades-oc")
    before = prepare_row("blades-oc", row, Protocol.named("paper"), tmp_path)
    assert before.missing is not None
    assert "OC.pth" in before.missing
    (tmp_path / "blades").mkdir()
    (tmp_path / "blades" / "OC.pth.safetensors").write_bytes(b"x")
    assert prepare_row("blades-oc", row, Protocol.named("paper"), tmp_path).missing is None

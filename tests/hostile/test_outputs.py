"""Places that cannot be written, disks that are full, and stores that were damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from plugin_support import Ran, engine_run, write_suite

# not writable: a file in place of a folder, and a folder of a file system in which nothing can be made --------------

FIT = ("fit", "--detector", "calibrated", "--data-root", "DATA", "--out")
RUN = ("run", "SUITE", "--data-root", "DATA", "--device", "cpu", "--threads", "1", "--tracking-uri", "off")
CALLS: dict[str, tuple[str, ...]] = {
    "run --out": (*RUN, "--out", "HERE"),
    "run --out below": (*RUN, "--out", "HERE/a/b"),
    "run --store": (*RUN, "--store", "HERE"),
    "run --store below": (*RUN, "--store", "HERE/a/b"),
    "fit": (*FIT, "HERE"),
    "fit below": (*FIT, "HERE/a/b"),
    "embed": ("embed", "DATA/ldm", "--detector", "calibrated", "--out", "HERE/x.npz"),
    "data index": ("data", "index", "--data-root", "DATA", "--suite", "SUITE", "--out", "HERE"),
    "data demo": ("data", "demo", "--out", "HERE"),
    "data demo below": ("data", "demo", "--out", "HERE/a/b"),
    "suites copy": ("suites", "copy", "separability", "--out", "HERE/x.yaml"),
    "weights convert": ("weights", "convert", "WEIGHTS", "--out", "HERE/x.safetensors"),
    "store ls": ("store", "ls", "--store", "HERE"),
    "store gc": ("store", "gc", "--store", "HERE"),
    "report": ("report", "HERE"),
    "compare": ("compare", "HERE"),
}


@pytest.mark.parametrize("where", ["a file", "/proc"])
@pytest.mark.parametrize("call", CALLS)
def test_a_place_that_cannot_be_written_is_one_message_before_any_work(
    shell, suite, data: Path, tmp_path: Path, call: str, where: str
) -> None:
    here, weights = tmp_path / "a file", tmp_path / "w.pth"
    here.write_text("mine")
    torch.save({"w": torch.ones(1)}, weights)
    place = str(here if where == "a file" else Path("/proc/nothing-can-be-made-here"))
    named = {"DATA": str(data), "SUITE": str(suite()), "WEIGHTS": str(weights), "HERE": place}
    words = []
    for word in CALLS[call]:
        first, slash, rest = word.partition("/")
        words.append(f"{named.get(first, first)}{slash}{rest}")
    done = shell(*words)
    done.refused()
    assert "images to do" not in done.err, "the place is looked at before the work"
    assert here.read_text() == "mine"
    assert not [p for p in tmp_path.rglob(".*") if p.name != ".blades-store"]


def test_mlflow_that_cannot_be_written_costs_no_result(shell, suite, data: Path) -> None:
    words = [w for w in RUN if w not in ("--tracking-uri", "off")]
    named = [{"SUITE": suite(), "DATA": data}.get(word, word) for word in words]
    done = shell(*named, "--json", "--tracking-uri", "sqlite:////proc/none/mlflow.db")
    assert done.code == 0, done.err
    assert "not logged to MLflow" in done.err
    assert (shell.run_folder(done) / "report.html").is_file()


# full ----------------------------------------------------------------------------------------------------------------


def scores(shell, done) -> pd.DataFrame:
    return pd.read_parquet(shell.run_folder(done) / "scores.parquet")


FULL = {"store marker": 10, "check": 100, "features": 2500, "scores": 5000, "figures": 20_000, "page": 60_000}
"""Largest file, in bytes, that lets a run come as far as this and no further."""


@pytest.mark.parametrize("stage", FULL)
def test_a_disk_that_fills_up_ends_in_one_message_and_the_work_is_kept(shell, suite, data, whole, stage: str) -> None:
    text = shell.run(suite(), data, file_bytes=FULL[stage]).refused()
    assert "cannot write" in text
    assert "what was computed before is kept" in text
    assert not list(shell.folder.rglob(".tmp-*"))
    after = shell.run(suite(), data)
    assert after.code == 0, after.err
    assert scores(shell, after).equals(scores(*whole))
    assert (after.document["computed_images"] == 0) == (stage in ("scores", "figures", "page"))
    assert shell("store", "verify").out.strip() == "sound"


OTHERS = {
    "data index": (("data", "index", "--data-root", "DATA", "--suite", "SUITE", "--out", "index"), 1000),
    "embed": (("embed", "DATA/ldm", "--detector", "calibrated", "--out", "x.npz"), 300),
    "fit": ((*FIT, "fitted"), 100),
    "suites copy": (("suites", "copy", "separability", "--out", "x.yaml"), 100),
    "data demo": (("data", "demo", "--out", "demo"), 100),
}


@pytest.mark.parametrize("call", OTHERS)
def test_a_full_disk_leaves_no_half_of_a_result(shell, suite, data: Path, call: str) -> None:
    words, size = OTHERS[call]
    named = {"DATA": data, "SUITE": suite(), "DATA/ldm": data / "ldm"}
    done = shell(*(named.get(word, word) for word in words), file_bytes=size)
    done.refused()
    assert [p for p in shell.folder.rglob("*") if p.is_file()] == []


def test_a_report_on_a_full_disk_keeps_the_scores(shell, suite, data: Path) -> None:
    folder = shell.run_folder(shell.run(suite(), data))
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    shell("report", folder, file_bytes=20_000).refused()
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


# damaged -----------------------------------------------------------------------------------------------------------


def flipped(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 4]) + content[len(content) // 2 + 1 :]


DAMAGE = {
    "one bit": flipped,
    "zero bytes": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "another format": lambda content: b"[]\n",
    "gone": None,
}


@pytest.fixture(scope="module")
def stored(plugins: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A folder with a store, and the run that made it: features, maps, heads, a threshold."""
    folder = tmp_path_factory.mktemp("stored")
    return folder, engine_run(write_suite(folder, ROWS), data, folder)


ROWS = ("calibrated", "grad-map")
IGNORED = ("key.json", "format.json")
"""Descriptions for people, and the marker, which has a test of its own."""


@pytest.mark.parametrize("how", DAMAGE)
def test_any_damaged_file_of_a_store_is_found_and_said_and_no_score_changes(
    stored: tuple[Path, Ran], data: Path, tmp_path: Path, how: str
) -> None:
    folder, first = stored
    files = sorted(p.relative_to(folder) for p in (folder / "store").rglob("*") if p.is_file())
    tried = [p for p in files if p.name not in IGNORED and "rates" not in p.parts]
    assert {p.parts[1] for p in tried} == {"items", "heads", "entries"}
    for index, name in enumerate(tried):
        own = tmp_path / str(index)
        shutil.copytree(folder / "store", own / "store")
        damage = DAMAGE[how]
        if damage is None:
            (own / name).unlink()
        else:
            (own / name).write_bytes(damage((own / name).read_bytes()))
        again = engine_run(write_suite(own, ROWS), data, own)
        assert again.failures == {}, name
        assert again.scores.equals(first.scores), name
        needed = name.suffix == ".index" or "heads" in name.parts or "entries" in name.parts
        if needed and how != "gone":
            assert again.said, name


def test_a_damaged_marker_is_one_message(shell, suite, data: Path) -> None:
    assert shell.run(suite(), data).code == 0
    marker = shell.folder / ".blades-store/format.json"
    for content in (b"", b"[]", b"{}", b"\xff", b'{"format": 99}', b'{"format": {}}'):
        marker.write_bytes(content)
        shell.run(suite(), data).refused()
        shell("store", "ls").refused()


def test_damage_is_found_by_verify_and_named_by_the_next_run(shell, suite, data: Path, whole) -> None:
    shell.run(suite(), data)
    items = sorted((shell.folder / ".blades-store/items").rglob("*.data"))
    for path in items:
        path.write_bytes(flipped(path.read_bytes()))
    verified = shell("store", "verify")
    assert verified.code == 1
    assert verified.out.count("does not match its digest") == len(items)
    for path in (shell.folder / ".blades-store").rglob("*.json"):
        if "thresholds" in path.parts or "heads" in path.parts:
            path.write_bytes(flipped(path.read_bytes()))
    done = shell.run(suite(), data)
    assert done.code == 0
    assert done.err.count("set aside") + done.err.count("is damaged") == 2, done.err
    assert done.document["computed_images"] > 0
    assert scores(shell, done).equals(scores(*whole))
    assert done.warned == ()


@pytest.mark.parametrize(
    "name", ["record.json", "scores.parquet", "cells.parquet", "manifest.parquet", "audit.parquet"]
)
def test_a_damaged_run_folder_is_one_message(shell, whole, name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole[0].run_folder(whole[1]), tmp_path / "run"))
    original = (folder / name).read_bytes()
    for how in ("zero bytes", "half", "another format"):
        damage = DAMAGE[how]
        assert damage is not None
        (folder / name).write_bytes(damage(original))
        if name == "manifest.parquet":
            (folder / "audit.parquet").unlink(missing_ok=True)
        shell("report", folder).refused()
        if name not in ("audit.parquet", "manifest.parquet"):
            shell("compare", folder).refused()


@pytest.mark.parametrize("how", ["zero bytes", "half", "another format", "one bit"])
def test_a_damaged_fitted_folder_is_one_message(shell, whole, data: Path, tmp_path: Path, how: str) -> None:
    source = whole[0].run_folder(whole[1]) / "fitted/calibrated"
    for name in ("fitted.json", "head/head.json", "head/head.safetensors"):
        folder = Path(shutil.copytree(source, tmp_path / name.replace("/", "-")))
        damage = DAMAGE[how]
        assert damage is not None
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        if (how, name) == ("one bit", "fitted.json"):
            continue  # a file for people to read and change: it has no digest
        shell("score", data / "ldm", "--fitted", folder, "--faces", "off").refused()


@pytest.mark.parametrize("key", ["detector", "options", "protocol", "weights", "threshold", "edits", "micro_batches",
                                 "numerics"])  # fmt: skip
def test_a_fitted_folder_with_other_values_is_one_message(shell, whole, data: Path, tmp_path: Path, key: str) -> None:
    folder = Path(shutil.copytree(whole[0].run_folder(whole[1]) / "fitted/calibrated", tmp_path / "fitted"))
    document = json.loads((folder / "fitted.json").read_text())
    values = [None, 3, "x", [1, 2], {"x": [1]}, [0], [-1], 1e400, {"threads": 1, "device": "nn"}, {"match_format": 3}]
    for value in values:
        if (key == "threshold" and value == 3) or (key == "edits" and value in (values[4], values[8])):
            continue  # what these keys may hold
        (folder / "fitted.json").write_text(json.dumps({**document, key: value}))
        shell("score", data / "ldm", "--fitted", folder, "--faces", "off").refused()

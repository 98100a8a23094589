"""Training folders: what is written is read back, and what is no training folder is refused with its place."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from training_support import KEY, SHA, entry, history

from harness.api.errors import DataError
from harness.results import training
from harness.results.training import by_task, file_name, history_table, read_training, write_training

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A training folder."""
    return write_training(tmp_path / "here", KEY, entry(audit=4), ["DEMO"]).folder


def test_a_folder_says_what_was_trained_how_and_where(folder: Path) -> None:
    record = read_training(folder).record
    assert (record.name, record.key, record.sha256, record.steps) == ("lam", KEY, SHA, 12)
    assert record.recipe["settings"]["lambda_lr"] == 3e-4
    assert record.protocol["outer_batch"] == "heldout"
    assert record.metrics == {"accuracy": 0.75, "kept": 0.5}
    assert (record.started, record.finished) == ("2026-11-20T10:00:00+00:00", "2026-11-20T10:02:00+00:00")
    assert record.command == ["harness", "train", "lam"]
    assert (record.resumed, record.sessions[1].first_step) == (1, 6)
    assert record.stamps == ["DEMO"]
    assert record.environment["git_commit"] == "d" * 40


def test_the_tables_hold_every_step_reading_and_evaluation(folder: Path) -> None:
    read, rows = read_training(folder), history(12, audit=4)
    assert list(read.history.columns[:4]) == ["step", "epoch", "lr", "loss"]
    assert read.history["loss/make/model"].tolist() == [r["losses"]["make/model"] for r in rows]
    assert by_task(read.history, "lambda") == {t: f"lambda/{t}" for t in ("face_coarse", "focal length", "make/model")}
    assert read.history["lambda/focal length"].tolist() == [r["lambda"]["focal length"] for r in rows]
    audited = read.history["audit/differences/0.1/overall"]
    assert audited.notna().tolist() == [(step - 1) % 4 == 0 for step in range(1, 13)]
    assert read.history["audit/exact/face_coarse"][0] == rows[0]["audit"]["exact"]["face_coarse"]
    assert read.speed["images_per_second"].tolist() == [50.0 + s for s in range(12)]
    assert read.select.to_dict("records")[0] == {"step": 5, "epoch": 1, "accuracy": 0.6, "kept": 0.4}


def test_the_history_is_free_of_clocks_and_equal_entries_give_equal_files(folder: Path, tmp_path: Path) -> None:
    other = write_training(tmp_path / "other", KEY, entry(audit=4), ["DEMO"]).folder
    for name in ("training.json", "history.csv", "speed.csv", "select.csv"):
        assert (other / name).read_bytes() == (folder / name).read_bytes(), name
    header = (folder / "history.csv").read_text().splitlines()[0]
    assert "second" not in header
    assert "memory" not in header


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(NUMBERS, NUMBERS, st.none() | NUMBERS), min_size=1, max_size=6))
def test_numbers_come_back_to_the_bit(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    steps = [
        {"step": i + 1, "epoch": 1, "lr": lr, "loss": loss, "losses": {"a": loss}, "more": {"b": more}}
        for i, (lr, loss, more) in enumerate(rows)
    ]
    folder = tmp_path_factory.mktemp("bits")
    written = write_training(folder, KEY, entry(history=steps)).history
    read = read_training(folder).history
    pd.testing.assert_frame_equal(read.astype(float), written.astype(float), check_exact=True)


def test_a_training_of_no_steps_and_an_entry_without_readings_make_a_folder(tmp_path: Path) -> None:
    bare = {
        k: v for k, v in entry(history=[]).items() if k in ("sha256", "recipe", "metrics", "description", "history")
    }
    read = write_training(tmp_path, KEY, bare)
    assert (read.record.steps, read.record.started, read.record.resumed) == (0, "", 0)
    again = read_training(tmp_path)
    assert [len(t) for t in (again.history, again.speed, again.select)] == [0, 0, 0]


def test_a_list_is_numbered_and_words_stay(tmp_path: Path) -> None:
    rows = [{**history(1)[0], "weights": [0.5, 0.25], "phase": "warm"}]
    table = history_table(rows)
    assert table["weights/1"].tolist() == [0.25]
    assert table["phase"].tolist() == ["warm"]


@given(st.lists(st.text(max_size=80), min_size=2, max_size=2, unique=True))
def test_a_recipes_name_is_one_folder_of_its_own(names: list[str]) -> None:
    one, two = map(file_name, names)
    for name in (one, two):
        assert name == Path(f"x{name}").name[1:]
        assert name not in ("", ".", "..")
        assert len(name) < 80
    assert one.casefold() != two.casefold() or names[0].casefold() == names[1].casefold()


def broken(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_training(folder)
    return str(caught.value)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a training folder"):
        read_training(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"name": "x", "key": "../../etc"}', "[" * 100_000],
    ids=["cut", "list", "empty", "key", "deep"],
)
def test_a_damaged_record_is_named(folder: Path, text: str) -> None:
    assert "training.json" in broken(folder, "training.json", text)


def test_an_unknown_key_of_a_record_is_named(folder: Path) -> None:
    record = json.loads((folder / "training.json").read_text())
    assert "extra" in broken(folder, "training.json", json.dumps({**record, "extra": 1}))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("history.csv", ""),
        ("history.csv", "step,epoch,lr\n1,1,0.1\n"),
        ("history.csv", "step,epoch,lr,loss\n1,1,0.1,low\n"),
        ("history.csv", "step,epoch,lr,loss\ninf,1,0.1,0.1\n"),
        ("speed.csv", "step,images_per_second,memory_mib\n,1,1\n"),
        ("select.csv", "a,b\n1\n2,3,4\n"),
    ],
)
def test_a_damaged_table_is_named(folder: Path, name: str, text: str) -> None:
    assert name in broken(folder, name, text)


def test_a_missing_table_is_named(folder: Path) -> None:
    (folder / "speed.csv").unlink()
    with pytest.raises(DataError, match=r"speed\.csv"):
        read_training(folder)


def test_files_too_large_to_be_true_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "MAX_CSV", 100)
    with pytest.raises(DataError, match="larger than"):
        read_training(folder)

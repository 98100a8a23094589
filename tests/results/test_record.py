"""The record of a run: typed, complete, the same when read again, and honest about where it was made."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from harness.results import record as module
from harness.results.record import DetectorRecord, Record, environment, now


def made(**changes) -> Record:
    fields = {
        "run_id": "r", "suite": "s", "suite_version": 1, "title": "S", "profile": "demo", "started": now(),
        "protocol": {"threshold": "in_sample"}, "protocol_base": "paper", "bootstrap": {"n": 100}, "tables": [],
        "detectors": {"a": DetectorRecord(name="a", threshold=0.5)},
    }  # fmt: skip
    return Record.model_validate({**fields, **changes})


def test_a_record_read_again_is_the_same() -> None:
    record = made(failures=[{"row": "a", "message": "x"}], timings={"total_seconds": 1.5})
    assert Record.model_validate(json.loads(json.dumps(record.model_dump(mode="json")))) == record


@pytest.mark.parametrize("change", [{"stampz": []}, {"detectors": {"a": {"name": "a", "statis": "ok"}}}])
def test_a_record_has_no_unknown_fields(change) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        made(**change)


def test_now_is_utc_to_the_second() -> None:
    stamp = datetime.fromisoformat(now())
    assert stamp.utcoffset() == timedelta(0)
    assert stamp.microsecond == 0


def test_the_environment_names_commit_packages_processor_and_threads() -> None:
    found = environment("cpu", 3)
    assert found["packages"].keys() >= {"blades-bench", "torch", "scikit-learn", "numpy", "mlflow"}
    assert found["packages"]["torch"]
    assert (found["device"], found["threads"], found["gpu"]) == ("cpu", 3, None)
    assert found["cpu"]
    json.dumps(found)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(module.__file__).parent, capture_output=True, text=True, check=False
    )
    if head.returncode == 0:
        assert found["git_commit"] == head.stdout.strip()
        assert isinstance(found["git_dirty"], bool)


def test_outside_a_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_git", lambda *words: None)
    found = environment("cpu", 1)
    assert found["git_commit"] is None
    assert found["git_dirty"] is None


def test_a_file_that_the_checkout_around_does_not_track_claims_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_checkout(*words: str) -> str | None:
        return None if words[0] == "ls-files" else "0" * 40

    monkeypatch.setattr(module, "_git", other_checkout)
    assert environment("cpu", 1)["git_commit"] is None


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert module._version("no-such-package-at-all") is None

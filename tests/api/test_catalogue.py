"""The catalogue: every file that a registered detector loads, and what is here of it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.api import catalogue as module
from harness.api.catalogue import Entry, catalogue, check_entry, classes_for, look
from harness.api.contract import WeightsFile
from harness.api.errors import ConfigError, PluginError
from harness.api.registry import detector_class, registrations

ENTRY = Entry("net/one.pth", "the shelf", "MIT")


def test_every_file_of_every_detector_is_in_it_once() -> None:
    entries, faults = catalogue()
    assert faults == []
    names = [e.name for e in entries]
    assert names == sorted(set(names))
    for detector in registrations():
        for slot, file in detector_class(detector).weights_files.items():
            (entry,) = [e for e in entries if e.name == file.name]
            assert f"{detector} ({slot})" in entry.needed_by
            assert entry.where
            assert entry.licence


def test_a_pickled_file_has_its_own_list_of_classes() -> None:
    entries, _ = catalogue()
    assert "resnet18_gram.GramMatrix" in classes_for(Path("x/stylegan-ffhq.pth"), entries)
    assert classes_for(Path("x/other.pth"), entries) == ()


def save(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def test_a_missing_file_is_missing_and_a_good_one_good(tmp_path: Path) -> None:
    found = check_entry(ENTRY, tmp_path)
    assert (found.state, found.bad) == ("missing", False)
    assert "the shelf" in found.message
    path = save(tmp_path / ENTRY.name, {"w": torch.ones(2)})
    exact = replace(ENTRY, size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert check_entry(exact, tmp_path).state == "good"


def test_size_digest_and_content_are_judged_apart(tmp_path: Path) -> None:
    path = save(tmp_path / ENTRY.name, {"w": torch.ones(2)})
    assert check_entry(replace(ENTRY, size=1), tmp_path).state == "wrong size"
    assert check_entry(replace(ENTRY, sha256="0" * 64), tmp_path).state == "wrong digest"
    path.write_bytes(path.read_bytes()[:100])
    found = check_entry(ENTRY, tmp_path)
    assert (found.state, found.bad) == ("not loadable", True)
    assert "weights convert" in found.message


def test_a_file_that_is_no_checkpoint_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "landmarks.dat").write_bytes(b"dlib")
    assert check_entry(replace(ENTRY, name="landmarks.dat"), tmp_path).state == "good"


def test_a_conversion_beside_a_file_stands_for_it(tmp_path: Path) -> None:
    path = save(tmp_path / ENTRY.name, {"w": torch.ones(2)})
    path.write_bytes(b"not for loaders")
    beside = path.with_suffix(".safetensors")
    save_file({"w": torch.ones(2)}, beside)
    found = check_entry(ENTRY, tmp_path)
    assert (found.state, found.path) == ("converted", beside)
    path.unlink()
    assert look(ENTRY, tmp_path).state == check_entry(ENTRY, tmp_path).state == "converted"
    beside.write_bytes(b"half")
    assert check_entry(ENTRY, tmp_path).bad


def test_two_detectors_may_share_a_file_but_not_disagree_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a": WeightsFile("f.pth", "x", "MIT", sha256="1" * 64), "b": WeightsFile("f.pth", "x", "MIT", size=3)}
    monkeypatch.setattr(module, "registrations", lambda: dict.fromkeys(files))
    monkeypatch.setattr(module, "detector_class", lambda n: type("D", (), {"weights_files": {"weights": files[n]}}))
    (entry,) = [e for e in catalogue()[0] if e.name == "f.pth"]
    assert (entry.sha256, entry.size, entry.needed_by) == ("1" * 64, 3, ("a (weights)", "b (weights)"))
    files["b"] = replace(files["b"], sha256="2" * 64)
    with pytest.raises(PluginError, match="different sha256"):
        catalogue()


def test_a_broken_detector_is_named_and_the_others_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = detector_class

    def broken(name: str):
        if name == "blades-oc":
            raise ConfigError("cannot be imported")
        return real(name)

    monkeypatch.setattr(module, "detector_class", broken)
    entries, faults = catalogue()
    assert faults == ["blades-oc: cannot be imported"]
    assert any(e.name == "blades/BC.pth" for e in entries)

"""``weights list|check|convert`` through the command line."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from plugin_support import Cli
from safetensors.torch import load_file, save_file


def row(document: dict, name: str) -> dict:
    (found,) = [r for r in document["files"] if r["name"] == name]
    return found


def test_listing_says_who_needs_a_file_where_it_comes_from_and_whether_it_is_here(cli: Cli) -> None:
    root = cli.folder / "pretrained"
    (root / "tiny").mkdir(parents=True)
    save_file({"w": torch.ones(2)}, root / "tiny/cnn.safetensors")
    done = cli("weights", "list", "--json")
    assert done.code == 0
    mine = row(done.document, "tiny/cnn.safetensors")
    assert mine["state"] == "here"
    assert mine["needed_by"] == ["trained-cnn (weights)"]
    assert row(done.document, "blades/OC.pth")["state"] == "missing"
    text = cli("weights", "list").out
    assert "the shelf of nobody" not in text.split("tiny/cnn.safetensors")[1].splitlines()[1]
    assert "pan.baidu.com" in text


def test_check_passes_what_is_good_or_missing_and_exits_1_on_what_is_bad(cli: Cli) -> None:
    root = cli.folder / "w"
    assert cli("weights", "check", "--weights-root", root).code == 0
    (root / "tiny").mkdir(parents=True)
    save_file({"w": torch.ones(2)}, root / "tiny/cnn.safetensors")
    done = cli("weights", "check", "--weights-root", root, "--json")
    assert (done.code, done.document["ok"]) == (0, True)
    assert row(done.document, "tiny/cnn.safetensors")["state"] == "good"
    (root / "tiny/cnn.safetensors").write_bytes(b"half a file")
    done = cli("weights", "check", "--weights-root", root)
    assert done.code == 1
    assert "not loadable" in done.out
    assert "1 bad" in done.out
    assert "Traceback" not in done.text


def test_convert_makes_a_file_that_loaders_take(cli: Cli) -> None:
    cli.folder.mkdir(parents=True)
    source = cli.folder / "net.pth"
    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), source)
    done = cli("weights", "convert", source, "--out", "net.safetensors", "--json")
    assert done.code == 0, done.text
    made = cli.folder / "net.safetensors"
    assert sorted(load_file(made)) == ["0.bias", "0.weight"]
    assert done.document["sha256"] == hashlib.sha256(made.read_bytes()).hexdigest()
    assert done.document["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    again = cli("weights", "convert", source, "--out", "net.safetensors")
    assert (again.code, again.err.count("error:")) == (2, 1)


class Harm:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("verb", ["convert", "check"])
def test_a_file_that_would_run_a_command_is_refused_and_does_not(cli: Cli, verb: str, tmp_path: Path) -> None:
    path, mark = cli.folder / "w/cnnd/blur_jpg_prob0.5.pth", tmp_path / "ran"
    path.parent.mkdir(parents=True)
    torch.save({"model": Harm(mark)}, path)
    words = (path, "--out", "x.safetensors") if verb == "convert" else ("--weights-root", "w")
    done = cli("weights", verb, *words)
    assert done.code == (2 if verb == "convert" else 1)
    assert "refused" in done.text
    assert "Traceback" not in done.text
    assert not mark.exists()
    assert not (cli.folder / "x.safetensors").exists()

"""Checkpoints from strangers, named to every detector and to a suite's row: one message, and nothing in them runs."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from plugin_support import segments
from safetensors.torch import save_file

from harness.api.contract import Chain
from harness.api.registry import make_detector, registrations

Tensors = dict[str, torch.Tensor]
OURS = [name for name, entry in registrations().items() if entry.target.startswith("detectors.")]


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def compressed(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))
    return buffer.getvalue()


def holding_itself() -> dict[str, Any]:
    value: dict[str, Any] = {"w": torch.ones(1)}
    value["more"] = value
    return value


FILES = {
    "zero bytes": (lambda: b"", "refused to load"),
    "text": (lambda: b"I am a checkpoint\n" * 99, "refused to load"),
    "an HTML page in place of the download": (lambda: b"<!DOCTYPE html><html>quota exceeded</html>", "refused to load"),
    "half downloaded": (lambda: saved({"w": torch.ones(9999)})[:20_000], "refused to load"),
    "a pickled module": (lambda: saved(torch.nn.Linear(2, 2)), "weights convert"),
    "a TorchScript archive": (scripted, "a TorchScript archive, which holds code"),
    "a pickle that opens a file": (lambda: saved({"w": torch.ones(1), "args": Evil("evil.txt")}), "refused to load"),
    "compressed members": (lambda: compressed(saved({"w": torch.zeros(99)})), "compressed"),
    "a list": (lambda: saved([torch.ones(1)]), "holds a list"),
    "no tensors": (lambda: saved({"epoch": 3}), "holds no tensors"),
    "a dictionary that holds itself": (lambda: saved(holding_itself()), "nested more than"),
    "a zip of something else": (lambda: compressed(scripted()), "refused to load"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_checkpoint_is_one_message(shell, data: Path, tmp_path: Path, kind: str) -> None:
    made, said = FILES[kind]
    path = tmp_path / "stranger.pth"
    path.write_bytes(made())
    for words in (("--weights", path), ("--weights", f"weights={path}")):
        done = shell("embed", data / "ldm", "--detector", "cnnd", *words, "--out", "x.npz")
        text = done.refused()
        assert said in text
        assert "stranger.pth" in text
    assert not (shell.folder / "evil.txt").exists()
    assert not (shell.folder / "x.npz").exists()


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("name", [n for n in OURS if Chain.of(make_detector(n)).slots])
def test_every_detector_refuses_garbage_and_other_networks(shell, data: Path, tmp_path: Path, name, ending) -> None:
    for index, foreign in enumerate(({"x.weight": torch.ones(2, 2)}, None)):
        path = tmp_path / f"stranger{index}.{ending}"
        if foreign is None:
            path.write_bytes(b"\x80\x02garbage" * 50)
        else:
            save_file(foreign, path) if ending == "safetensors" else torch.save(foreign, path)
        slots = Chain.of(make_detector(name)).slots
        words = [word for slot in slots for word in ("--weights", f"{slot}={path}")]
        text = shell("embed", data / "ldm", "--detector", name, *words, "--out", "x.npz").refused()
        assert path.name in text
        assert foreign is not None or "refused to load" in text or "not a readable safetensors" in text


# tensors ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official() -> Tensors:
    """CNND's tensors, each one stored number with the network's shape, so that the files stay small."""
    from detectors.networks.resnet import ResNet

    state = ResNet.seeded(1, 0).to_torchvision()
    return {k: torch.full((), 0.01).to(v.dtype).expand(v.shape) for k, v in state.items()}


CHANGES = {
    "missing": ({"layer1.0.conv1.weight": None, "fc.bias": None}, "2 missing: layer1.0.conv1.weight, fc.bias"),
    "spare": ({"fc2.weight": torch.ones(3)}, "1 spare: fc2.weight"),
    "misshaped": ({"fc.weight": torch.ones(1000, 2048)}, "1 misshaped: fc.weight"),
    "of a claimed terabyte": ({"fc.weight": torch.ones(1).expand(10**6, 10**6)}, "claim more than 16 GiB"),
    "NaN": ({"fc.weight": torch.full((1, 2048), torch.nan)}, "1 not finite: fc.weight"),
    "complex": ({"fc.bias": torch.ones(1, dtype=torch.complex64)}, "1 tensors are no plain numbers"),
    "sparse": ({"fc.bias": torch.ones(1).to_sparse()}, "1 tensors are no plain numbers"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_tensors_that_do_not_fit_are_named_in_one_message(shell, data, tmp_path: Path, official, kind: str) -> None:
    change, said = CHANGES[kind]
    state = {k: v for k, v in {**official, **change}.items() if v is not None}
    torch.save({"model": state}, tmp_path / "cnnd.pth")
    text = shell("score", data / "ldm", "--detector", "cnnd", "--weights", tmp_path / "cnnd.pth", "--json").refused()
    assert said in text
    assert "cnnd.pth" in text


def test_the_file_of_these_tests_is_accepted_when_it_is_left_alone(shell, data, tmp_path: Path, official) -> None:
    torch.save({"model": official}, tmp_path / "cnnd.pth")
    words = ("--detector", "cnnd", "--weights", tmp_path / "cnnd.pth", "--faces", "off", "--threads", "1")
    assert shell("score", data / "ldm/0000.png", *words).code == 0


# a run -------------------------------------------------------------------------------------------------------------


def tiny() -> Tensors:
    from bench_plugins.cnn import network

    return {k: v.clone() for k, v in network(8, 1).state_dict().items()}


@pytest.mark.parametrize("where", ["named", "official"])
def test_bad_weights_stop_a_run_before_work_and_lose_nothing(shell, suite, data: Path, tmp_path, where: str) -> None:
    first = shell.run(suite("calibrated"), data)
    root = shell.folder / "pretrained/tiny"
    root.mkdir(parents=True)
    path = root / "cnn.safetensors" if where == "official" else tmp_path / "own.safetensors"
    words = () if where == "official" else ("--set", f"trained-cnn.weights={path}")
    kept = set(segments(shell.folder / ".blades-store"))
    both = suite("trained-cnn", "calibrated")
    bad = {
        "NaN": {**tiny(), "0.bias": torch.full((8,), torch.nan)},
        "infinite as float32": {**tiny(), "0.bias": torch.full((8,), 1e300, dtype=torch.float64)},
        "missing": {"0.bias": torch.ones(8)},
    }
    for state in bad.values():
        save_file(state, path)
        text = shell.run(both, data, *words).refused()
        assert path.name in text
        assert "row trained-cnn" in text
        assert set(segments(shell.folder / ".blades-store")) == kept
    path.write_bytes(path.read_bytes()[:50])
    shell.run(both, data, *words).refused()
    save_file(tiny(), path)
    done = shell.run(both, data, *words)
    stages = {stage["rows"][0]: stage["stored"] for stage in done.document["plan"]}
    assert stages["calibrated"] > 0
    assert stages["trained-cnn"] == 0
    table = pd.read_parquet(shell.run_folder(done) / "scores.parquet")
    before = pd.read_parquet(shell.run_folder(first) / "scores.parquet")
    assert table[table["detector"] == "calibrated"].reset_index(drop=True).equals(before)


def test_the_conversion_of_a_stranger_is_one_message_and_leaves_no_file(shell, tmp_path: Path) -> None:
    shell.folder.mkdir()
    for index, (made, _) in enumerate(FILES.values()):
        path = tmp_path / f"stranger{index}.pth"
        path.write_bytes(made())
        done = shell("weights", "convert", path, "--out", f"made{index}.safetensors")
        if done.code != 0:  # some hold tensors that a process which runs nothing can take out
            done.refused()
            assert not (shell.folder / f"made{index}.safetensors").exists()
    assert not list(shell.folder.glob("*.txt"))
    assert not list(shell.folder.glob(".*"))

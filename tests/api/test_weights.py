"""Checkpoints are read without running anything in them, and fit exactly or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.api import weights as weights_module
from harness.api.errors import WeightsError
from harness.api.weights import ResolvedWeights, file_digest, load_strict, read_tensors


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_safetensors_file_gives_its_tensors(tmp_path: Path) -> None:
    save_file({"a.b": torch.arange(3.0)}, tmp_path / "w.safetensors")
    assert read_tensors(tmp_path / "w.safetensors")["a.b"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("container", [None, "model", "state_dict"])
def test_an_authors_file_gives_the_tensors_of_its_model(tmp_path: Path, container: str | None) -> None:
    state = {"net": {"w": torch.ones(2)}, "b": torch.zeros(1)}
    torch.save({container: state, "epoch": 3} if container else state, tmp_path / "w.pth")
    assert sorted(read_tensors(tmp_path / "w.pth")) == ["b", "net.w"]


def test_nothing_in_a_pickled_file_runs(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"model": {"w": torch.ones(1)}, "args": Evil(str(trace))}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"refused to load[\s\S]*converted to safetensors"):
        read_tensors(tmp_path / "w.pth")
    assert not trace.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="refused to load"):
        read_tensors(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x00" * 100, b"\xff" * 16])
def test_a_damaged_file_is_refused_and_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"w{suffix}"):
        read_tensors(path)


def test_a_cut_download_is_refused(tmp_path: Path) -> None:
    for name, save in (("w.pth", torch.save), ("w.safetensors", save_file)):
        path = tmp_path / name
        save({"a": torch.arange(1000.0)}, path)
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(WeightsError, match=name):
            read_tensors(path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {}}])
def test_a_file_without_tensors_is_refused(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds"):
        read_tensors(tmp_path / "w.pth")


def test_a_missing_file_says_so_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"not found[\s\S]*--weights-root"):
        read_tensors(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="cannot read"):
        file_digest(tmp_path / "none.pth")


def test_a_file_over_the_limit_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.arange(3.0)}, tmp_path / "w.safetensors")
    monkeypatch.setattr(weights_module, "MAX_CHECKPOINT_BYTES", 10)
    with pytest.raises(WeightsError, match="larger than"):
        read_tensors(tmp_path / "w.safetensors")


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"abc")
    assert file_digest(tmp_path / "w") == hashlib.sha256(b"abc").hexdigest()


def test_random_weights_have_no_file() -> None:
    with pytest.raises(WeightsError, match="random"):
        ResolvedWeights("random", "random:3", seed=3, label="random weights, seed 3").tensors()


def test_a_file_that_changed_since_it_was_planned_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    planned = ResolvedWeights("file", file_digest(path), path=path)
    assert planned.tensors()["a"].tolist() == [0, 0, 0]
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(WeightsError, match="changed"):
        planned.tensors()


# load_strict ---------------------------------------------------------------------------------------------------


def good() -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}


def test_tensors_that_fit_are_loaded() -> None:
    module = torch.nn.Linear(3, 2)
    load_strict(module, good(), "here")
    assert module.weight.tolist() == np.ones((2, 3)).tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bias": None}, "1 missing: bias"),
        ({"extra": torch.ones(1)}, "1 spare: extra"),
        ({"bias": torch.ones(3)}, r"1 misshaped: bias is \[3\], expected \[2\]"),
        ({"bias": torch.tensor([0.0, float("nan")])}, "1 not finite: bias"),
        ({"bias": torch.tensor([0.0, float("inf")])}, "1 not finite: bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded(change, said: str) -> None:
    module = torch.nn.Linear(3, 2)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    tensors = {k: v for k, v in {**good(), **change}.items() if v is not None}
    with pytest.raises(WeightsError, match=said):
        load_strict(module, tensors, "here")
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_a_batch_counter_may_be_absent_and_keeps_its_value() -> None:
    module = torch.nn.BatchNorm1d(2)
    tensors = {k: v + 1 for k, v in module.state_dict().items() if k != "num_batches_tracked"}
    load_strict(module, tensors, "here")
    assert module.num_batches_tracked is not None
    assert module.num_batches_tracked.item() == 0
    assert module.running_mean is not None
    assert module.running_mean.tolist() == [1, 1]

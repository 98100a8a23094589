"""Conversion: tensors come out as torch would load them, and nothing in the file runs."""

from __future__ import annotations

import io
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from harness.api.convert import NN_LAYERS, convert
from harness.api.convert_worker import RefusedError, SafeUnpickler, TensorRef, tensors_of
from harness.api.errors import ConfigError, WeightsError
from harness.api.weights import file_digest, read_tensors

LEGACY_HEAD = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
OURS = ("made_up_net.Net", "made_up_net.Scale")


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1e-3]))


class Net(nn.Module):
    """A transposed half tensor, a view into a longer storage, bfloat16, shared and passing tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.layer = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout())
        self.scale = Scale()
        self.turned = nn.Parameter(torch.randn(3, 2).half().t())
        self.view = nn.Parameter(torch.randn(6).bfloat16()[2:5])
        self.again = self.conv1
        self.register_buffer("passing", torch.zeros(2), persistent=False)
        self.register_buffer("counts", torch.arange(4))


@pytest.fixture
def net() -> nn.Module:
    module = types.ModuleType("made_up_net")
    for cls in (Scale, Net):
        cls.__module__ = "made_up_net"
        setattr(module, cls.__name__, cls)
    sys.modules["made_up_net"] = module
    torch.manual_seed(1)
    made = Net()
    yield made
    del sys.modules["made_up_net"]


def same(path: Path, module: nn.Module) -> None:
    found, expected = load_file(path), module.state_dict()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["module", "in a dictionary"])
def test_a_pickled_module_gives_its_state_dict(net: nn.Module, tmp_path: Path, zipped: bool, wrapped: bool) -> None:
    source = tmp_path / "net.pth"
    content = {"model": net, "optimizer": {"step": torch.ones(3)}} if wrapped else net
    torch.save(content, source, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="weights convert"):
        read_tensors(source)
    done = convert(source, tmp_path / "new" / "net.safetensors", allowed=OURS)
    same(done.path, net)
    assert done.tensors == len(net.state_dict())
    with safe_open(done.path, "pt") as opened:
        said = opened.metadata()
    assert said["source_sha256"] == file_digest(source) == done.source_sha256
    assert said["source_file"] == "net.pth"
    assert said["converter"].startswith("blades-bench ")
    assert "made_up_net.Net" in said["classes"]
    assert set(read_tensors(done.path)) == set(net.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_gives_the_tensors_that_torch_gives(tmp_path: Path) -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 2), nn.ReLU())).eval()
    inner.register_buffer("input_resolution", torch.tensor(224))
    script = torch.jit.trace(inner, torch.zeros(1, 3, 6, 6)).half()  # OpenAI's are traced, and in float16
    source = tmp_path / "RN50.pt"
    torch.jit.save(script, str(source))
    done = convert(source, tmp_path / "out.safetensors")
    same(done.path, torch.jit.load(str(source)))
    assert done.container == "TorchScript archive"


class Harm:
    """Pickled as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def hostile(kind: str, path: Path, mark: Path) -> None:
    harm = Harm(f"touch {mark}")
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(harm))
    elif kind in ("zip", "before 1.6"):
        content = {"model": {"w": torch.ones(2)}, "extra": harm}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps(harm, 2))
            archive.writestr("a/constants.pkl", pickle.dumps((), 2))
            archive.writestr("a/code/__torch__.py", "")


@pytest.mark.parametrize("kind", ["bare pickle", "zip", "before 1.6", "TorchScript"])
def test_a_pickle_that_calls_a_command_is_refused_and_does_not_run_it(tmp_path: Path, kind: str) -> None:
    source, mark, out = tmp_path / "bad.pth", tmp_path / "ran", tmp_path / "bad.safetensors"
    hostile(kind, source, mark)
    with pytest.raises(WeightsError, match="refused"):
        convert(source, out)
    with pytest.raises(WeightsError, match="refused"):  # nor when its user allows names of the same module
        convert(source, out, allowed=("os.path", "posix.open"))
    assert not mark.exists()
    assert not out.exists()
    pickle.loads(pickle.dumps(harm := Harm(f"touch {mark}")))
    assert mark.exists(), f"{harm} would have run"


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "torch._utils._rebuild_sparse_tensor"])
def test_what_is_on_no_list_is_refused_by_name(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    text = f"c{module}\n{attribute}\n.".encode()
    with pytest.raises(RefusedError, match=name):
        SafeUnpickler(io.BytesIO(text), frozenset(NN_LAYERS)).load()


def test_an_allowed_name_is_a_stub_even_if_it_is_a_function(tmp_path: Path) -> None:
    source, mark = tmp_path / "bad.pth", tmp_path / "ran"
    torch.save({"model": {"w": torch.ones(2)}, "extra": Harm(f"touch {mark}")}, source)
    done = convert(source, tmp_path / "out.safetensors", allowed=("posix.system",))
    assert torch.equal(load_file(done.path)["w"], torch.ones(2))
    assert not mark.exists()


def test_unlisted_classes_are_refused_and_the_way_to_allow_them_is_said(net: nn.Module, tmp_path: Path) -> None:
    torch.save(net, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"made_up_net\.Net[\s\S]*--allow"):
        convert(tmp_path / "net.pth", tmp_path / "out.safetensors")


@pytest.mark.parametrize("how", ["cut", "flipped", "text", "empty", "no tensors"])
def test_damaged_files_are_refused_with_one_message(net: nn.Module, tmp_path: Path, how: str) -> None:
    source = tmp_path / "net.pth"
    torch.save(net, source, _use_new_zipfile_serialization=how == "flipped")
    data = source.read_bytes()
    if how == "cut":
        source.write_bytes(data[:-20])
    elif how == "flipped":
        source.write_bytes(data[:40] + bytes(60) + data[100:])
    elif how == "text":
        source.write_text("<html>quota exceeded</html>")
    elif how == "empty":
        source.write_bytes(b"")
    else:
        torch.save({"epoch": 3}, source)
    with pytest.raises(WeightsError, match="refused"):
        convert(source, tmp_path / "out.safetensors", allowed=OURS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.pth"]


def test_memory_is_bounded(tmp_path: Path) -> None:
    source = tmp_path / "bomb.pth"
    doubling = b"X\x10\x00\x00\x00" + b"a" * 16 + b"2" * 2_000_000  # the stack grows to 16 MB for 2 MB of file
    source.write_bytes(LEGACY_HEAD + b"\x80\x02" + doubling * 20 + b".")
    with pytest.raises(WeightsError, match=r"more than 64 MiB of memory"):
        convert(source, tmp_path / "out.safetensors", memory=64 << 20)


def test_time_is_bounded(tmp_path: Path) -> None:
    source = tmp_path / "slow.pth"
    source.write_bytes(LEGACY_HEAD + b"]" + b"0]" * 80_000_000 + b".")  # lists made and thrown away
    with pytest.raises(WeightsError, match=r"stopped[\s\S]*CPU time"):
        convert(source, tmp_path / "out.safetensors", seconds=1)


def test_tensors_may_not_reach_beyond_their_storage() -> None:
    from harness.api.convert_worker import STORAGES, Storage, _tensor

    storage = Storage(STORAGES["FloatStorage"], "0", 6)
    assert isinstance(_tensor(storage, 0, (2, 3), (3, 1)), TensorRef)
    for offset, size, stride in ((1, (2, 3), (3, 1)), (0, (2, 3), (9, 1)), (0, (1 << 40,), (0,)), (0, (7,), (0,))):
        with pytest.raises(RefusedError):
            _tensor(storage, offset, size, stride)
    with pytest.raises(RefusedError):
        _tensor(storage, 0, (-1,), (1,))
    with pytest.raises(RefusedError, match="no tensors"):
        tensors_of({"model": {"epoch": 1}})


def test_the_result_is_a_new_safetensors_file(net: nn.Module, tmp_path: Path) -> None:
    source = tmp_path / "net.pth"
    torch.save(net.state_dict(), source)
    with pytest.raises(ConfigError, match="safetensors"):
        convert(source, tmp_path / "out.pth")
    (tmp_path / "out.safetensors").write_bytes(b"kept")
    with pytest.raises(ConfigError, match="already"):
        convert(source, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == b"kept"
    with pytest.raises(WeightsError, match="not found"):
        convert(tmp_path / "none.pth", tmp_path / "other.safetensors")

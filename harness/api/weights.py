"""Weights: where a slot's file comes from, and reading checkpoints without running anything in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.api.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_CHECKPOINT_BYTES = 16 * 2**30
MAX_DEPTH = 32
_CONVERT = (
    "download it again; a pickled module or a TorchScript archive must first be converted to safetensors "
    "with `harness weights convert FILE --out FILE.safetensors`"
)


@dataclass(frozen=True)
class ResolvedWeights:
    """A slot's weights, settled: a file, stated random weights, or what a recipe produced (also a file).

    ``identity`` enters the keys: the file's sha256 or ``random:SEED``; never a path.
    """

    kind: Literal["file", "random", "recipe"]
    identity: str
    path: Path | None = None
    seed: int = 0
    label: str = ""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the file under its own name, on the CPU.

        Raises:
            WeightsError: not a file, changed since it was planned, unsafe, damaged, or holding no tensors.
        """
        if self.path is None:
            raise WeightsError("these weights are random: there is no file to read", where=self.label)
        if self.kind == "file" and file_digest(self.path) != self.identity:
            raise WeightsError("the weights file changed since the run was planned", where=self.path, fix="run again")
        return read_tensors(self.path)


def file_digest(path: Path) -> str:
    """sha256 (64 hex digits) of a file's bytes.

    Raises:
        WeightsError: the file cannot be read.
    """
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read weights: {error.strerror}", where=path) from error


def _flatten(value: Any, prefix: str, out: dict[str, Tensor], where: Path, depth: int = 0) -> None:
    import torch

    if depth > MAX_DEPTH:  # a pickled dictionary may also hold itself
        raise WeightsError(f"dictionaries are nested more than {MAX_DEPTH} deep", where=where, fix="download it again")
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, torch.Tensor):
            out[name] = item
        elif isinstance(item, Mapping):
            _flatten(item, f"{name}.", out, where, depth + 1)


def _refuse_archive(path: Path) -> None:
    """Refuse what torch would unpack: a TorchScript archive (torch warns before it refuses), compressed members (a
    small file can hold terabytes; torch.save never compresses)."""
    import zipfile

    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise WeightsError(f"refused to load: a damaged archive ({error})", where=path, fix=_CONVERT) from error
    if any(m.filename.rpartition("/")[2] == "constants.pkl" for m in members):
        raise WeightsError("refused to load: a TorchScript archive, which holds code", where=path, fix=_CONVERT)
    if any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise WeightsError("refused to load: its members are compressed", where=path, fix="download it again")


def _plain(tensors: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    """The tensors, where all are plain numbers and together of a bounded size."""
    import torch

    odd = [
        name for name, t in tensors.items()
        if t.layout != torch.strided or t.is_complex() or t.is_quantized or t.is_meta
    ]  # fmt: skip
    if odd:
        what = f"{len(odd)} tensors are no plain numbers (sparse, quantised or complex): {', '.join(odd[:3])}"
        raise WeightsError(what, where=where, fix="use the official file of this detector")
    # one stored number can claim any shape
    if sum(t.numel() * t.element_size() for t in tensors.values()) > MAX_CHECKPOINT_BYTES:
        raise WeightsError(f"its tensors claim more than {MAX_CHECKPOINT_BYTES >> 30} GiB", where=where)
    return tensors


def read_tensors(path: Path, container: Iterable[str] = ("model", "state_dict")) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name. Where the file is a dictionary with one of the ``container`` keys, that
    part is taken (the authors' ``torch.save({"model": ...})``); else the whole dictionary.

    Only safetensors and what ``torch.load(weights_only=True)`` accepts are read: nothing in the file runs.

    Raises:
        WeightsError: missing, too large, not a checkpoint, needs unpickling of code, without tensors, or with
            tensors that are sparse, quantised or complex.
    """
    if not path.is_file():
        raise WeightsError("weights file not found", where=path, fix="check the path, or set --weights-root")
    if path.stat().st_size > MAX_CHECKPOINT_BYTES:
        raise WeightsError(f"weights file is larger than {MAX_CHECKPOINT_BYTES >> 30} GiB", where=path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return _plain(load_file(path), path)
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"not a readable safetensors file: {error}", where=path) from error
    import torch

    _refuse_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged or unsafe files; all mean "refused"
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"refused to load: not a plain dictionary of tensors ({first[:160]})",
            where=path,
            fix=_CONVERT,
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"holds a {type(content).__name__}, not a dictionary of tensors", where=path)
    for key in container:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    out: dict[str, Tensor] = {}
    _flatten(content, "", out, path)
    if not out:
        raise WeightsError("holds no tensors", where=path)
    return _plain(out, path)


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], where: object) -> None:
    """Load tensors into a module; every parameter and buffer must be there, of its shape and finite, and nothing
    else. ``num_batches_tracked`` may be absent (files older than torch 0.4).

    Raises:
        WeightsError: naming the missing, spare, misshaped or non-finite tensors.
    """
    import torch

    own = module.state_dict()
    missing = [k for k in own if k not in tensors and not k.endswith("num_batches_tracked")]
    spare = [k for k in tensors if k not in own]
    shapes = [
        f"{k} is {list(tensors[k].shape)}, expected {list(own[k].shape)}"
        for k in own
        if k in tensors and tensors[k].shape != own[k].shape
    ]
    # values are looked at only where the shape fits: a tensor of one stored number can claim any size
    fitting = [k for k in own if k in tensors and tensors[k].shape == own[k].shape]
    real = [k for k in fitting if own[k].is_floating_point()]
    bad = [k for k in real if not torch.isfinite(tensors[k].to(own[k].dtype)).all()]
    found = {"missing": missing, "spare": spare, "misshaped": shapes, "not finite": bad}
    faults = [(m, f) for m, f in found.items() if f]
    if faults:
        parts = [f"{len(f)} {m}: {', '.join(f[:3])}{', ...' if len(f) > 3 else ''}" for m, f in faults]
        raise WeightsError(
            "checkpoint does not fit the network; " + "; ".join(parts), where=where,
            fix="use the official file of this detector, or options of the network that made it",
        )  # fmt: skip
    module.load_state_dict({**{k: v for k, v in own.items() if k not in tensors}, **tensors})

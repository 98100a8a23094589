"""The process that reads a checkpoint which is no plain dictionary of tensors, and writes its tensors as safetensors.

Run by :mod:`harness.api.convert` alone, in a process of its own with limits on memory, time and file size. It reads
three containers with Python's unpickler (neither torch nor any class that the file names is imported):

* TorchScript archives (``torch.jit.save``): the attributes of the root object; their code is not looked at;
* whole modules or dictionaries in torch's zip format (1.6 and later);
* the same in the format before 1.6.

A global that the pickle names becomes a stand-in when it is on a list, and ends the process otherwise: tensors and
storages are described, not built; classes become empty stubs. Nothing that the file brings can run.
"""

from __future__ import annotations

import collections
import io
import json
import math
import os
import pickle
import resource
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_TENSORS = 100_000
MAX_PICKLE = 256 * 2**20
"""Bytes of one pickle, without the tensors' own bytes."""


class Kind(NamedTuple):
    """A storage's type: safetensors' name, and the numpy type that carries its bits."""

    dtype: str
    carrier: str


STORAGES = {
    "DoubleStorage": Kind("F64", "<u8"), "FloatStorage": Kind("F32", "<u4"),
    "HalfStorage": Kind("F16", "<u2"), "BFloat16Storage": Kind("BF16", "<u2"),
    "LongStorage": Kind("I64", "<u8"), "IntStorage": Kind("I32", "<u4"), "ShortStorage": Kind("I16", "<u2"),
    "CharStorage": Kind("I8", "u1"), "ByteStorage": Kind("U8", "u1"), "BoolStorage": Kind("BOOL", "u1"),
}  # fmt: skip


class RefusedError(Exception):
    """The file is not what it should be; the message is for the user."""


@dataclass(frozen=True)
class Storage:
    """A storage by name: its bytes are read when a tensor needs them."""

    kind: Kind
    key: str
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """A strided view of a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return np.dtype(self.storage.kind.carrier).itemsize

    def read(self, raw: bytes) -> bytes:
        """The tensor's elements, contiguous, from its storage's bytes."""
        flat = np.frombuffer(raw, self.storage.kind.carrier, count=self.storage.numel)
        step = flat.itemsize
        view = np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.size, tuple(step * s for s in self.stride), writeable=False
        )
        return view.tobytes()


def _counts(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or not all(type(v) is int and 0 <= v < 2**48 for v in value):
        raise RefusedError("a tensor states sizes that are no sizes")
    return tuple(value)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorRef:
    """Stand-in for ``torch._utils._rebuild_tensor`` and ``_rebuild_tensor_v2``."""
    size, stride = _counts(size), _counts(stride)
    (offset,) = _counts((offset,))
    if not isinstance(storage, Storage) or len(size) != len(stride) or len(size) > 16:
        raise RefusedError("a tensor is described wrongly")
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if count else offset - 1
    # a view that repeats elements could ask for more memory than the file has
    if last >= storage.numel or count > storage.numel:
        raise RefusedError("a tensor reaches beyond its storage")
    return TensorRef(storage, offset, size, stride)


def _parameter(tensor: Any, *_: Any) -> Any:
    """Stand-in for ``torch._utils._rebuild_parameter``."""
    return tensor


def _plain_list(value: Any, *_: Any) -> Any:
    """Stand-in for TorchScript's list builders."""
    return value


class Stub:
    """An object of a class that is not imported: it keeps its attributes, and can do nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Stub:
        """An empty one, whatever it was made with."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        self.fields: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise RefusedError(f"an object of class {type(self).__name__} has no plain attributes")
        self.fields = {str(key): value for key, value in state.items()}


_FIXED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch.jit._pickle", "build_intlist"): _plain_list,
    ("torch.jit._pickle", "build_doublelist"): _plain_list,
    ("torch.jit._pickle", "build_boollist"): _plain_list,
    ("torch.jit._pickle", "build_tensorlist"): _plain_list,
}


class SafeUnpickler(pickle.Unpickler):
    """An unpickler that knows stand-ins alone."""

    def __init__(self, stream: IO[bytes], allowed: frozenset[str], *, script: bool = False) -> None:
        super().__init__(stream)
        self.allowed, self.script = allowed, script
        self.storages: dict[str, Storage] = {}
        self.stubs: dict[str, type[Stub]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a global.

        Raises:
            RefusedError: it is on no list.
        """
        full = f"{module}.{name}"
        if (module, name) in _FIXED:
            return _FIXED[module, name]
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        # names under __torch__ are types of the archive's own; no module of this name can be imported
        if full in self.allowed or (self.script and module.split(".")[0] == "__torch__"):
            return self.stubs.setdefault(full, type(name, (Stub,), {"__module__": "stubs"}))
        raise RefusedError(f"the file asks for {full!r}, which is on no list")

    def persistent_load(self, pid: Any) -> Any:
        """A storage, or the class of a legacy module."""
        if not isinstance(pid, tuple) or len(pid) < 2:
            raise RefusedError("the file refers to something that is no storage")
        if pid[0] == "module" and isinstance(pid[1], type) and issubclass(pid[1], Stub):
            return pid[1]
        if pid[0] != "storage" or len(pid) not in (5, 6) or not isinstance(pid[1], Kind):
            raise RefusedError("the file refers to something that is no storage")
        if len(pid) == 6 and pid[5] is not None:
            raise RefusedError("the file has storages within storages, which are not read here")
        _, kind, key, _, numel, *_ = pid
        (numel,) = _counts((numel,))
        storage = Storage(kind, str(key), numel)
        if self.storages.setdefault(str(key), storage) != storage:
            raise RefusedError("the file describes one storage in two ways")
        return storage


def _zip(path: Path, allowed: frozenset[str]) -> tuple[Any, Callable[[Storage], bytes], SafeUnpickler, str]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise RefusedError(f"the archive is damaged ({error})") from error
    infos = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in infos if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise RefusedError("the archive is none of torch's: it has no data.pkl")
    top = pickles[0].rpartition("/")[0]
    if any(info.compress_type != zipfile.ZIP_STORED and "/data" in info.filename for info in infos.values()):
        raise RefusedError("the archive is compressed, which torch's are not")
    order = f"{top}/byteorder"
    if order in infos and archive.read(order).strip() != b"little":
        raise RefusedError("the file was written on a big-endian machine")
    if infos[pickles[0]].file_size > MAX_PICKLE:
        raise RefusedError("its pickle is too large")
    script = any(name.startswith(f"{top}/code/") for name in infos) and f"{top}/constants.pkl" in infos
    reader = SafeUnpickler(io.BytesIO(archive.read(pickles[0])), allowed, script=script)
    content = reader.load()

    def raw(storage: Storage) -> bytes:
        name = f"{top}/data/{storage.key}"
        size = storage.numel * np.dtype(storage.kind.carrier).itemsize
        if name not in infos or infos[name].file_size < size:
            raise RefusedError(f"storage {storage.key} is missing or cut short")
        return archive.read(name)[:size]

    return content, raw, reader, "TorchScript archive" if script else "torch zip file"


def _legacy(path: Path, allowed: frozenset[str]) -> tuple[Any, Callable[[Storage], bytes], SafeUnpickler, str]:
    with path.open("rb") as stream:
        if pickle_of(stream) != LEGACY_MAGIC:
            raise RefusedError("not a file that torch wrote")
        pickle_of(stream), pickle_of(stream)  # protocol version and byte order
        reader = SafeUnpickler(stream, allowed)
        content = reader.load()
        keys = pickle_of(stream)
        if not isinstance(keys, list) or set(map(str, keys)) != set(reader.storages):
            raise RefusedError("its list of storages is damaged")
        places: dict[str, int] = {}
        for key in keys:
            storage = reader.storages[str(key)]
            head = stream.read(8)
            if len(head) < 8 or struct.unpack("<q", head)[0] != storage.numel:
                raise RefusedError(f"storage {key} is missing or cut short")
            places[str(key)] = stream.tell()
            stream.seek(storage.numel * np.dtype(storage.kind.carrier).itemsize, io.SEEK_CUR)

    def raw(storage: Storage) -> bytes:
        size = storage.numel * np.dtype(storage.kind.carrier).itemsize
        with path.open("rb") as again:
            again.seek(places[storage.key])
            data = again.read(size)
        if len(data) < size:
            raise RefusedError(f"storage {storage.key} is cut short")
        return data

    return content, raw, reader, "torch file of before 1.6"


def pickle_of(stream: IO[bytes]) -> Any:
    """The next pickle of a stream, which may name no global."""
    return SafeUnpickler(stream, frozenset()).load()


def _of_module(fields: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, TensorRef]]:
    """Tensors of a pickled ``nn.Module`` under the names of its ``state_dict``."""
    passing = fields.get("_non_persistent_buffers_set")
    left_out = passing if isinstance(passing, set) else set()
    for table in ("_parameters", "_buffers", "_modules"):
        held = fields.get(table)
        if isinstance(held, Mapping):
            kept = held if table != "_buffers" else {k: v for k, v in held.items() if k not in left_out}
            yield from _named(kept, prefix, depth)


def _named(content: Any, prefix: str, depth: int = 0) -> Iterator[tuple[str, TensorRef]]:
    """Tensors of a dictionary, module or TorchScript object, by dotted name."""
    if depth > 64:
        raise RefusedError("its parts are nested too deeply")
    if isinstance(content, Stub):
        fields = content.fields
        if "_modules" in fields or "_parameters" in fields:
            yield from _of_module(fields, prefix, depth + 1)
            return
        content = fields
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, TensorRef):
            yield name, value
        elif isinstance(value, Stub | Mapping):
            yield from _named(value, f"{name}.", depth + 1)


def tensors_of(content: Any) -> dict[str, TensorRef]:
    """Every tensor by name; of a dictionary with ``model`` or ``state_dict``, that part, as loaders take it.

    Raises:
        RefusedError: there is none, or far too many.
    """
    if isinstance(content, Mapping):
        for key in ("model", "state_dict"):
            if isinstance(content.get(key), Mapping | Stub):
                content = content[key]
                break
    found: dict[str, TensorRef] = {}
    for name, tensor in _named(content, ""):
        found[name] = tensor
        if len(found) > MAX_TENSORS:
            raise RefusedError("it holds far too many tensors")
    if not found:
        raise RefusedError("it holds no tensors")
    return found


def write_safetensors(
    out: Path, tensors: Mapping[str, TensorRef], raw: Callable[[Storage], bytes], metadata: Mapping[str, str]
) -> None:
    """Write tensors one by one (so that memory holds one storage), widest elements first, which aligns them all."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + math.prod(tensor.size) * tensor.itemsize
        header[name] = {"dtype": tensor.storage.kind.dtype, "shape": list(tensor.size), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    held: tuple[str, bytes] = ("", b"")
    with out.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in ordered:
            if held[0] != tensor.storage.key:
                held = (tensor.storage.key, raw(tensor.storage))
            stream.write(tensor.read(held[1]))
        stream.flush()
        os.fsync(stream.fileno())


def convert_here(source: Path, out: Path, allowed: frozenset[str], metadata: dict[str, str]) -> dict[str, Any]:
    """Convert in this process; what was found, for the report.

    Raises:
        RefusedError: see :class:`RefusedError`.
    """
    read = _zip if zipfile.is_zipfile(source) else _legacy
    content, raw, reader, container = read(source, allowed)
    tensors = tensors_of(content)
    facts = {"container": container, "classes": ", ".join(sorted(reader.stubs))}
    write_safetensors(out, tensors, raw, {**metadata, **facts})
    return {**facts, "tensors": len(tensors)}


def limit(memory: int, seconds: int, file_bytes: int) -> None:
    """Bound this process: address space beyond what it has now, CPU time, size of a file; no core dumps."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for what, value in (
        (resource.RLIMIT_AS, now + memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (value, value))


def main() -> int:
    """Read the job from standard input, convert, and print the answer as JSON."""
    job = json.loads(sys.stdin.read())
    limit(job["memory"], job["seconds"], job["file_bytes"])
    try:
        found = convert_here(Path(job["source"]), Path(job["out"]), frozenset(job["allowed"]), job["metadata"])
    except RefusedError as error:
        answer: dict[str, Any] = {"refused": str(error)}
    except MemoryError:
        answer = {"refused": f"it asks for more than {job['memory'] / 2**20:,.0f} MiB of memory"}
    except Exception as error:  # a hostile pickle can fail in any way; all of it is the file's fault
        answer = {"refused": f"the file is damaged ({type(error).__name__}: {error})"[:300]}
    else:
        answer = {"found": found}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Checkpoints that need more than reading (TorchScript archives, whole pickled modules) made into safetensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.api.errors import ConfigError, WeightsError
from harness.api.weights import MAX_CHECKPOINT_BYTES, file_digest

CPU_SECONDS = 600

_LAYERS = (
    "activation.GELU activation.LeakyReLU activation.LogSoftmax activation.PReLU activation.ReLU activation.ReLU6 "
    "activation.Sigmoid activation.Softmax activation.Tanh batchnorm.BatchNorm1d batchnorm.BatchNorm2d "
    "container.ModuleDict container.ModuleList container.ParameterList container.Sequential conv.Conv1d conv.Conv2d "
    "conv.ConvTranspose2d dropout.Dropout dropout.Dropout2d flatten.Flatten instancenorm.InstanceNorm2d "
    "linear.Identity linear.Linear normalization.GroupNorm normalization.LayerNorm padding.ReflectionPad2d "
    "padding.ZeroPad2d pooling.AdaptiveAvgPool2d pooling.AdaptiveMaxPool2d pooling.AvgPool2d pooling.MaxPool2d "
    "sparse.Embedding upsampling.Upsample"
)
NN_LAYERS = (
    *(f"torch.nn.modules.{name}" for name in _LAYERS.split()),
    "torch.nn.parallel.data_parallel.DataParallel",
    "torch.nn.backends.thnn._get_thnn_function_backend",
)
"""Names of torch's own classes that a pickled module may hold; each becomes an empty stub, none is imported."""


@dataclass(frozen=True)
class Converted:
    """What a conversion gave: the file, its sha256, number of tensors, the source's sha256 and kind, class names."""

    path: Path
    sha256: str
    tensors: int
    source_sha256: str
    container: str
    classes: str


def convert(
    source: Path, out: Path, *, allowed: Iterable[str] = (), seconds: int = CPU_SECONDS, memory: int | None = None
) -> Converted:
    """Write a checkpoint's tensors as safetensors, reading it in a process of its own that can run nothing.

    Args:
        source: a TorchScript archive, or a pickled module or dictionary of torch's zip or older format.
        out: a new file ending in ``.safetensors``. Its metadata name the source's sha256, size and kind, the
            classes met, and this program's version.
        allowed: ``module.Class`` names that the pickle may hold besides :data:`NN_LAYERS`. Each becomes an empty
            stub; any other global is refused.
        seconds: CPU time of that process.
        memory: bytes it may take; by default three times the file and 256 MiB.

    Raises:
        ConfigError: ``out`` has another ending or is there already.
        WeightsError: the source is missing, too large, damaged, or asks for a global that is not allowed.
    """
    import harness

    if out.suffix != ".safetensors":
        raise ConfigError("the result is a safetensors file", where=out, fix="end --out in .safetensors")
    if out.exists():
        raise ConfigError("a file of that name is there already", where=out, fix="name another with --out")
    if not source.is_file():
        raise WeightsError("weights file not found", where=source, fix="check the path")
    size = source.stat().st_size
    if size > MAX_CHECKPOINT_BYTES:
        raise WeightsError(f"weights file is larger than {MAX_CHECKPOINT_BYTES >> 30} GiB", where=source)
    digest = file_digest(source)
    metadata = {
        "source_file": source.name, "source_sha256": digest, "source_bytes": str(size),
        "converter": f"blades-bench {harness.__version__} weights convert", "format": "pt",
    }  # fmt: skip
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as folder:
            made = Path(folder).resolve() / "made.safetensors"
            job = {
                "source": str(source.resolve()), "out": str(made), "allowed": sorted({*NN_LAYERS, *allowed}),
                "metadata": metadata, "seconds": seconds, "memory": memory or 3 * size + (256 << 20),
                "file_bytes": 2 * size + (16 << 20),
            }  # fmt: skip
            found = _answer(_work(job, folder), source, seconds)
            os.link(made, out)
    except FileExistsError as error:
        raise ConfigError("a file of that name is there already", where=out, fix="name another with --out") from error
    except OSError as error:
        raise WeightsError(
            f"cannot write: {error.strerror}", where=out, fix="check the folder and its space"
        ) from error
    return Converted(out, file_digest(out), found["tensors"], digest, found["container"], found["classes"])


def _work(job: dict[str, Any], folder: str) -> subprocess.CompletedProcess[str]:
    """The worker's end. It sees a bare environment, and no folder of the user's on its path."""
    import harness

    root = str(Path(harness.__file__).resolve().parents[1])
    return subprocess.run(
        [sys.executable, "-P", "-m", "harness.api.convert_worker"], input=json.dumps(job), capture_output=True,
        text=True, cwd=folder, env={"PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}, check=False,
    )  # fmt: skip


def _answer(done: subprocess.CompletedProcess[str], source: Path, seconds: int) -> dict[str, Any]:
    if done.returncode < 0:
        raise WeightsError(
            f"refused: the conversion was stopped (signal {-done.returncode}) within its {seconds} s of CPU time and "
            "bounded memory", where=source, fix="download the file again",
        )  # fmt: skip
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise WeightsError(f"refused: the conversion failed ({last[:200]})", where=source) from None
    if "refused" in answer:
        fix = "download it again; a class that its authors name can be allowed with --allow module.Class (it becomes "
        raise WeightsError(f"refused: {answer['refused']}", where=source, fix=fix + "an empty stub and is never run)")
    found: dict[str, Any] = answer["found"]
    return found

"""Trains the demo's generators from scratch on simulated photographs, on a CPU.

    python -m harness.data.demo.train_generators --out DIR
    python -m harness.data.demo.train_generators --out DIR --only pixeldiff

All learn from 6,144 photographs of people who are not in the corpus (series "generator-training"), 128 pixels, and
their mirror images. Convolutions run in bfloat16, on one thread: two generators train side by side on two cores, in
two processes with --only. What is trained already (DIR/NAME.safetensors) is kept, so an interrupted run goes on with
the next generator. How each is trained: `harness/data/demo/training/`, one file a generator.

The seed fixes photographs, initial weights, batches and steps (scaled by --scale); another machine's arithmetic still
leads to other, equally good weights.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from harness.data.demo.generators import GENERATORS
from harness.data.demo.training.common import training_photographs


def save_weights(network: nn.Module, path: Path) -> None:
    """Writes the network as safetensors, float16 but for buffers (statistics, counters), whole or not at all."""
    exact = {name for name, _ in network.named_buffers()}
    tensors = {
        name: (value if name in exact else value.half()).contiguous() for name, value in network.state_dict().items()
    }
    half = path.with_suffix(".part")
    save_file(tensors, half)
    half.replace(path)


def main(arguments: list[str] | None = None) -> None:
    """Command line: trains the generators named (all by default) and writes them to --out."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.data.demo.train_generators",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for NAME.safetensors and the photographs")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps; 1 made the committed weights")
    parser.add_argument("--photographs", type=int, default=6144)
    parser.add_argument("--only", choices=GENERATORS, help="train this one, even if it is there")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes that render photographs")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    start = time.monotonic()

    def log(line: str) -> None:
        print(f"[{time.monotonic() - start:6.0f} s, {time.process_time():6.0f} s of processor] {line}", flush=True)

    photographs = training_photographs(options.photographs, options.seed, options.workers, options.out, log)
    for name in (options.only,) if options.only else GENERATORS:
        path = options.out / f"{name}.safetensors"
        if path.is_file() and not options.only:
            log(f"{path} is there: kept")
            continue
        train = importlib.import_module(f"harness.data.demo.training.{name}").train
        save_weights(train(photographs, options.scale, options.seed, log), path)
        log(f"wrote {path}")


if __name__ == "__main__":
    main()

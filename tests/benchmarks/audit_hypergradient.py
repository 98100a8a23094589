"""The hypergradient's audit on the paper's encoder: `python tests/benchmarks/audit_hypergradient.py OUT --golden DIR`.

Trains some bi-level steps on a data root (by default the demo corpus, made beside the store) and compares, at each
audited step, the central difference at the released ε and at smaller ones with the exact product. Weights: by the
rule of the recorded values (`--golden`), a checkpoint of the authors (`--weights`), or random of a stated seed;
`--trained N` puts N steps of joint training before the audited ones. Writes OUT/history.jsonl, OUT/audit.csv,
OUT/audit.md and OUT/hypergradient.png, and with `--trained` OUT/before.jsonl, the losses of those steps.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from detectors.blades.bilevel_step import BladesBilevelStep  # noqa: E402
from detectors.blades.config import EncoderConfig  # noqa: E402
from detectors.blades.encoder import JointEncoder  # noqa: E402
from detectors.blades.image_tower import BladesPreprocess  # noqa: E402
from harness.api.protocol import Protocol  # noqa: E402
from harness.api.trainer import weighted_update  # noqa: E402
from harness.api.training import Place, Recipe, TrainingImages  # noqa: E402
from reports.hypergradient import save_audit  # noqa: E402


def history(
    step: BladesBilevelStep, steps: int, batch_size: int, lr: float, seed: int = 42
) -> Iterator[dict[str, Any]]:
    """Rows of a training of so many steps at a constant rate; `step` is started and has its weights."""
    optimizer = torch.optim.AdamW(step.parameters(), lr=lr, weight_decay=1e-3)
    for number in range(steps):
        epoch, index = divmod(number, step.num_batches(batch_size))
        batch = step.batch(epoch, index, batch_size, seed)
        told = step.update(batch, optimizer, Place("audit", number + 1, epoch + 1, lr, lr))
        yield {"step": number + 1, "epoch": epoch + 1, "lr": lr, "loss": told.loss, "losses": told.losses, **told.more}


def trained(step: BladesBilevelStep, steps: int, batch_size: int, lr: float, out: Path, seed: int = 7) -> None:
    """Joint training of so many steps, all tasks of equal weight, at a constant rate; λ stays at its start."""
    optimizer = torch.optim.AdamW(step.parameters(), lr=lr, weight_decay=1e-3)
    with out.open("w", encoding="utf-8") as stream:
        for number in range(steps):
            epoch, index = divmod(number, step.num_batches(batch_size))
            batch = step.batch(epoch, index, batch_size, seed)
            told = weighted_update(step, batch, optimizer, Place("before", number + 1, epoch + 1, lr, lr))
            stream.write(json.dumps({"step": number + 1, "loss": told.loss, "losses": told.losses}) + "\n")
            stream.flush()
            print(f"before {number + 1}: loss {told.loss:.4f}", flush=True)


def images_of(root: Path, size: int) -> TrainingImages:
    """The photographs of a data root in a released layout, with what its label files say of them."""
    from harness.data.edits import InputEdits
    from harness.data.layouts import CELEBA, DataSpec
    from harness.data.manifest import build_manifest
    from harness.engine.images import Reader
    from harness.engine.training_data import suite_faces

    manifest = build_manifest(root, DataSpec(photographs=(CELEBA,), generators=())).table
    reader = Reader(root, list(manifest["path"]), list(manifest["sha256"]), InputEdits())
    source = suite_faces(Recipe(recipe="audit", detector="blades-oc"), manifest, root, CELEBA.dataset, 25_000, {})
    for note in source.notes:
        print(note)
    return source.images(BladesPreprocess(size), reader.pixels)


def weights_of(golden: Path | None, checkpoint: Path | None) -> tuple[dict[str, Tensor] | None, str]:
    """Tensors under the authors' names, or None for random ones; and what they are."""
    if golden is not None:
        path = HERE.parent / "detectors" / "blades" / "rule_weights.py"
        spec = importlib.util.spec_from_file_location("rule_weights", path)
        assert spec is not None
        assert spec.loader is not None
        rule = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(rule)
        return rule.rule_state(golden, "CLIP_EXIF_Net"), "weights by the rule of the recorded values"
    if checkpoint is not None:
        stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
        return stored.get("model", stored), f"weights of {checkpoint.name}"
    return None, "random weights, seed 0"


def main() -> None:
    """Parse, train, write."""
    parser = argparse.ArgumentParser(description="audit of the central difference")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root", type=Path, help="default: the demo corpus, made in --store")
    parser.add_argument("--store", type=Path, default=Path(".blades-store"))
    parser.add_argument("--golden", type=Path, help="folder with encoder_keys.json")
    parser.add_argument("--weights", type=Path, help="OC.pth, say")
    parser.add_argument("--encoder", default="paper")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--trained", type=int, default=0, metavar="N", help="steps of joint training before, batch 16")
    parser.add_argument("--trained-lr", type=float, default=1e-4)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    root = asked.data_root
    if root is None:
        from harness.verbs.run import demo_root

        root = demo_root(asked.store, lambda event: None)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    settings = {"hypergradient_audit": asked.every, "workers": 2}
    images, config = images_of(root, asked.size), EncoderConfig.named(asked.encoder)
    step = BladesBilevelStep(config, settings, images, Protocol.named("paper"))
    step.start(0, asked.device)
    tensors, what = weights_of(asked.golden, asked.weights)
    if tensors is not None:
        step.load_state(JointEncoder.from_authors(tensors, config, what).state_dict())
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.trained:
        trained(step, asked.trained, 16, asked.trained_lr, asked.out / "before.jsonl")
        what += f", then {asked.trained} steps of joint training at {asked.trained_lr:g}"
    rows = []
    with (asked.out / "history.jsonl").open("w", encoding="utf-8") as stream:
        for row in history(step, asked.steps, asked.batch, asked.lr):
            rows.append(row)
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            audit = row.get("audit")
            shown = [f"{d['scale']:g}: {d['overall']:.3g}" for d in audit["differences"]] if audit else []
            print(
                f"step {row['step']}: loss {row['loss']:.4f}; relative error by ε/released ε: {', '.join(shown)}",
                flush=True,
            )
    note = f"{asked.encoder} encoder, {what}; batch {asked.batch}, float32, {asked.device}"
    print(*save_audit(rows, asked.out, note), sep="\n")


if __name__ == "__main__":
    main()

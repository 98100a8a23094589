"""The recorded values of losses, hypergradient and encoder on this machine's GPU: `make gpu-check`.

Each line is a check: the largest error found, and what is allowed. Float64 checks say whether the mathematics is the
same on the device; float32 ones what its kernels round (TensorFloat-32 is off, as in training). Exit code 0: all
within; 1: some not; 2: no such device. `--device cpu` runs the same checks on the CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden"
sys.path.insert(0, str(HERE.parent))

from detectors.blades.bilevel import hypergradient  # noqa: E402
from detectors.blades.config import EncoderConfig  # noqa: E402
from detectors.blades.encoder import JointEncoder, batch_statistics_only  # noqa: E402
from detectors.blades.forward_mode import Outputs, convolutions_kept, quick_forward_mode  # noqa: E402
from detectors.blades.losses import (  # noqa: E402
    fidelity_loss,
    focal_fidelity_loss,
    multilabel_fidelity_loss,
    ranking_fidelity_loss,
)
from detectors.blades.prompt_tree import prompt_tree  # noqa: E402
from detectors.blades.prompts import prompt_tokens  # noqa: E402
from detectors.blades.tasks import task_table  # noqa: E402

Params = dict[str, Tensor]
LOSSES: dict[str, Callable[..., Tensor]] = {
    "l2r3": ranking_fidelity_loss, "l2r5": ranking_fidelity_loss, "focal": focal_fidelity_loss,
    "fid_mc": fidelity_loss, "fid_ml": multilabel_fidelity_loss,
}  # fmt: skip


class Check(NamedTuple):
    """One comparison: largest error, and the largest allowed."""

    name: str
    error: float
    allowed: float


def _values(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / name, allow_pickle=False) as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files if stored[key].dtype.kind in "fiu"}


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().cpu().double() - expected.double()).abs().max())


def _relative(found: Tensor, expected: Tensor) -> float:
    return float(((found.detach().cpu().double() - expected.double()) / expected.double()).abs().max())


def check_losses(device: str) -> Iterator[Check]:
    """Values and gradients of the four losses; logits go to ±30."""
    stored = _values("losses.npz")
    for name, loss in LOSSES.items():
        ranking = name.startswith("l2r")
        for dtype, allowed in ((torch.float64, 1e-7 if ranking else 1e-11), (torch.float32, 5e-6)):
            worst = 0.0
            for case in range(5):
                logits = stored[f"{name}/{case}/logits"].to(device, dtype).requires_grad_()
                value = loss(logits, stored[f"{name}/{case}/label"].to(device))
                (gradient,) = torch.autograd.grad(value, logits)
                expected = stored[f"{name}/{case}/loss"], stored[f"{name}/{case}/grad"]
                worst = max(worst, _error(value, expected[0]), _error(gradient, expected[1]))
            yield Check(f"losses {name} {str(dtype)[6:]}", worst, allowed)


def check_hypergradient(device: str) -> Iterator[Check]:
    """The exact hypergradient and the released difference, relative."""
    stored = _values("hypergrad.npz")
    for dtype, exact, difference in ((torch.float64, 1e-9, 1e-7), (torch.float32, 1e-4, 5e-3)):
        there = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in stored.items()}
        theta = {k.removeprefix("theta/"): v for k, v in there.items() if k.startswith("theta/")}

        def outputs(p: Params, x: Tensor) -> Tensor:
            hidden = torch.tanh(x @ p["l1.weight"].T + p["l1.bias"])
            return torch.tanh(hidden @ p["l2.weight"].T + p["l2.bias"]) @ p["l3.weight"].T + p["l3.bias"]

        def tasks(p: Params, there: Params = there) -> Tensor:
            z = outputs(p, there["xt"])
            return torch.stack([
                ranking_fidelity_loss(z[:, :3], there["yt/rank"]),
                focal_fidelity_loss(z[:, 3:], there["yt/cls"]),
                multilabel_fidelity_loss(z[:, 2:], there["yt/multi"]),
            ])  # fmt: skip

        def outer(p: Params, there: Params = there) -> Tensor:
            return multilabel_fidelity_loss(outputs(p, there["xv"])[:, 2:], there["yv/multi"])

        for alpha in ("alpha0.01", "alpha1e-05"):
            for method, allowed in (("exact", exact), ("finite_difference", difference)):
                found = hypergradient(
                    tasks, outer, theta, there["lam"], float(alpha.removeprefix("alpha")), weight_decay=1e-3,
                    method=method,  # type: ignore[arg-type]
                )  # fmt: skip
                name = f"hypergradient {method} {alpha} {str(dtype)[6:]}"
                yield Check(name, _relative(found, stored[f"{alpha}/{method}"]), allowed)


def _rule() -> ModuleType:
    path = HERE / "detectors" / "blades" / "rule_weights.py"
    spec = importlib.util.spec_from_file_location("rule_weights", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rule_encoder() -> JointEncoder:
    """The paper's encoder with every tensor by the rule."""
    config = EncoderConfig.paper()
    blank = JointEncoder.random(config, 0).to_authors()
    shapes = {name: tuple(value.shape) for name, value in blank.items()}
    value = _rule()._value
    filled = {
        name: value(name, shapes, blank[name].is_floating_point(), 1000 + i) for i, name in enumerate(sorted(shapes))
    }
    return JointEncoder.from_authors(filled, config, "the rule")


def check_encoder(device: str) -> Iterator[Check]:
    """Features, text features and logits of the full encoder; and the forward-mode pass against torch's own."""
    stored, tokens = _values("encoder_small.npz"), prompt_tokens(task_table())
    drawn = np.random.default_rng(7).standard_normal((2, 3, 224, 224)).astype(np.float32)
    for dtype, feature, logit in ((torch.float64, 1e-12, 1e-10), (torch.float32, 1e-5, 5e-4)):
        encoder = rule_encoder().to(device, dtype)
        encoder = encoder.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        images = torch.from_numpy(drawn).to(device, dtype, memory_format=torch.channels_last)
        kind = str(dtype)[6:]
        with torch.inference_mode():
            for shape, prompts in (
                ("rows", torch.from_numpy(tokens).to(device)),
                ("tree", prompt_tree(tokens).to(device)),
            ):
                text = encoder.text_features(prompts)
                yield Check(f"encoder text {shape} {kind}", _error(text[:8], stored["text_features3"]), feature)
            yield Check(f"encoder image {kind}", _error(encoder.features(images), stored["image_features"]), feature)
            yield Check(f"encoder logits {kind}", _error(encoder(images, prompts), stored["logits"]), logit)
            with batch_statistics_only(encoder.train()):
                raw = encoder.image(images)
            size = float(stored["image_raw_trainmode"].abs().max())
            allowed = 1e-11 if dtype == torch.float64 else 1e-3
            yield Check(f"encoder batch statistics {kind}", _error(raw, stored["image_raw_trainmode"]) / size, allowed)
        yield Check(f"forward mode {kind}", _forward_mode(encoder, images), 1e-9 if dtype == torch.float64 else 1e-3)


def _forward_mode(encoder: JointEncoder, images: Tensor) -> float:
    """‖ours − torch's‖ / ‖torch's‖ of the image tower's forward-mode product, along a drawn direction."""
    tower, kept = encoder.image, Outputs()
    params = {k: p.detach() for k, p in tower.named_parameters()}
    rng = np.random.default_rng(3)
    tangent = {k: 0.01 * torch.from_numpy(rng.standard_normal(tuple(p.shape))).to(p) for k, p in params.items()}

    def features(values: Params) -> Tensor:
        return torch.func.functional_call(tower, values, (images,))

    with torch.no_grad(), batch_statistics_only(tower):
        expected = torch.func.jvp(features, (params,), (tangent,))[1]
        with convolutions_kept(tower, kept):
            tower(images)
        with quick_forward_mode(tower, kept):
            found = torch.func.jvp(features, (params,), (tangent,))[1]
    return float((found - expected).norm() / expected.norm())


PARTS = {"losses": check_losses, "hypergradient": check_hypergradient, "encoder": check_encoder}


def main() -> int:
    """Run the checks and print a line each."""
    parser = argparse.ArgumentParser(description="recorded values on a GPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of: %(default)s")
    asked = parser.parse_args()
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        print(
            f"no CUDA device: torch {torch.__version__} sees none.\n"
            "fix: run this where there is a GPU, with a torch built for CUDA (the build machines' is for CPUs); "
            "or check the CPU with: python tests/gpu_check.py --device cpu",
            file=sys.stderr,
        )
        return 2
    unknown = [part for part in asked.parts.split(",") if part not in PARTS]
    if unknown:
        print(f"unknown part {unknown[0]!r}; use some of: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    where = torch.cuda.get_device_name(asked.device) if asked.device.startswith("cuda") else "CPU"
    print(f"{asked.device} ({where}), torch {torch.__version__}")
    failed = 0
    for part in asked.parts.split(","):
        for check in PARTS[part](asked.device):
            good = check.error <= check.allowed
            failed += not good
            print(f"{'ok  ' if good else 'FAIL'} {check.name:52s} {check.error:.1e} (allowed {check.allowed:.0e})")
    print("all within" if not failed else f"{failed} not within")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""What a detector costs: parameters as its stages state them, FLOPs counted in a forward of one made image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.api.contract import Abstain, Chain, Extractor, Transform
from harness.api.weights import ResolvedWeights
from harness.engine.inline import forward
from harness.engine.selfcheck import SEED, made_images

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

SIDE = 512
COUNTED = (
    f"one made image of {SIDE} x {SIDE} pixels, random weights; convolutions, matrix products and attention, "
    "multiply-adds counted as two"
)
"""What the FLOPs are of."""


@dataclass(frozen=True)
class StageCost:
    """A transform or the extractor: its class, parameters (None: not stated), FLOPs an image (None: not counted)."""

    stage: str
    parameters: int | None
    flops: int | None


@dataclass(frozen=True)
class Cost:
    """Transforms and extractor, in order, and why FLOPs were not counted ("" where they were). Heads are left out:
    they are fitted, or small."""

    stages: tuple[StageCost, ...]
    reason: str = ""

    @property
    def parameters(self) -> int | None:
        """Of all stages; None where one does not state its own."""
        return _total([stage.parameters for stage in self.stages])

    @property
    def flops(self) -> int | None:
        """Of all stages; None where they were not counted."""
        return _total([stage.flops for stage in self.stages])


def _total(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def cost_of(chain: Chain, *, flops: bool = True) -> Cost:
    """The cost of a detector's transforms and extractor.

    Args:
        chain: the detector.
        flops: count them too: builds the networks with random weights and runs each once (seconds).
    """
    stages: tuple[Transform | Extractor, ...] = (*chain.transforms, chain.extractor)
    counts: list[int | None] = [None] * len(stages)
    reason = "" if flops else "not asked for"
    if flops:
        try:
            counts = list(_flops(chain, stages))
        except Abstain:
            reason = "the detector abstains on a made image"
        except Exception as error:  # a plugin can fail in any way; the listing says how and goes on
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return Cost(
        tuple(StageCost(type(s).__name__, s.num_parameters, n) for s, n in zip(stages, counts, strict=True)), reason
    )


def _flops(chain: Chain, stages: tuple[Transform | Extractor, ...]) -> list[int]:
    import torch

    weights = {slot: ResolvedWeights("random", f"random:{SEED}", seed=SEED, label="random") for slot in chain.slots}
    tensor = chain.preprocess(made_images(1, SIDE)[0])
    counts = []
    for stage in stages:
        run = stage.load(weights, "cpu")
        with _counter() as counter:
            (result,) = forward(run, [(b"", tensor)], stage, 1, "cpu")
        counts.append(counter.get_total_flops())
        tensor = torch.from_numpy(np.array(result))
    return counts


def _counter() -> FlopCounterMode:
    """Torch's counter, mended in two places: it knows attention by its kernels on GPUs alone, and its tracking of
    modules, which nobody reads here, forbids ``autograd.grad`` inside (gradient images)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
    from torch.utils.module_tracker import ModuleTracker

    class NoTracking(ModuleTracker):
        def __enter__(self) -> NoTracking:
            return self

        def __exit__(self, *args: object) -> None:
            return None

    def attention(query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={kernel: attention})
    counter.mod_tracker = NoTracking()
    return counter

"""Is a published number reproduced? An equivalence test of measured minus published with a stated tolerance.

Two one-sided tests at 5 % (Schuirmann 1987) in their interval form: **reproduced** when the 90 % interval of the
difference lies within ±tolerance; **not reproduced** when the 95 % interval lies wholly outside it; otherwise
**inconclusive**. The interval is that of the measured value alone: the published one is taken as printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.results.bootstrap import interval

Verdict = Literal["reproduced", "not reproduced", "inconclusive"]


@dataclass(frozen=True)
class Equivalence:
    """Measured minus published (fractions), its 90 % and 95 % intervals, and the verdict."""

    difference: float
    low90: float
    high90: float
    low95: float
    high95: float
    tolerance: float
    verdict: Verdict
    reason: str = ""


def equivalence(
    measured: float, published: float, samples: NDArray[np.float64], tolerance: float, *, num_images: int
) -> Equivalence:
    """Compare one measured value, with its bootstrap replicates `[B]`, to a published one (all fractions).

    Args:
        num_images: images of the smaller class behind the value. Where the replicates hardly vary (no error was
            made, say) their interval is narrower than the images can support; it is widened to the exact bound
            for no event in `num_images` (3/n at 95 %, 2.3/n at 90 %).

    Raises:
        ValueError: the tolerance is not positive.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance {tolerance} must be positive")
    difference = measured - published
    bounds = []
    for level in (0.90, 0.95):
        low, high = (float(v) for v in interval(samples, level))
        least = -np.log(1 - level) / max(num_images, 1)
        bounds.append((min(low, measured - least) - published, max(high, measured + least) - published))
    (low90, high90), (low95, high95) = bounds
    verdict: Verdict = "inconclusive"
    reason = ""
    if not np.isfinite([difference, low90, high90, low95, high95]).all():
        reason = "no interval: too few images with a score"
    elif -tolerance <= low90 and high90 <= tolerance:
        verdict = "reproduced"
    elif low95 > tolerance or high95 < -tolerance:
        verdict = "not reproduced"
    else:
        reason = "the interval of the difference crosses the tolerance: more images would decide"
    return Equivalence(difference, low90, high90, low95, high95, tolerance, verdict, reason)

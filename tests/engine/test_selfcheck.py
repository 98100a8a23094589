"""`detectors check` passes detectors that keep the contract and finds out those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugin_support import write_package

from harness.api import registry
from harness.api.errors import ConfigError
from harness.engine.selfcheck import check_detector

pytestmark = pytest.mark.usefixtures("plugins")
NAMES = ("calibrated", "pseudo-head", "grad-map", "native-size", "abstainer", "trained-cnn", "slow-native")

FAULTY = """
import itertools
from dataclasses import dataclass
import numpy as np
from bench_plugins.calibrated import Calibrated
from bench_plugins.gaussian import FittedGaussian, GaussianHead
from bench_plugins.pixels import PixelStatistics
from harness.api.contract import Facts

COUNT = itertools.count()

@dataclass(frozen=True)
class Drifting(PixelStatistics):
    def load(self, weights, device):
        good = super().load(weights, device)
        return lambda images: good(images) + next(COUNT)

@dataclass(frozen=True)
class Mixing(PixelStatistics):
    def load(self, weights, device):
        good = super().load(weights, device)
        return lambda images: good(images) - good(images).mean(dim=0)

@dataclass(frozen=True)
class HalfNan(PixelStatistics):
    def load(self, weights, device):
        good = super().load(weights, device)
        def features(images):
            out = good(images).clone()
            out[:, 0] = float("nan")
            return out
        return features

@dataclass(frozen=True)
class Narrow(PixelStatistics):
    def load(self, weights, device):
        good = super().load(weights, device)
        return lambda images: good(images)[:, :4]

class Forgetful(FittedGaussian):
    def state(self):
        arrays, meta = super().state()
        return {**arrays, "mean": arrays["mean"] * 0}, meta

class Companions(FittedGaussian):
    def score(self, features):
        return super().score(features) - super().score(features).mean()

@dataclass(frozen=True)
class Head(GaussianHead):
    kind: str = ""
    def fit(self, data, weights):
        good = super().fit(data, weights)
        return {"forgetful": Forgetful, "companions": Companions}[self.kind](good.mean, good.whiten)
    @property
    def fitted_class(self):
        return {"forgetful": Forgetful, "companions": Companions}[self.kind]

class Base(Calibrated):
    facts = Facts("Faulty", "", "", "")
    def extractor(self):
        return {"drifting": Drifting, "mixing": Mixing, "half-nan": HalfNan, "narrow": Narrow}.get(
            self.name, PixelStatistics)()
    def head(self):
        return Head(kind=self.name) if self.name in ("forgetful", "companions") else GaussianHead()
"""
FAULTS = {
    "drifting": "deterministic", "mixing": "independent of order", "half-nan": "finite or abstains on whole rows",
    "narrow": r"runs to the end: PluginError.*\[8, 9\]", "forgetful": "saved and restored alike",
    "companions": "row by row",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_plugin_keeps_the_contract(name: str) -> None:
    result = check_detector(name)
    assert result.faults == []
    assert len(result.passed) == 9


@pytest.mark.parametrize("name", FAULTS)
def test_a_detector_that_breaks_the_contract_is_found_out(name: str, tmp_path: Path, monkeypatch) -> None:
    classes = "".join(f'class C{i}(Base):\n    name = "{n}"\n' for i, n in enumerate(FAULTS))
    points = {n: f"h7_faulty:C{i}" for i, n in enumerate(FAULTS)}
    folder = write_package(tmp_path / "faulty", "h7-faulty", points, {"h7_faulty": FAULTY + classes})
    monkeypatch.syspath_prepend(str(folder))
    registry._load.cache_clear()
    result = check_detector(name)
    registry._load.cache_clear()
    assert not result.ok
    import re

    assert any(re.search(FAULTS[name], fault) for fault in result.faults), result.faults


def test_an_unknown_name_is_no_fault_of_a_detector() -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        check_detector("calibrate")

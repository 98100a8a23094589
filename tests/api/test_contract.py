"""The contract: what a score means, how stages describe themselves, and what a chain refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from harness.api.contract import (
    Chain,
    Detector,
    DetectorOptions,
    Extractor,
    Facts,
    FitData,
    FixedThreshold,
    Preprocess,
    QuantileThreshold,
    Stage,
    WeightsFile,
    predict,
)
from harness.api.errors import ConfigError, PluginError, ProtocolError
from harness.api.heads import IdentityHead, MixtureHead

FLOATS = st.floats(-1e6, 1e6) | st.just(float("nan"))


# scores and thresholds ---------------------------------------------------------------------------------------------


@given(hnp.arrays(np.float64, st.integers(0, 30), elements=FLOATS), st.floats(-1e6, 1e6))
def test_generated_is_strictly_above_the_threshold_and_nan_abstains(scores: np.ndarray, threshold: float) -> None:
    said = predict(scores, threshold)
    assert said.dtype == np.int8
    for score, verdict in zip(scores, said, strict=True):
        assert verdict == (-1 if np.isnan(score) else int(score > threshold))


def test_a_score_on_the_threshold_is_photographic() -> None:
    assert predict(np.array([0.5, np.nextafter(0.5, 1), -np.inf, np.inf]), 0.5).tolist() == [0, 1, 0, 1]


@given(hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-9, 9)), st.floats(0.001, 0.999))
def test_the_quantile_threshold_is_the_released_rule_on_log_likelihoods(scores: np.ndarray, share: float) -> None:
    likelihoods = np.sort(-scores)  # the released rule: low to high, index int(share * N), kept when not below
    expected = -likelihoods[int(share * len(scores))]
    threshold = QuantileThreshold(share).value(scores)
    assert threshold == expected
    assert predict(scores, threshold).sum() <= int(share * len(scores))


def test_abstentions_do_not_calibrate_and_no_score_at_all_is_an_error() -> None:
    rule = QuantileThreshold(0.5)
    assert rule.value(np.array([3.0, np.nan, 1.0, np.nan])) == 1.0
    for empty in (np.array([]), np.array([np.nan])):
        with pytest.raises(ProtocolError, match="no calibration photograph"):
            rule.value(empty)


def test_fit_data_gives_the_photographs_in_order() -> None:
    data = FitData(np.arange(8.0).reshape(4, 2), np.array([0, 1, 0, 1], np.int8), ["", "g", "", "g"])
    assert data.photographic.tolist() == [[0, 1], [4, 5]]


# stages ------------------------------------------------------------------------------------------------------------


def test_options_of_a_stage_are_its_fields_without_nested_stages() -> None:
    @dataclass(frozen=True)
    class Outer(Stage):
        size: int
        inner: FixedThreshold

    assert Outer(size=3, inner=FixedThreshold(0.25)).options() == {"size": 3}


def test_a_stage_that_is_no_dataclass_is_told_to_be_one() -> None:
    class Plain(Stage):
        pass

    with pytest.raises(ConfigError, match=r"Plain is not a dataclass[\s\S]*@dataclass\(frozen=True\)"):
        Plain().options()


def test_an_extractor_without_training_says_so() -> None:
    with pytest.raises(ProtocolError, match=r"Features cannot be trained[\s\S]*recipe of another detector"):
        Features().step_class()


def test_options_of_a_detector_are_frozen_and_refuse_unknown_keys() -> None:
    class Options(DetectorOptions):
        size: int = 1

    with pytest.raises(ValidationError):
        Options(sise=2)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        Options().size = 2  # type: ignore[misc]


# chains ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pixels(Preprocess):
    def __call__(self, pixels, sidecar=None):
        return pixels


@dataclass(frozen=True)
class Features(Extractor):
    slots = ()

    @property
    def dim(self) -> int:
        return 2

    def load(self, weights, device):
        return lambda images: images


@dataclass(frozen=True)
class Slotted(Features):
    slots = ("weights",)


class Whole(Detector):
    """A detector whose parts a test may replace."""

    name = "whole"
    facts = Facts("Whole", "", "", "")

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.parts = parts

    def preprocess(self):
        return self.parts.get("preprocess", Pixels())

    def transforms(self):
        return self.parts.get("transforms", ())

    def extractor(self):
        return self.parts.get("extractor", Features())

    def head(self):
        return self.parts.get("head", IdentityHead())

    def threshold(self):
        return self.parts.get("threshold", FixedThreshold())


def test_a_whole_chain_is_built() -> None:
    chain = Chain.of(Whole())
    assert (chain.extractor, chain.head, chain.slots) == (Features(), IdentityHead(), ())


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"preprocess": Features()}, "no Preprocess"),
        ({"extractor": Pixels()}, "no Extractor"),
        ({"extractor": None}, "no Extractor"),
        ({"head": Features()}, "no Head"),
        ({"transforms": (Features(),)}, "no Transform"),
        ({"threshold": 0.5}, "no threshold rule"),
        ({"extractor": Slotted()}, "reads slot 'weights', which weights_files does not name"),
    ],
)
def test_a_chain_with_a_wrong_link_names_the_detector_and_the_link(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"detector 'whole'.*{said}"):
        Chain.of(Whole(**parts))


def test_a_detector_that_raises_while_its_chain_is_built_is_named() -> None:
    class Raises(Whole):
        def extractor(self):
            raise RuntimeError("no idea")

    with pytest.raises(PluginError, match=r"detector 'whole'.*RuntimeError: no idea"):
        Chain.of(Raises())


def test_slots_are_listed_once_in_order() -> None:
    @dataclass(frozen=True)
    class TwoSlots(MixtureHead):
        slots = ("head", "weights")

    class Files(Whole):
        weights_files: ClassVar = {name: WeightsFile(name, "", "") for name in ("weights", "head")}

    assert Chain.of(Files(extractor=Slotted(), head=TwoSlots())).slots == ("weights", "head")

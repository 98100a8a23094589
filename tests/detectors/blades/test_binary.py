"""blades-bc: loaded or fitted head, features shared with blades-oc, the released logits through the plugin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.blades.binary import BinaryOptions, BladesBC
from detectors.blades.one_class import BladesOC
from harness.api.contract import Chain, FitData, FixedThreshold
from harness.api.errors import ConfigError
from harness.api.mlp import FittedMlp, LoadedMlp, TrainedMlp
from harness.api.registry import make_detector
from harness.api.weights import ResolvedWeights, file_digest


def test_a_bc_file_gives_the_released_logits_through_the_plugin(
    bc_state: dict[str, Tensor], golden_dir: Path, tmp_path: Path
) -> None:
    torch.save({"model": bc_state}, tmp_path / "BC.pth")
    golden = np.load(golden_dir / "encoder.npz", allow_pickle=False)
    weights = {"weights": ResolvedWeights("file", file_digest(tmp_path / "BC.pth"), tmp_path / "BC.pth")}
    chain = Chain.of(BladesBC())
    features = chain.extractor.load(weights, "cpu")(torch.from_numpy(golden["image"]))
    head = chain.head.fit(None, weights)
    assert isinstance(head, FittedMlp)
    np.testing.assert_allclose(head.logits(features.numpy()), golden["f32/bc_logits"], rtol=0, atol=1e-4)
    logits = golden["f64/bc_logits"]
    softmax = np.exp(logits[:, 1]) / np.exp(logits).sum(axis=1)
    np.testing.assert_allclose(head.score(features.numpy()), softmax, rtol=0, atol=1e-5)
    assert chain.threshold == FixedThreshold(0.5)


def test_both_detectors_share_preprocess_extractor_and_mixture() -> None:
    options = {"encoder": "tiny", "image_size": 64, "components": 3}
    oc = make_detector("blades-oc", options)
    bc = make_detector("blades-bc", {**options, "head": "fit", "generators": ["sd"]})
    assert oc.preprocess() == bc.preprocess()
    assert oc.extractor() == bc.extractor()
    head = bc.head()
    assert isinstance(head, TrainedMlp)
    assert head.upstream == oc.head()
    assert head.generators == ("sd",)


def test_the_default_head_is_loaded_and_none_is_fitted_without_generators() -> None:
    assert BladesBC().head() == LoadedMlp(768, 1536)
    with pytest.raises(ConfigError, match="generators"):
        make_detector("blades-bc", {"head": "fit"})
    with pytest.raises(ConfigError, match="generators"):
        make_detector("blades-bc", {"generators": ["sd"]})
    with pytest.raises(ConfigError, match="hidden"):
        make_detector("blades-bc", {"hiden": 3})


def test_without_pseudo_outliers_no_mixture_is_fitted() -> None:
    head = BladesBC(BinaryOptions(head="fit", generators=("sd",), pseudo_share=0)).head()
    assert isinstance(head, TrainedMlp)
    assert head.upstream is None


def test_the_fitted_chain_trains_on_the_mixtures_outliers_and_finds_generated_images() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [400, 100]).astype(np.int8)
    features = (rng.standard_normal((500, 6)) + 3 * labels[:, None]).astype(np.float32)
    names = ["sd" if label else "" for label in labels]
    head = BladesBC(BinaryOptions(head="fit", generators=("sd",), components=2)).head()
    assert head.upstream is not None
    mixture = head.upstream.fit(FitData(features, labels, names), {})
    fitted = head.fit(FitData(features, labels, names, mixture), {})
    assert isinstance(fitted, FittedMlp)
    assert fitted.fit["pseudo_outliers"] == 20
    called = fitted.score(features) > FixedThreshold(0.5).value
    assert called[labels == 1].mean() > 0.95
    assert called[labels == 0].mean() < 0.15


def test_it_says_that_a_fitted_head_is_not_the_authors() -> None:
    assert BladesBC().warnings(10) == ()
    (said,) = BladesBC(BinaryOptions(head="fit", generators=("sd", "ldm"))).warnings(10)
    assert "sd, ldm" in said
    assert BladesOC.facts.published_row != BladesBC.facts.published_row

"""blades-bc: loaded or fitted head, features shared with blades-oc, the released logits through the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.blades.binary import BinaryOptions, BladesBC
from detectors.blades.one_class import BladesOC
from harness.api.contract import Chain, FitData, FixedThreshold
from harness.api.errors import ConfigError
from harness.api.mlp import FittedMlp, LoadedMlp, TrainedMlp
from harness.api.protocol import Protocol
from harness.api.registry import make_detector
from harness.api.weights import ResolvedWeights, file_digest
from harness.engine.keys import digest_of, stage_identity
from harness.engine.rows import prepare_row
from harness.engine.suite import DetectorRow


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


CHOICES = {
    "generators": ("sd", "ldm"), "components": 3, "seed": 7, "pseudo_share": 0.1, "pseudo_keep": True,
    "pseudo_weight": 2.0, "hidden": 64, "epochs": 3, "head_batch_size": 16, "lr": 0.01, "weight_decay": 0.0,
    "balanced": False, "hold_out": 0.2, "head_seed": 1,
}  # fmt: skip


def head_key(**options: Any) -> str:
    """What the plan's key of a head is the hash of, its upstream's included."""
    head = make_detector("blades-bc", {"head": "fit", "generators": ["sd"], **options}).head()
    return digest_of(stage_identity(head, {}))


def test_every_choice_of_a_fitted_head_is_an_option_that_makes_another_head() -> None:
    as_oc = {"encoder", "image_size"}  # of the features, not of the head
    assert {"head", "patience", *CHOICES, *as_oc} == set(BinaryOptions.model_fields)
    keys = {name: head_key(**{name: value}) for name, value in CHOICES.items()}
    keys |= {"none": head_key(), "patience": head_key(hold_out=0.2, patience=2)}
    assert len(set(keys.values())) == len(keys)
    assert head_key(generators=["sd"]) == head_key()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "load", "generators": [], "epochs": 3}, "epochs is an option of head=fit"),
        ({"head": "load", "generators": [], "pseudo_share": 0.1}, "pseudo_share is an option of head=fit"),
        ({"generators": ["sd", "sd"]}, "names one twice"),
        ({"pseudo_share": 0, "pseudo_keep": True}, "pseudo_keep does nothing with pseudo_share=0"),
        ({"patience": 2}, "patience does nothing without hold_out"),
        ({"pseudo_share": 1}, "pseudo_share"),
        ({"pseudo_weight": 0}, "pseudo_weight"),
        ({"hold_out": 1}, "hold_out"),
        ({"lr": float("inf")}, "lr"),
        ({"head_seed": -1}, "head_seed"),
    ],
)
def test_choices_that_cannot_be_meant_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_detector("blades-bc", {"head": "fit", "generators": ["sd"], **options})


def test_a_suites_batch_size_is_that_of_the_features_and_not_of_the_head() -> None:
    row = DetectorRow.model_validate({"head": "fit", "generators": ["sd"], "batch_size": 4, "head_batch_size": 8})
    prepared = prepare_row("blades-bc", row.model_copy(update={"weights": "random"}), Protocol.named("clean"), Path())
    assert prepared.batch_size == 4
    assert isinstance(prepared.chain.head, TrainedMlp)
    assert prepared.chain.head.batch_size == 8


def test_it_says_that_a_fitted_head_is_not_the_authors() -> None:
    assert BladesBC().warnings(10) == ()
    (said,) = BladesBC(BinaryOptions(head="fit", generators=("sd", "ldm"))).warnings(10)
    assert "sd, ldm" in said
    assert BladesOC.facts.published_row != BladesBC.facts.published_row

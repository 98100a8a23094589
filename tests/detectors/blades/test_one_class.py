"""blades-oc: options, stages by protocol, warnings, and the released features through the plugin."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.blades.image_tower import BladesPreprocess
from detectors.blades.one_class import BladesOC, OneClassOptions
from harness.api.contract import Chain, FitData, QuantileThreshold
from harness.api.heads import MixtureHead
from harness.api.protocol import Protocol
from harness.api.registry import make_detector
from harness.api.weights import ResolvedWeights, file_digest


def test_the_protocol_settles_threshold_order_and_resize() -> None:
    paper, released, clean = (BladesOC(protocol=Protocol.named(name)) for name in ("paper", "released", "clean"))
    assert paper.threshold() == released.threshold() == QuantileThreshold(0.05, "in_sample")
    assert clean.threshold() == QuantileThreshold(0.05, "held_out")
    assert (paper.head(), released.head()) == (MixtureHead(), MixtureHead(order="shuffled_2024"))
    smooth = BladesOC(protocol=Protocol.named("paper", resize_antialias=True))
    assert smooth.preprocess() == BladesPreprocess(224, True) != paper.preprocess()


def test_it_is_registered_and_its_chain_keeps_the_contract() -> None:
    detector = make_detector("blades-oc", {"components": 3, "encoder": "tiny", "fpr": 0.1})
    chain = Chain.of(detector)
    assert isinstance(detector, BladesOC)
    assert chain.slots == ("weights",)
    assert (chain.head, chain.threshold) == (MixtureHead(components=3), QuantileThreshold(0.1))


def test_it_warns_of_few_photographs_and_of_an_in_sample_threshold_only_then() -> None:
    paper = BladesOC()
    assert paper.warnings(25_000) == ()
    (said,) = paper.warnings(3_000)
    assert "3000 photographs are few" in said
    assert "in-sample" in said
    (said,) = BladesOC(protocol=Protocol.named("clean")).warnings(3_000)
    assert "in-sample" not in said
    assert BladesOC(OneClassOptions(encoder="demo", components=3)).warnings(300) == ()


@pytest.mark.slow
def test_an_oc_file_gives_the_released_features_through_the_plugin(
    oc_state: dict[str, Tensor], golden_dir: Path, tmp_path: Path
) -> None:
    torch.save({"model": oc_state, "optimizer": {}, "epoch": 19}, tmp_path / "OC.pth")
    golden = np.load(golden_dir / "encoder.npz", allow_pickle=False)
    weights = {"weights": ResolvedWeights("file", file_digest(tmp_path / "OC.pth"), tmp_path / "OC.pth")}
    features = BladesOC().extractor().load(weights, "cpu")(torch.from_numpy(golden["image"]))
    np.testing.assert_allclose(features.numpy(), golden["f32/image_features"], rtol=0, atol=2e-6)


def test_what_is_unlike_the_photographs_scores_higher() -> None:
    rng = np.random.default_rng(0)
    photographs = rng.standard_normal((500, 6)).astype(np.float32)
    head = BladesOC(OneClassOptions(components=2)).head()
    fitted = head.fit(FitData(photographs, np.zeros(500, dtype=np.int8), [""] * 500), {})
    threshold = QuantileThreshold(0.05).value(fitted.score(photographs))
    assert (fitted.score(photographs) > threshold).mean() == pytest.approx(0.05, abs=0.002)
    assert (fitted.score(photographs + 9) > threshold).all()


@pytest.mark.parametrize("module", ["one_class", "binary"])
def test_the_module_is_light(module: str) -> None:
    code = (
        f"import sys, detectors.blades.{module}\n"
        "heavy = {'torch', 'sklearn', 'transformers', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr

"""CNND: the authors' logits by rule weights, strict files, both crops, and the promises every detector makes."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detectors.cnnd import Cnnd, CnndOptions, CnndPreprocess
from detectors.logit import FittedSigmoid
from harness.api.contract import Chain, predict
from harness.api.errors import WeightsError
from harness.api.weights import ResolvedWeights, file_digest
from harness.engine.selfcheck import features_now, made_images

RANDOM = {"weights": ResolvedWeights("random", "random:3", seed=3)}
MODES = {"crop224": CnndOptions(), "nocrop": CnndOptions(crop="none")}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def rule_state(golden_dir: Path) -> dict[str, Tensor]:
    """The 320 tensors of the released network, filled by the golden's base rule; do not change them."""
    spec = importlib.util.spec_from_file_location("fill_rule", golden_dir / "detectors" / "fill_rule.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    keys = json.loads((golden_dir / "detectors" / "cnnd" / "keys.json").read_text())["keys"]
    return {k: torch.from_numpy(np.array(v)) for k, v in module.fill("cnnd", keys).items()}


def stored(path: Path, state: dict[str, Tensor]) -> dict[str, ResolvedWeights]:
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "total_steps": 720_000}, path)
    return {"weights": ResolvedWeights("file", file_digest(path), path)}


@pytest.mark.parametrize("mode", MODES)
def test_logits_equal_the_released_networks(
    golden_dir: Path, rule_state: dict[str, Tensor], tmp_path: Path, mode: str
) -> None:
    golden = np.load(golden_dir / "detectors" / "cnnd" / "golden.npz", allow_pickle=False)
    chain = Chain.of(Cnnd(MODES[mode]))
    tensor = chain.preprocess(golden["image_a"])
    assert tuple(tensor.shape) == tuple(golden[f"a/{mode}/input_shape"])
    np.testing.assert_allclose(tensor[:, ::16, ::16].numpy(), golden[f"a/{mode}/input_patch"], rtol=0, atol=1e-6)
    logit = features_now(chain, stored(tmp_path / "blur.pth", rule_state), [golden["image_a"]], 1)
    np.testing.assert_allclose(logit[0], golden[f"a/{mode}/logit"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(logit[0], golden[f"f64/a/{mode}/logit"], rtol=0, atol=1e-3)
    score = chain.head.fit(None, {}).score(logit)
    np.testing.assert_allclose(score, 1 / (1 + np.exp(-golden[f"f64/a/{mode}/logit"])), rtol=1e-3)


def test_a_small_image_gets_a_black_border_before_normalisation_as_in_torchvision() -> None:
    pixels = np.full((181, 150, 3), 255, np.uint8)
    out = CnndPreprocess(224)(pixels).numpy()
    black = (0 - 0.485) / 0.229
    inside = np.zeros((224, 224), bool)
    inside[21 : 21 + 181, 37 : 37 + 150] = True
    np.testing.assert_allclose(out[0][~inside], black, atol=1e-6)
    np.testing.assert_allclose(out[0][inside], (1 - 0.485) / 0.229, atol=1e-6)


def test_whole_images_keep_their_own_sizes_and_come_one_at_a_time() -> None:
    chain = Chain.of(Cnnd(MODES["nocrop"]))
    assert chain.extractor.micro_batch == 1
    assert chain.preprocess(np.zeros((70, 90, 3), np.uint8)).shape == (3, 70, 90)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((64, 96), (150, 70), (64, 96))]
    together = features_now(chain, RANDOM, images, chain.extractor.micro_batch)
    alone = np.concatenate([features_now(chain, RANDOM, [image], 1) for image in images])
    assert np.isfinite(together).all()
    assert np.array_equal(together, alone)


def test_scores_are_finite_repeatable_and_the_same_bits_in_any_place_of_a_batch() -> None:
    chain = Chain.of(Cnnd(CnndOptions(crop_size=96)))
    images = made_images(6, 120)
    logits = features_now(chain, RANDOM, images, 4)
    assert (logits.shape, logits.dtype) == ((6, 1), np.float32)
    assert np.isfinite(logits).all()
    assert len(np.unique(logits)) == 6
    assert np.array_equal(logits, features_now(chain, RANDOM, images, 4))
    order = [5, 2, 0, 3, 1, 4]
    assert np.array_equal(logits[order], features_now(chain, RANDOM, [images[i] for i in order], 4))
    alone = features_now(chain, RANDOM, images, 1)
    assert np.abs(alone - logits).max() <= 1e-5 * max(1.0, float(np.abs(logits).max()))


def _without(state: dict[str, Tensor]) -> None:
    del state["layer3.1.conv2.weight"]


def _more(state: dict[str, Tensor]) -> None:
    state["layer5.0.conv1.weight"] = torch.zeros(1)


def _imagenet(state: dict[str, Tensor]) -> None:
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 2048), torch.zeros(1000)


def _not_a_number(state: dict[str, Tensor]) -> None:
    state["fc.bias"] = torch.tensor([math.nan])


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (_without, "layer3.1.conv2.weight"),
        (_more, "layer5.0.conv1.weight"),
        (_imagenet, "fc.weight is"),
        (_not_a_number, "not finite: fc.bias"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_the_tensors_name(
    rule_state: dict[str, Tensor], tmp_path: Path, spoil, word: str
) -> None:
    state = dict(rule_state)
    spoil(state)
    with pytest.raises(WeightsError, match=word):
        Chain.of(Cnnd()).extractor.load(stored(tmp_path / "blur.pth", state), "cpu")


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=70))
def test_the_sigmoid_keeps_order_and_the_verdict_of_the_logits_sign(logits: list[float]) -> None:
    features = np.array(logits, np.float32)[:, None]
    score = FittedSigmoid().score(features)
    assert score.dtype == np.float64
    assert ((score >= 0) & (score <= 1)).all()
    order = np.argsort(features[:, 0], kind="stable")
    assert (np.diff(score[order]) >= 0).all()
    clear = np.abs(features[:, 0]) > 1e-12
    assert np.array_equal(predict(score, 0.5)[clear], (features[clear, 0] > 0).astype(np.int8))
    rows = np.concatenate([FittedSigmoid().score(features[i : i + 1]) for i in range(len(features))])
    assert np.array_equal(rows, score)


def test_logits_that_float32_would_call_certain_are_still_told_apart() -> None:
    score = FittedSigmoid().score(np.array([[18.0], [20.0], [30.0]], np.float32))
    assert (np.diff(score) > 0).all()
    assert (score < 1).all()

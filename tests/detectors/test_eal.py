"""EAL: the image tower of its file (the network that Zou25's goldens come from), and what else the file holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.eal import Eal, EalFeatures, EalOptions
from detectors.zou25 import Zou25Features
from harness.api.contract import Chain
from harness.api.errors import WeightsError
from harness.api.heads import MixtureHead
from harness.api.preprocess import CLIP_MEAN, CLIP_STD, Normalise
from harness.api.protocol import Protocol
from tests.detectors.rule_r import assert_promises, drawn_image, official_keys, random_weights, rule_r, stored


@pytest.fixture(scope="module")
def content(golden_dir: Path) -> dict[str, object]:
    """The released container; its image tower has Zou25's golden weights, its text part the sheet's key names."""
    torch.set_num_threads(1)
    keys = official_keys(golden_dir / "detectors" / "zou25")
    visual = {key: value for key, value in rule_r(keys, only=(".visual.",)).items() if ".visual." in key}
    text = ("model.transformer.embeddings.word_embeddings.weight",
            "model.transformer.transformer.layer.0.attention.q_lin.weight", "model.token_embedding.weight",
            "model.positional_embedding", "model.ln_final.weight", "model.ln_final.bias", "model.text_projection",
            "model.logit_scale", "sink_temp")  # fmt: skip
    model: dict[str, Tensor] = {**visual, **{key: torch.ones(2) for key in text}}
    return {"epoch": 75, "model": model, "optimizer": {}, "lr_sched": {}}


def test_features_equal_the_golden_ones_of_the_same_tower(
    content: dict[str, object], golden_dir: Path, tmp_path: Path
) -> None:
    golden = np.load(golden_dir / "detectors" / "zou25" / "golden.npz", allow_pickle=False)
    chain = Chain.of(Eal())
    batch = chain.preprocess(golden["image_a"])[None]
    features = chain.extractor.load(stored(tmp_path / "wrapper_75_new.pth", content), "cpu")(batch)
    np.testing.assert_allclose(features[0].numpy(), golden["a/feature"], rtol=0, atol=2e-3)


def test_an_unknown_tensor_is_refused_and_zou25_does_not_take_this_file(
    content: dict[str, object], tmp_path: Path
) -> None:
    model = content["model"]
    assert isinstance(model, dict)
    with pytest.raises(WeightsError, match=r"1 spare: model\.other"):
        EalFeatures().load(stored(tmp_path / "e.pth", {"model": {**model, "model.other": torch.ones(1)}}), "cpu")
    with pytest.raises(WeightsError, match="not the released five-head model"):
        Zou25Features().load(stored(tmp_path / "e.pth", content), "cpu")


def test_framing_squashes_the_whole_image_or_takes_its_centre_as_it_is() -> None:
    image = drawn_image(72, 301, 247)
    whole = Chain.of(Eal()).preprocess(image)
    centre = Chain.of(Eal(EalOptions(framing="crop"))).preprocess(image)
    smooth = Chain.of(Eal(None, Protocol.named("paper", resize_antialias=True))).preprocess(image)
    assert whole.shape == centre.shape == smooth.shape == (3, 224, 224)
    expected = Normalise(CLIP_MEAN, CLIP_STD)(np.ascontiguousarray(image[12:236, 38:262]))
    assert torch.equal(centre, expected)
    assert not torch.allclose(whole, smooth, atol=1e-3)


def test_small_images_get_black_borders_before_normalisation() -> None:
    white = np.full((100, 300, 3), 255, np.uint8)
    centre = Chain.of(Eal(EalOptions(framing="crop"))).preprocess(white)
    black = -torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD)
    torch.testing.assert_close(centre[:, 0, 0], black)
    assert (centre[0, 62:162] == centre[0].max()).all()


def test_ten_gaussians_of_unit_norm_features_unless_options_say_otherwise() -> None:
    assert Chain.of(Eal()).head == MixtureHead(components=10, normalise=True, seed=2024, order="list")
    assert Chain.of(Eal(EalOptions(normalise=False))).head == MixtureHead(components=10, normalise=False)


def test_random_weights_are_those_of_the_seed() -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, same, other = (EalFeatures().load(random_weights(seed), "cpu")(images) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.slow
def test_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_promises(Eal(), monkeypatch)

"""FaRL: its container and names, the masked-modelling tensors left alone by name, nothing else forgiven."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detectors.farl import MASKED_MODELLING, Farl, FarlFeatures, FarlOptions
from detectors.networks.clip import from_checkpoint, frozen
from detectors.networks.sizes import VISION_SIZES
from harness.api.contract import Chain
from harness.api.errors import WeightsError
from harness.api.heads import MixtureHead
from tests.detectors.rule_r import assert_promises, drawn_image, official_keys, rule_r, stored


@pytest.fixture(scope="module")
def extra(golden_dir: Path) -> dict[str, Tensor]:
    """The masked-modelling tensors of a FaRL file, by the names that its code gives them."""
    keys = json.loads((golden_dir / "detectors" / "farl" / "keys_mim_extra_assumed.json").read_text())
    return {name: torch.zeros(2) for name, _, _ in keys}


@pytest.fixture(scope="module")
def state(golden_dir: Path) -> dict[str, Tensor]:
    """The 302 CLIP tensors of a FaRL file, by base rule R; text ones empty."""
    torch.set_num_threads(1)
    return rule_r(official_keys(golden_dir / "detectors" / "farl"), only=("visual.",))


def test_every_masked_modelling_tensor_is_on_the_stated_list_and_no_needed_one_is(
    extra: dict[str, Tensor], golden_dir: Path
) -> None:
    assert all(name.startswith(MASKED_MODELLING) for name in extra)
    needed = [name for name, _, _ in official_keys(golden_dir / "detectors" / "farl")]
    assert not [name for name in needed if name.startswith(MASKED_MODELLING)]


@pytest.mark.slow
def test_a_farl_file_gives_the_features_of_its_clip_tower(
    state: dict[str, Tensor], extra: dict[str, Tensor], tmp_path: Path
) -> None:
    chain = Chain.of(Farl())
    images = torch.stack([chain.preprocess(drawn_image(seed, 301, 247)) for seed in (71, 72)])
    content = {"state_dict": {**state, **extra}, "epoch": 16}
    features = chain.extractor.load(stored(tmp_path / "FaRL.pth", content), "cpu")(images)
    assert features.shape == (2, chain.extractor.dim) == (2, 512)
    bare = frozen(from_checkpoint(state, VISION_SIZES["vit-b-16"], "CLIP"), "cpu")(images)
    assert torch.equal(features, bare)
    assert torch.isfinite(features).all()
    assert (features[0] - features[1]).abs().max() > 1e-4


def test_masked_modelling_apart_a_spare_tensor_is_refused(extra: dict[str, Tensor], tmp_path: Path) -> None:
    content = {"state_dict": {**extra, "visual.other": torch.zeros(1)}}
    with pytest.raises(WeightsError, match=r"152 missing.*1 spare: visual.other"):
        FarlFeatures().load(stored(tmp_path / "FaRL.pth", content), "cpu")


def test_every_image_tensor_must_be_there(state: dict[str, Tensor]) -> None:
    lacking = {key: value for key, value in state.items() if key != "visual.ln_post.weight"}
    with pytest.raises(WeightsError, match=r"1 missing: visual.ln_post.weight"):
        from_checkpoint(lacking, VISION_SIZES["vit-b-16"], "FaRL.pth", MASKED_MODELLING)


def test_framing_is_the_readmes_crop_or_the_wrappers_resize() -> None:
    image = drawn_image(72, 301, 247)
    assert not torch.equal(
        Chain.of(Farl()).preprocess(image), Chain.of(Farl(FarlOptions(framing="squash"))).preprocess(image)
    )


def test_ten_gaussians_of_unit_norm_features_unless_options_say_otherwise() -> None:
    assert Chain.of(Farl()).head == MixtureHead(components=10, normalise=True)
    assert Chain.of(Farl(FarlOptions(normalise=False, components=4))).head == MixtureHead(components=4)


@pytest.mark.slow
def test_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_promises(Farl(), monkeypatch)

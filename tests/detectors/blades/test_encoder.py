"""The encoder: equal to the released one, strict about checkpoints, differentiable in every needed way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.blades.encoder import EncoderConfig, ImageTower, JointEncoder, batch_statistics_only
from detectors.blades.losses import task_losses
from detectors.blades.prompts import compact_vocabulary, prompt_tokens
from detectors.blades.tasks import task_table
from detectors.blades.vision import for_inference
from harness.api.errors import ConfigError, WeightsError

TINY = EncoderConfig.tiny()


def tiny_tokens(levels: int = 3, context: int | None = None) -> Tensor:
    ids, _ = compact_vocabulary(prompt_tokens(task_table(levels), context))
    return torch.from_numpy(ids)


def images(count: int = 4, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(golden_dir / "encoder.npz", allow_pickle=False))


@pytest.fixture(scope="module")
def paper_encoder(oc_state: dict[str, Tensor]) -> JointEncoder:
    return JointEncoder.from_authors(oc_state, EncoderConfig.paper(), "OC.pth").eval()


def close(value: Tensor, golden: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(value.detach().numpy(), golden, rtol=0, atol=tolerance)


def test_features_texts_and_logits_equal_the_released_encoder(
    paper_encoder: JointEncoder, golden: dict[str, np.ndarray]
) -> None:
    image = torch.from_numpy(golden["image"])
    three, five = (torch.from_numpy(prompt_tokens(task_table(levels))) for levels in (3, 5))
    with torch.inference_mode():
        features, text = paper_encoder.features(image), paper_encoder.text_features(three)
        close(features, golden["f32/image_features"], 2e-6)
        close(text, golden["f32/text_features3"], 2e-6)
        close(paper_encoder.text_features(five), golden["f32/text_features5"], 2e-6)
        close(paper_encoder.logits(features, text), golden["f32/logits"], 1e-4)
    assert sum(p.numel() for p in paper_encoder.parameters()) == 89_559_105


def test_the_inference_tower_of_either_file_gives_the_released_features(
    oc_state: dict[str, Tensor], bc_state: dict[str, Tensor], golden: dict[str, np.ndarray]
) -> None:
    image = torch.from_numpy(golden["image"])
    with torch.inference_mode():
        tower = for_inference(ImageTower.from_authors(oc_state, EncoderConfig.paper(), "OC.pth"))
        close(tower.features(image), golden["f64/image_features"], 2e-6)
        tower = for_inference(ImageTower.from_authors(bc_state, EncoderConfig.paper(), "BC.pth"))
        hidden = torch.relu(tower.features(image) @ bc_state["fc1.weight"].T + bc_state["fc1.bias"])
        close(hidden, golden["f32/bc_hidden"], 1e-5)
        close(hidden @ bc_state["fc2.weight"].T + bc_state["fc2.bias"], golden["f32/bc_logits"], 1e-4)


@pytest.mark.slow
def test_in_float64_nothing_is_rounded_to_float32(oc_state: dict[str, Tensor], golden: dict[str, np.ndarray]) -> None:
    encoder = JointEncoder.from_authors(oc_state, EncoderConfig.paper(), "OC.pth").eval().double()
    image, tokens = torch.from_numpy(golden["image"]).double(), torch.from_numpy(golden["tokens3"]).long()
    with torch.inference_mode():
        close(encoder.features(image), golden["f64/image_features"], 1e-13)
        close(encoder.text_features(tokens), golden["f64/text_features3"], 1e-13)
        close(encoder(image, tokens), golden["f64/logits"], 1e-12)
        encoder.train()
        with batch_statistics_only(encoder):
            close(encoder.image(image), golden["f64/image_raw_trainmode"], 1e-11)


def test_renaming_goes_both_ways_without_loss(oc_state: dict[str, Tensor], paper_encoder: JointEncoder) -> None:
    back = paper_encoder.to_authors()
    assert set(back) == set(oc_state)
    assert all(torch.equal(back[key], value) for key, value in oc_state.items())


@pytest.mark.parametrize("prefix", ["model.", "model.model.", ""])
def test_a_small_encoder_survives_its_own_export_under_every_container(prefix: str) -> None:
    encoder = JointEncoder.random(TINY, seed=3).eval()
    again = JointEncoder.from_authors(encoder.to_authors(prefix), TINY, "memory").eval()
    tower = ImageTower.from_authors(encoder.to_authors(prefix), TINY, "memory").eval()
    torch.testing.assert_close(again(images(), tiny_tokens()), encoder(images(), tiny_tokens()), rtol=0, atol=0)
    torch.testing.assert_close(tower.features(images()), encoder.features(images()), rtol=0, atol=0)
    alone = ImageTower.from_authors(tower.to_authors(prefix), TINY, "memory").eval()
    torch.testing.assert_close(alone(images()), tower(images()), rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in again.parameters())


def spoil_missing(state: dict[str, Tensor]) -> None:
    del state["model.visual.layer1.0.conv2.weight"]


def spoil_spare(state: dict[str, Tensor]) -> None:
    state["model.visual.layer9.weight"] = torch.zeros(1)


def spoil_alien(state: dict[str, Tensor]) -> None:
    state["fc1.weight"] = torch.zeros(1)


def spoil_shape(state: dict[str, Tensor]) -> None:
    state["model.visual.fc.weight"] = torch.zeros(7, 16)


def spoil_nan(state: dict[str, Tensor]) -> None:
    state["model.visual.bn1.running_var"] = torch.full_like(state["model.visual.bn1.running_var"], float("nan"))


def spoil_type(state: dict[str, Tensor]) -> None:
    state["model.visual.bn1.bias"] = state["model.visual.bn1.bias"].to(torch.int64)


@pytest.mark.parametrize("build", [JointEncoder, ImageTower])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_missing, "1 missing: model.visual.layer1.0.conv2.weight"),
        (spoil_spare, "1 spare: model.visual.layer9.weight"),
        (spoil_alien, "1 spare: fc1.weight"),
        (spoil_shape, r"1 misshaped: model.visual.fc.weight is \[7, 16\], expected \[6, 16\]"),
        (spoil_nan, "1 not finite: model.visual.bn1.running_var"),
        (spoil_type, "1 not floating point: model.visual.bn1.bias"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    build: type[JointEncoder] | type[ImageTower], spoil: Callable[[dict[str, Tensor]], None], words: str
) -> None:
    state = JointEncoder.random(TINY, seed=0).to_authors()
    spoil(state)
    with pytest.raises(WeightsError, match=words):
        build.from_authors(state, TINY, "spoiled.pth")


def test_many_missing_tensors_are_counted_and_the_first_named() -> None:
    state = {k: v for k, v in JointEncoder.random(TINY, seed=0).to_authors().items() if "layer" not in k}
    with pytest.raises(WeightsError, match=r"\d\d missing: model.visual.layer1.0.conv1.weight, .*, \.\.\."):
        ImageTower.from_authors(state, TINY, "cut.pth")
    with pytest.raises(WeightsError, match="no image tower"):
        ImageTower.from_authors({"fc.weight": torch.zeros(1)}, TINY, "other.pth")


def test_batch_counters_may_be_absent_and_half_precision_is_widened() -> None:
    encoder = JointEncoder.random(TINY, seed=0)
    state = {k: v.half() for k, v in encoder.to_authors().items() if "num_batches" not in k}
    again = JointEncoder.from_authors(state, TINY, "half.pth")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    torch.testing.assert_close(again.image.fc.weight, encoder.image.fc.weight, rtol=1e-3, atol=1e-4)


def test_random_weights_follow_from_the_seed_alone_and_leave_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = JointEncoder.random(TINY, seed=1).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    again, other = (JointEncoder.random(TINY, seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(first[key], value) for key, value in again.items())
    assert not torch.equal(first["image.fc.weight"], other["image.fc.weight"])


def test_importing_the_image_tower_loads_neither_text_tower_nor_losses() -> None:
    code = (
        "import sys, detectors.blades.vision\n"
        "names = [m for m in sys.modules if m.startswith('detectors.blades.')]\n"
        "print(sorted(names)); assert 'transformers.models.clip.modeling_clip' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    expected = ["detectors.blades.config", "detectors.blades.states", "detectors.blades.vision"]
    assert done.stdout.strip() == str(expected)


def test_folding_for_inference_keeps_the_features() -> None:
    tower = ImageTower.random(EncoderConfig.demo(), seed=0)
    with batch_statistics_only(tower):
        tower(images(8, 64))
    for _ in range(3):
        tower(images(8, 64))
    with torch.inference_mode():
        plain = tower.eval().features(images(4, 64))
        folded = for_inference(tower).features(images(4, 64))
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(folded.norm(dim=-1), torch.ones(4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("levels", [3, 5])
def test_cutting_the_context_to_the_longest_prompt_is_exact(levels: int) -> None:
    config = EncoderConfig(**{**vars(TINY), "context": 77})
    encoder = JointEncoder.random(config, seed=0).double()
    full, cut = tiny_tokens(levels, 77), tiny_tokens(levels)
    assert cut.shape[1] < full.shape[1]
    features = encoder.text_features(full)
    torch.testing.assert_close(encoder.text_features(cut), features, rtol=0, atol=1e-14)
    noise = full.clone()
    after = torch.arange(77) > full.argmax(dim=1, keepdim=True)
    noise[after] = 3
    torch.testing.assert_close(encoder.text_features(noise), features, rtol=0, atol=1e-14)


def test_running_statistics_move_only_outside_the_context() -> None:
    tower = ImageTower.random(TINY, seed=0).train()
    before = {k: v.clone() for k, v in tower.state_dict().items()}
    with batch_statistics_only(tower):
        inside = tower(images())
    assert all(torch.equal(v, before[k]) for k, v in tower.state_dict().items())
    outside = tower(images())
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)
    assert not torch.equal(tower.state_dict()["net.embedder.embedder.normalization.running_mean"],
                           before["net.embedder.embedder.normalization.running_mean"])  # fmt: skip


def test_forward_mode_equals_double_backward_through_the_whole_encoder_in_training() -> None:
    table = task_table()
    encoder = JointEncoder.random(TINY, seed=0).double().train()
    params = {name: p.detach() for name, p in encoder.named_parameters()}
    tangent = {
        name: torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=p.dtype)
        for i, (name, p) in enumerate(params.items())
    }
    labels = {t.name: torch.arange(4) % t.num_classes for t in table}
    labels["face_fine"] = torch.eye(4, 3, dtype=torch.int64)
    batch, tokens = images().double(), tiny_tokens()

    def losses(values: dict[str, Tensor]) -> Tensor:
        return task_losses(torch.func.functional_call(encoder, values, (batch, tokens)), labels, table=table)

    with batch_statistics_only(encoder):
        _, forward = torch.func.jvp(losses, (params,), (tangent,))
        leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
        weights = torch.ones(11, dtype=torch.float64, requires_grad=True)
        gradient = torch.autograd.grad(weights @ losses(leaves), list(leaves.values()), create_graph=True)
        product = sum((g * tangent[name]).sum() for g, name in zip(gradient, leaves, strict=True))
        (backward,) = torch.autograd.grad(product, weights)
    assert forward.abs().min() > 1e-8
    torch.testing.assert_close(forward, backward, rtol=1e-8, atol=1e-12)


def test_sizes_that_cannot_be_meant_are_errors() -> None:
    for wrong in ({"depths": (1,)}, {"hidden_sizes": (6, 8, 8, 8)}, {"text_heads": 3}):
        with pytest.raises(ConfigError):
            EncoderConfig(**wrong)
    with pytest.raises(ConfigError, match="paper"):
        EncoderConfig.named("huge")

"""LGrad: the released discriminator's outputs and gradient images by rule weights, two files, and the promises."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.lgrad import GradientImage, Lgrad, LgradOptions, LgradPreprocess
from detectors.networks.stylegan_discriminator import StyleGanDiscriminator
from harness.api.contract import Chain
from harness.api.errors import WeightsError
from harness.api.weights import ResolvedWeights, file_digest
from harness.engine.selfcheck import features_now, made_images

RANDOM = {slot: ResolvedWeights("random", "random:2", seed=2) for slot in ("discriminator", "weights")}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _keys(golden_dir: Path, which: str) -> list[tuple[str, list[int], str]]:
    return json.loads((golden_dir / "detectors" / "lgrad" / f"keys_{which}.json").read_text())["keys"]


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(golden_dir / "detectors" / "lgrad" / "golden.npz", allow_pickle=False))


@pytest.fixture(scope="module")
def discriminator_state(golden_dir: Path) -> dict[str, Tensor]:
    """The 51 tensors by the golden's rule for stage 1; do not change them."""
    state = {}
    for i, (key, shape, _) in enumerate(sorted(_keys(golden_dir, "discriminator"))):
        draw = np.random.default_rng(6000 + i).standard_normal(shape)
        if key == "lod":
            draw = np.zeros(())
        elif key.endswith("blur.kernel"):
            draw = np.broadcast_to(np.outer([1, 2, 1], [1, 2, 1]) / 16, shape)
        elif key.endswith("bias"):
            draw = 0.1 * draw
        state[key] = torch.from_numpy(np.array(draw, np.float32))
    return state


@pytest.fixture(scope="module")
def network(discriminator_state: dict[str, Tensor]) -> StyleGanDiscriminator:
    return StyleGanDiscriminator.from_genforce(discriminator_state, "golden")


def stored(slot: str, path: Path, state: dict[str, Tensor]) -> dict[str, ResolvedWeights]:
    torch.save(state, path)
    return {slot: ResolvedWeights("file", file_digest(path), path)}


def test_the_discriminator_has_the_released_tensors_and_no_others(golden_dir: Path) -> None:
    ours = StyleGanDiscriminator()
    assert {k: list(v.shape) for k, v in ours.state_dict().items()} == {
        k: s for k, s, _ in _keys(golden_dir, "discriminator")
    }
    assert sum(p.numel() for p in ours.parameters()) == 23_052_353


def test_every_layer_equals_the_released_discriminators(
    golden: dict[str, np.ndarray], network: StyleGanDiscriminator
) -> None:
    seen: dict[str, Tensor] = {}
    names = [k.rpartition("/")[2] for k in golden if k.startswith(("bilinear/a/layer", "bilinear/a/input"))]
    assert len(names) == 16

    def note(name: str):
        return lambda module, inputs, output: seen.update({name: output[0]})

    hooks = [network.get_submodule(name).register_forward_hook(note(name)) for name in names]
    with torch.no_grad():
        out = network(LgradPreprocess("bilinear")(golden["image_a"])[None])
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(out[0], golden["bilinear/a/D"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(out[0], golden["f64/bilinear/a/D"], rtol=0, atol=1e-5)
    for name in names:
        mean = seen[name].mean(dim=(1, 2)) if seen[name].dim() == 3 else seen[name]
        np.testing.assert_allclose(mean, golden[f"bilinear/a/{name}"], rtol=0, atol=1e-5, err_msg=name)


def test_the_gradient_image_equals_the_released_png_to_the_stated_tolerance(
    golden: dict[str, np.ndarray], discriminator_state: dict[str, Tensor], tmp_path: Path
) -> None:
    run = GradientImage().load(stored("discriminator", tmp_path / "d.pth", discriminator_state), "cpu")
    with torch.no_grad():
        (made,) = run(LgradPreprocess()(golden["image_a"])[None])
    assert made.dtype == torch.uint8
    off = np.abs(made.permute(1, 2, 0).numpy().astype(int) - golden["bicubic/a/gradpng"])
    assert off.max() <= 8
    assert (off > 0).mean() <= 0.003


def test_the_classifiers_logit_equals_the_released_one_on_the_stored_png(
    golden_dir: Path, golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    spec = importlib.util.spec_from_file_location("fill_rule", golden_dir / "detectors" / "fill_rule.py")
    assert spec is not None
    assert spec.loader is not None
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    state = {k: torch.from_numpy(np.array(v)) for k, v in rule.fill("lgrad", _keys(golden_dir, "classifier")).items()}
    run = Lgrad().extractor().load(stored("weights", tmp_path / "c.pth", state), "cpu")
    png = torch.from_numpy(golden["bilinear/a/gradpng"].transpose(2, 0, 1).copy())[None]
    np.testing.assert_allclose(run(png)[0], golden["bilinear/a/logit"], rtol=0, atol=1e-3)


def test_each_image_is_judged_as_in_a_batch_of_its_own(
    golden: dict[str, np.ndarray], network: StyleGanDiscriminator
) -> None:
    image = LgradPreprocess("bilinear")(golden["image_a"])
    with torch.no_grad():
        out = network(torch.stack([image, -image, image.flip(2)]))[0]
    np.testing.assert_allclose(out, golden["bilinear/a/D"], rtol=0, atol=1e-5)
    # the released network itself lets the others of a batch move the output
    assert abs(float(out) - float(golden["batch3/D"][0])) > 1e-3


def test_maps_use_the_whole_range_of_8_bits_and_are_the_same_bits_in_any_batch() -> None:
    run = GradientImage().load(RANDOM, "cpu")
    images = torch.stack([LgradPreprocess()(pixels) for pixels in made_images(2)])
    with torch.no_grad():
        maps = run(images)
    assert (maps.shape, maps.dtype) == ((2, 3, 256, 256), torch.uint8)
    assert GradientImage.map_bytes == maps[0].numel()
    assert maps.amin(dim=(1, 2, 3)).tolist() == [0, 0]
    assert maps.amax(dim=(1, 2, 3)).tolist() == [255, 255]
    with torch.inference_mode():
        again = run(images[[1]])
    assert torch.equal(again, maps[[1]])


@pytest.mark.slow
def test_scores_are_finite_repeatable_and_independent_of_place_and_batch() -> None:
    chain = Chain.of(Lgrad())
    images = made_images(3)
    sizes = [1, 2]
    logits = features_now(chain, RANDOM, images, sizes)
    assert logits.shape == (3, 1)
    assert np.isfinite(logits).all()
    assert len(np.unique(logits)) == 3
    assert np.array_equal(features_now(chain, RANDOM, images[::-1], sizes)[::-1], logits)
    alone = features_now(chain, RANDOM, images, 1)
    assert np.abs(alone - logits).max() <= 1e-5 * max(1.0, float(np.abs(logits).max()))


def test_the_filter_changes_images_of_other_sizes_alone() -> None:
    exact, other = np.full((256, 256, 3), 7, np.uint8), made_images(1, 160)[0]
    exact[::2] = 200
    one, two = Lgrad().preprocess(), Lgrad(LgradOptions(filter="bilinear")).preprocess()
    assert torch.equal(one(exact), two(exact))
    np.testing.assert_allclose(one(exact).numpy(), exact.transpose(2, 0, 1) / 127.5 - 1, rtol=0, atol=1e-6)
    assert not torch.equal(one(other), two(other))
    assert one(other).shape == (3, 256, 256)


def _missing(state: dict[str, Tensor]) -> None:
    del state["input4.bias"]


def _spare(state: dict[str, Tensor]) -> None:
    state["layer15.weight"] = torch.zeros(1)


def _other_size(state: dict[str, Tensor]) -> None:
    state["layer13.weight"] = torch.zeros(512, 512)


def _other_lod(state: dict[str, Tensor]) -> None:
    state["lod"] = torch.tensor(2.0)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (_missing, "input4.bias"),
        (_spare, "layer15.weight"),
        (_other_size, "layer13.weight is"),
        (_other_lod, "lod is 2"),
    ],
)
def test_a_discriminator_that_does_not_fit_is_refused_by_the_tensors_name(
    discriminator_state: dict[str, Tensor], tmp_path: Path, spoil, word: str
) -> None:
    state = dict(discriminator_state)
    spoil(state)
    with pytest.raises(WeightsError, match=word):
        GradientImage().load(stored("discriminator", tmp_path / "d.pth", state), "cpu")


def test_the_two_files_are_two_slots_and_neither_passes_for_the_other(
    discriminator_state: dict[str, Tensor], tmp_path: Path
) -> None:
    assert Chain.of(Lgrad()).slots == ("discriminator", "weights")
    with pytest.raises(WeightsError, match="does not fit"):
        Lgrad().extractor().load(stored("weights", tmp_path / "d.pth", discriminator_state), "cpu")

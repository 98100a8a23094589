"""Preprocessing blocks: equal to the released code's outputs and to torch's and torchvision's definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate

from harness.api.errors import ConfigError, DataError
from harness.api.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    CenterCrop,
    Chain,
    Normalise,
    Resize,
    TensorResize,
    bilinear_taps,
    fdf_crop,
    to_tensor,
)

sides = st.integers(1, 400)


def random_pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def released(size: int = 224) -> Chain:
    return Chain((TensorResize(size), Normalise(CLIP_MEAN, CLIP_STD)))


@pytest.mark.parametrize("case", ["1024x1024", "h200w256"])
def test_test_time_transform_equals_released_code(golden_dir: Path, case: str) -> None:
    golden = np.load(golden_dir / "preprocess.npz", allow_pickle=False)
    out = released()(golden[f"test/{case}/in"]).numpy()
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, golden[f"test/{case}/out"], rtol=0, atol=1e-6)


def test_antialiased_output_is_another_one_and_equals_its_golden(golden_dir: Path) -> None:
    golden = np.load(golden_dir / "preprocess.npz", allow_pickle=False)
    chain = Chain((TensorResize(224, antialias=True), Normalise(CLIP_MEAN, CLIP_STD)))
    out = chain(golden["test/h200w256/in"]).numpy()
    np.testing.assert_allclose(out, golden["test/h200w256/out_ANTIALIAS_not_reference"], rtol=0, atol=1e-5)
    assert np.abs(out - golden["test/h200w256/out"]).max() > 0.01


@pytest.mark.parametrize("index", range(4))
def test_training_crop_equals_released_code(golden_dir: Path, index: int) -> None:
    golden = np.load(golden_dir / "preprocess.npz", allow_pickle=False)
    crop = fdf_crop(golden["img128"], golden[f"crop/{index}/box"])
    np.testing.assert_array_equal(crop, golden[f"crop/{index}/crop"])
    if f"crop/{index}/out" in golden:
        out = released()(crop).numpy()
        np.testing.assert_allclose(out, golden[f"crop/{index}/out"], rtol=0, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(sides, sides, st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_tensor_resize_equals_interpolate_for_any_size(h: int, w: int, out_h: int, out_w: int, seed: int) -> None:
    pixels = random_pixels(h, w, seed)
    reference = interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1).contiguous()[None].float().div(255),
        (out_h, out_w),
        mode="bilinear",
        align_corners=False,
        antialias=False,
    )[0]
    out = TensorResize((out_h, out_w))(pixels)
    assert out.shape == (3, out_h, out_w)
    assert out.is_contiguous()
    assert (out - reference).abs().max() <= 1e-6


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 777), (1333, 1), (2, 3), (223, 225), (224, 224), (1500, 997), (400, 3001)]
)
def test_tensor_resize_equals_interpolate_at_the_edges(size: tuple[int, int]) -> None:
    pixels = random_pixels(*size)
    reference = interpolate(to_tensor(pixels)[None], (224, 224), mode="bilinear", align_corners=False)[0]
    assert (TensorResize(224)(pixels) - reference).abs().max() <= 1e-6


def test_tensor_resize_takes_tensors_and_leaves_pixels_unchanged() -> None:
    pixels = random_pixels(40, 50)
    before = pixels.copy()
    from_pixels = TensorResize(16)(pixels)
    from_tensor = TensorResize(16)(to_tensor(pixels))
    assert (from_pixels - from_tensor).abs().max() <= 1e-6
    np.testing.assert_array_equal(pixels, before)


@given(st.integers(1, 5000), st.integers(1, 600))
def test_taps_are_inside_and_weights_sum_to_one(size_in: int, size_out: int) -> None:
    taps = bilinear_taps(size_in, size_out)
    assert taps.first.min() >= 0
    assert taps.second.max() <= size_in - 1
    assert ((taps.weight_first >= 0) & (taps.weight_second >= 0)).all()
    np.testing.assert_allclose(taps.weight_first + taps.weight_second, 1, atol=1e-6)


def test_resize_makes_the_shorter_side_that_long_as_torchvision_does() -> None:
    assert Resize(256)(random_pixels(300, 451)).shape == (256, int(256 * 451 / 300), 3)
    assert Resize(256)(random_pixels(451, 300)).shape == (int(256 * 451 / 300), 256, 3)
    assert Resize((10, 20))(random_pixels(451, 300)).shape == (10, 20, 3)
    same = random_pixels(256, 300)
    np.testing.assert_array_equal(Resize(256)(same), same)


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resize_equals_pillow(name: str) -> None:
    pixels = random_pixels(90, 70)
    expected = np.asarray(Image.fromarray(pixels).resize((35, 45), Image.Resampling[name.upper()]))
    np.testing.assert_array_equal(Resize(35, name)(pixels), expected)


@pytest.mark.parametrize(("side", "offset"), [(301, 38), (247, 12), (256, 16), (224, 0), (225, 0), (227, 2)])
def test_center_crop_rounds_offsets_half_to_even(side: int, offset: int) -> None:
    pixels = random_pixels(side, side)
    np.testing.assert_array_equal(CenterCrop(224)(pixels), pixels[offset : offset + 224, offset : offset + 224])


def test_center_crop_pads_small_images_with_black_on_the_floor_side() -> None:
    pixels = np.full((150, 181, 3), 255, np.uint8)
    out = CenterCrop(224)(pixels)
    inside = np.argwhere(out[..., 0] == 255)
    assert out.shape == (224, 224, 3)
    assert inside.min(axis=0).tolist() == [37, 21]
    assert inside.max(axis=0).tolist() == [37 + 149, 21 + 180]
    assert out.sum() == 255 * 3 * 150 * 181


def test_center_crop_pads_one_side_and_crops_the_other() -> None:
    pixels = random_pixels(100, 301)
    out = CenterCrop(224)(pixels)
    np.testing.assert_array_equal(out[62:162], pixels[:, 38:262])
    assert not out[:62].any()
    assert not out[162:].any()


def test_normalise_is_value_minus_mean_over_std() -> None:
    pixels = random_pixels(5, 7)
    out = Normalise((0.5, 0.25, 0.0), (0.5, 0.25, 1.0))(pixels).numpy()
    expected = (pixels.transpose(2, 0, 1) / 255 - np.array([0.5, 0.25, 0])[:, None, None]) / np.array([0.5, 0.25, 1.0])[
        :, None, None
    ]
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_chain_without_blocks_gives_the_image_at_its_own_size() -> None:
    out = Chain()(random_pixels(9, 4))
    assert out.shape == (3, 9, 4)
    assert 0 <= out.min() <= out.max() <= 1


def test_blocks_are_values_with_a_stable_repr() -> None:
    assert released() == released()
    assert hash(released()) == hash(released())
    assert repr(released()) == repr(released())
    assert released(224) != released(256)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TensorResize(0),
        lambda: TensorResize(True),
        lambda: TensorResize((3, -1)),
        lambda: Resize(8, "cubic"),
        lambda: CenterCrop(-4),
        lambda: Normalise((0, 0, 0), (1, 0, 1)),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3), (3, 4, 0)])
def test_arrays_that_are_no_pixels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="uint8"):
        released()(np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match="float64"):
        TensorResize(4)(np.zeros((4, 4, 3)))  # type: ignore[arg-type]


def test_a_pixel_block_behind_a_tensor_block_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="CenterCrop"):
        Chain((TensorResize(8), CenterCrop(4)))(random_pixels(9, 9))


@pytest.mark.parametrize("box", [(0.5, 0.5, 0.5, 0.5), (0.9, 0.9, 0.1, 0.1), (float("nan"), 0, 1, 1), (5, 5, 6, 6)])
def test_boxes_that_leave_no_pixel_are_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="box"):
        fdf_crop(random_pixels(128, 128), box)


def test_importing_the_blocks_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, harness.api.preprocess, harness.api.images; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"

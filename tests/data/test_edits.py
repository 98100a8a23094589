"""Input edits: one size and one JPEG setting for every image, stated in the key."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.api.errors import ConfigError
from harness.data.edits import InputEdits, MatchFormat


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 64), st.integers(1, 100))
def test_every_image_comes_out_in_the_same_size_and_the_same_twice(h: int, w: int, size: int, quality: int) -> None:
    edits = InputEdits(match_format=MatchFormat(size=size, quality=quality))
    image = pixels(h, w)
    out = edits.apply(image)
    assert out.shape == (size, size, 3)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, edits.apply(image.copy()))


def test_no_edit_gives_the_pixels_themselves() -> None:
    image = pixels(9, 7)
    assert InputEdits().apply(image) is image
    assert InputEdits(rotate=True).apply(image) is image


def test_an_image_of_the_common_size_is_compressed_all_the_same() -> None:
    image = pixels(32, 32)
    out = InputEdits(match_format=MatchFormat(size=32, quality=50)).apply(image)
    assert out.shape == image.shape
    assert (out != image).any()


def test_a_grey_image_stays_grey_and_flat_ones_flat() -> None:
    out = InputEdits(match_format=MatchFormat(size=16, quality=90)).apply(np.full((40, 30, 3), 128, np.uint8))
    assert (out == 128).all()


def test_the_edits_stay_what_they_were() -> None:
    ramp = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], 24, axis=0).repeat(3, axis=2)
    out = InputEdits(match_format=MatchFormat(size=8, quality=75)).apply(ramp)
    assert np.abs(out[4, :, 0].astype(int) - np.arange(10, 240, 30)).max() <= 4


def test_identity_tells_every_setting_apart() -> None:
    variants = [
        InputEdits(),
        InputEdits(rotate=True),
        InputEdits(match_format=MatchFormat(size=256, quality=90)),
        InputEdits(match_format=MatchFormat(size=256, quality=91)),
        InputEdits(match_format=MatchFormat(size=255, quality=90)),
    ]
    assert len({repr(v.identity()) for v in variants}) == len(variants)
    assert InputEdits().identity() == {"rotate": False, "match_format": None}
    assert variants[2].identity()["match_format"] == {
        "size": 256,
        "quality": 90,
        "filter": "bicubic",
        "subsampling": "4:2:0",
    }


def test_the_command_line_form_is_size_and_quality() -> None:
    assert MatchFormat.parse(" 256:90 ") == MatchFormat(size=256, quality=90)


@pytest.mark.parametrize(
    "text", ["", "256", "256:", ":90", "256:0", "256:101", "7:90", "9999:90", "a:b", "256:90:1", "-256:90"]
)
def test_anything_else_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match="256:90"):
        MatchFormat.parse(text)


def test_unknown_keys_and_bad_values_are_refused() -> None:
    with pytest.raises(ValidationError):
        InputEdits.model_validate({"rotat": True})
    with pytest.raises(ValidationError):
        MatchFormat(size=256, quality=0)

"""Image files from strangers, through ``run``, ``score`` and ``data check``."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.api.errors import DataError
from harness.api.images import decode
from harness.data.facts import file_facts


def encoded(image: Image.Image, kind: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def photo(seed: int = 0, height: int = 40, width: int = 56) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def tagged() -> bytes:
    """A JPEG that EXIF says is to be turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photo(7), "JPEG", exif=exif, quality=95)


SIXTEEN = (np.arange(40 * 56, dtype=np.uint32).reshape(40, 56) * 29 % 65536).astype(np.uint16)

BAD = {
    "ldm/zero.png": b"",
    "ldm/text.jpg": b"I am text\n" * 50,
    "ldm/bomb.png": png(50_000, 50_000),
    "ldm/large.png": png(10_000, 10_000),
    "ldm/flat.png": png(0, 10),
    "ldm/float.tif": encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
    "ldm/cut.jpg": encoded(photo(1), "JPEG", quality=95)[:-400],
    "ddim/cut.png": encoded(photo(2), "PNG")[:-300],
    "ddim/page.jpg": b"<html>not found</html>",
    **{f"ddim/text{i}.jpg": b"x" * (i + 1) for i in range(6)},
    "celeba-face/imgs/00031.jpg": b"\xff\xd8\xff",
}
"""More than the examples that a problem keeps of other kinds."""

ODD = {
    "sixteen.png": encoded(Image.fromarray(SIXTEEN), "PNG"),
    "cmyk.jpg": encoded(photo(3).convert("CMYK"), "JPEG"),
    "palette.png": encoded(photo(4).quantize(16), "PNG"),
    "alpha.png": encoded(Image.merge("RGBA", [*photo(5).split(), photo(6).convert("L")]), "PNG"),
    "grey.jpg": encoded(photo(8).convert("L"), "JPEG"),
    "animated.gif": encoded(photo(9), "GIF", save_all=True, append_images=[photo(10), photo(11)]),
    "rotated.jpg": tagged(),
    "one.png": encoded(Image.new("RGB", (1, 1), (200, 100, 50)), "PNG"),
    "long.png": encoded(photo(12, 2, 3000), "PNG"),
}


def spoil(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).write_bytes(content)


# undecodable -----------------------------------------------------------------------------------------------------


def test_the_check_lists_every_bad_image_in_one_message_before_any_detector_runs(shell, suite, own_data: Path) -> None:
    spoil(own_data, BAD)
    done = shell.run(suite(), own_data)
    text = done.refused()
    for name in BAD:
        assert name in text
    for why in ("0 bytes", "truncated", "pixels allowed", "floating-point", "not an image", "--on-bad-image skip"):
        assert why in text
    assert "features" not in done.err
    assert not (shell.folder / "runs").exists()


def test_skipped_images_are_listed_left_out_and_counted_in_every_table(shell, suite, data, own_data: Path) -> None:
    spoil(own_data, BAD)
    done = shell.run(suite(), own_data, "--on-bad-image", "skip")
    assert done.code == 0, done.err
    for name in BAD:
        assert name in done.err
    folder = shell.run_folder(done)
    stamp = f"{len(BAD)} undecodable images left out"
    assert stamp in json.loads((folder / "record.json").read_text())["stamps"][0]
    tables = sorted((folder / "tables").iterdir())
    assert {p.suffix for p in tables} == {".md", ".csv", ".tex"}
    for path in (*tables, folder / "report.html"):
        assert stamp in path.read_text(), path.name
    clean = shell.run(suite(), data, "--store", "other")
    left, all_of = (pd.read_parquet(shell.run_folder(d) / "scores.parquet") for d in (done, clean))
    assert set(left["sha256"]) < set(all_of["sha256"])
    photographs = [table.loc[table["label"] == 0, "sha256"].nunique() for table in (left, all_of)]
    assert photographs[0] == photographs[1] - 1, "the one that was spoilt; the other bad files were added"


def test_data_check_lists_every_bad_image_and_answers_no(shell, suite, own_data: Path) -> None:
    spoil(own_data, BAD)
    done = shell("data", "check", "--data-root", own_data, "--suite", suite())
    assert done.code == 1
    assert all(name in done.out for name in BAD)
    listed = shell("data", "check", "--data-root", own_data, "--suite", suite(), "--json").document
    assert all(name in json.dumps(listed) for name in BAD)


def test_fit_and_embed_list_every_bad_image(shell, own_data: Path) -> None:
    spoil(own_data, BAD)
    for words in (
        ("embed", own_data / "ldm", "--detector", "calibrated", "--out", "x.npz"),
        ("fit", "--detector", "calibrated", "--data-root", own_data / "ddim", "--out", "fitted"),
    ):
        text = shell(*words).refused()
        folder = "ldm/" if words[0] == "embed" else "ddim/"
        assert all(Path(name).name in text for name in BAD if name.startswith(folder))
    assert not (shell.folder / "fitted").exists()


# unusual ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fitted(shell, data: Path) -> Path:
    words = ("fit", "--detector", "calibrated", "--data-root", data / "celeba-face/imgs", "--out", "fitted")
    assert shell(*words, "--threads", "1").code == 0
    return shell.folder / "fitted"


def test_unusual_images_score_as_the_pixels_of_the_released_conversion(shell, fitted: Path, tmp_path: Path) -> None:
    folder, plain = tmp_path / "odd", tmp_path / "plain"
    folder.mkdir()
    plain.mkdir()
    for name, content in ODD.items():
        (folder / name).write_bytes(content)
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        if name == "sixteen.png":  # Pillow's conversion clips; the high byte is kept instead
            pixels = np.repeat((SIXTEEN >> 8).astype(np.uint8)[..., None], 3, axis=2)
        Image.fromarray(pixels).save(plain / f"{name}.png")
    answers = [shell("score", f, "--fitted", fitted, "--faces", "off", "--json") for f in (folder, plain)]
    assert [a.code for a in answers] == [0, 0], answers[0].err
    scores = [{Path(i["path"]).name: i["score"] for i in a.document["images"]} for a in answers]
    assert len(scores[0]) == len(ODD)
    assert scores[0] == {name.removesuffix(".png"): value for name, value in scores[1].items()}
    assert answers[0].warned == ()


def test_unusual_images_go_through_a_run_and_rotation_is_an_option(shell, suite, own_data: Path) -> None:
    for path in (own_data / "ldm").iterdir():
        path.unlink()
    spoil(own_data, {f"ldm/{name}": content for name, content in ODD.items()})
    plain, turned = shell.run(suite(), own_data), shell.run(suite(), own_data, "--rotate")
    tables = []
    for done in (plain, turned):
        folder = shell.run_folder(done)
        scores, names = pd.read_parquet(folder / "scores.parquet"), pd.read_parquet(folder / "manifest.parquet")
        tables.append(scores.merge(names[["sha256", "path"]], on="sha256").set_index("path")["score"])
    assert {f"ldm/{name}" for name in ODD} <= set(tables[0].index)
    assert tables[0].notna().all()
    moved = tables[0].index[tables[0] != tables[1]]
    assert list(moved) == ["ldm/rotated.jpg"]


def test_names_that_are_no_text_are_said_by_score_and_refused_by_a_run(shell, fitted, suite, own_data: Path) -> None:
    strange = [b"\xff\xfe.jpg", b"line\nbreak.jpg", b"\x1b[31mred.jpg", b"--json.jpg", b"sp ace .jpg"]
    folder = own_data / "ldm"
    for index, name in enumerate(strange):
        with open(bytes(folder) + b"/" + name, "wb") as stream:
            stream.write(encoded(photo(20 + index), "JPEG"))
    done = shell("score", folder, "--fitted", fitted, "--faces", "off")
    assert done.code == 0
    assert "not UTF-8" in done.err
    assert "\x1b" not in done.out + done.err
    assert len(done.out.splitlines()) == 1 + 12 + 4 + 1
    text = shell.run(suite(), own_data).refused()
    assert "not UTF-8" in text
    Path(shutil.os.fsdecode(bytes(folder) + b"/" + strange[0])).unlink()
    assert shell.run(suite(), own_data).code == 0


# fuzz ----------------------------------------------------------------------------------------------------------------

WHOLE = {
    "JPEG": encoded(photo(height=16, width=16), "JPEG"),
    "PNG": encoded(photo(height=16, width=16), "PNG"),
    "GIF": encoded(photo(height=16, width=16), "GIF", save_all=True, append_images=[photo(1, 16, 16)]),
    "BMP": encoded(photo(height=16, width=16), "BMP"),
    "TIFF": encoded(photo(height=16, width=16), "TIFF"),
    "WEBP": encoded(photo(height=16, width=16), "WEBP"),
    "PPM": encoded(photo(height=16, width=16), "PPM"),
    "EXIF": tagged(),
}
HEADER = 64
NUMBERS = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 50_000, 2**31 - 1, 2**31, 2**32 - 1])


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, HEADER), NUMBERS, st.sampled_from(["<H", ">H", "<I", ">I", "B"])), max_size=4),
    st.booleans(),
)
def test_a_header_with_other_numbers_in_it_gives_facts_or_a_fault(tmp_path_factory, kind, numbers, rotate) -> None:
    data = bytearray(WHOLE[kind])
    for place, number, form in numbers:
        size = struct.calcsize(form)
        struct.pack_into(form, data, min(place, len(data) - size), number % 256**size)
    if kind == "PNG":  # a wrong checksum would hide the header's numbers
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path = tmp_path_factory.mktemp("fuzz") / "x.img"
    path.write_bytes(data)
    facts = file_facts(path, "x.img", "full")
    assert facts.fault in ("", "undecodable")
    assert facts.image.width * facts.image.height <= 89_478_485
    with contextlib.suppress(DataError):
        assert decode(bytes(data), name="x.img", rotate=rotate, max_pixels=10**7).dtype == np.uint8

"""`build_demo`: the released layout, the same bytes every time, whole or not at all, nothing to tell by metadata."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.api.errors import ConfigError, DataError
from harness.data.demo import build_demo
from harness.data.demo.corpus import MARKER, encode, take_photograph
from harness.data.demo.generators import GENERATORS, MAX_BYTES, generate, load_generator, weights_path

SMALL = {"photographs": 9, "generated": 2, "size": 64, "seed": 5}


def _bytes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_demo(tmp_path_factory.mktemp("demo") / "root", **SMALL)


def test_the_corpus_has_the_released_layout_with_lists_relative_to_its_root(corpus: Path) -> None:
    lists = {name: (corpus / "celeba-face" / name).read_text().splitlines() for name in ("train.txt", "test.txt")}
    assert (len(lists["train.txt"]), len(lists["test.txt"])) == (6, 3)
    assert not set(lists["train.txt"]) & set(lists["test.txt"])
    for line in lists["train.txt"] + lists["test.txt"]:
        assert line.startswith("celeba-face/imgs/")
        assert (corpus / line).is_file()
    for name in GENERATORS:
        assert len(list((corpus / name).glob("*.jpg"))) == 2
    assert sorted(path.name for path in corpus.iterdir()) == sorted(["celeba-face", MARKER, *GENERATORS])


def test_format_size_and_jpeg_setting_are_the_same_for_both_classes(corpus: Path) -> None:
    facts = set()
    for path in corpus.rglob("*.jpg"):
        with Image.open(path) as image:
            tables = tuple(tuple(table) for table in image.quantization.values())
            facts.add((image.format, image.size, image.mode, tables, tuple(image.layer), tuple(sorted(image.info))))
    assert len(facts) == 1


def test_sidecars_hold_exif_and_landmarks_of_every_photograph_and_files_hold_none(corpus: Path) -> None:
    exif = json.loads((corpus / "celeba-face/exif.json").read_text())
    points = json.loads((corpus / "celeba-face/landmarks.json").read_text())
    assert list(exif) == list(points) == [f"{index:06d}" for index in range(9)]
    assert np.array(list(points.values())).shape == (9, 68, 2)
    for item in exif.values():
        assert item.keys() == {"EXIF"}
        assert len(item["EXIF"]) >= 7
        assert all(isinstance(value, str) for value in item["EXIF"].values())
    with Image.open(corpus / "celeba-face/imgs/000000.jpg") as image:
        assert not image.getexif()


def test_no_two_pictures_are_alike(corpus: Path) -> None:
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in corpus.rglob("*.jpg")]
    assert len(set(digests)) == len(digests) == 9 + 2 * len(GENERATORS)


def test_two_workers_and_another_folder_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    assert _bytes(build_demo(tmp_path / "other", **SMALL, workers=2)) == _bytes(corpus)


def test_a_larger_corpus_holds_the_smaller_ones_pictures(corpus: Path, tmp_path: Path) -> None:
    larger = _bytes(build_demo(tmp_path / "larger", **(SMALL | {"photographs": 11, "generated": 3})))
    pictures = {name: digest for name, digest in _bytes(corpus).items() if name.endswith(".jpg")}
    assert pictures.items() <= larger.items()


def test_a_complete_corpus_is_kept_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    total = 9 + 2 * len(GENERATORS)
    root = build_demo(tmp_path / "root", **SMALL, progress=lambda done, of: calls.append((done, of)))
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    picture = root / "celeba-face/imgs/000003.jpg"
    before, stamp = _bytes(root), picture.stat().st_mtime_ns
    build_demo(root, **SMALL)
    assert picture.stat().st_mtime_ns == stamp
    picture.write_bytes(b"damaged")
    build_demo(root, **SMALL)
    assert _bytes(root) == before
    (root / MARKER).write_text("{")
    build_demo(root, **SMALL)
    assert _bytes(root) == before


def test_other_parameters_replace_the_corpus(corpus: Path, tmp_path: Path) -> None:
    root = build_demo(tmp_path / "root", **SMALL)
    build_demo(root, **(SMALL | {"seed": 6}))
    assert _bytes(root) != _bytes(corpus)
    assert len(_bytes(root)) == len(_bytes(corpus))


def test_a_killed_build_leaves_nothing_where_the_corpus_goes_and_is_cleared_away(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom harness.data.demo import build_demo\n"
        "build_demo(Path(sys.argv[1]), photographs=60, generated=1, size=64,"
        " progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL))"
    )
    root = tmp_path / "root"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    died = subprocess.run([sys.executable, "-c", code, str(root)], env=environment, check=False)
    assert died.returncode == -9
    assert not root.exists()
    assert next(path.name for path in tmp_path.iterdir()).startswith(".root.building-")
    build_demo(root, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="something else"):
        build_demo(tmp_path, **SMALL)
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("wrong", [{"size": 65}, {"size": 8}, {"photographs": 2}, {"generated": 0}, {"workers": 0}])
def test_sizes_and_counts_that_cannot_be_meant_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        build_demo(tmp_path / "root", **(SMALL | wrong))
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generated_picture_does_not_depend_on_what_was_made_before_or_on_threads(name: str) -> None:
    import torch

    first = generate(name, 3, seed=1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        generate(name, 4, seed=1)
        again = generate(name, 3, seed=1)
        assert torch.get_num_threads() != threads
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (128, 128, 3)
    assert first.dtype == np.uint8
    assert not np.array_equal(first, generate(name, 4, seed=1))
    assert not np.array_equal(first, generate(name, 3, seed=2))


@pytest.mark.parametrize("name", GENERATORS)
def test_committed_weights_are_small(name: str) -> None:
    assert 100_000 < weights_path(name).stat().st_size <= MAX_BYTES


def test_weights_that_are_missing_or_do_not_fit_are_errors_that_name_the_cure(tmp_path: Path) -> None:
    from harness.api.errors import WeightsError

    with pytest.raises(WeightsError, match="train_generators"):
        load_generator("convgan", tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="do not fit"):
        load_generator("convgan", weights_path("vqvae"))
    with pytest.raises(ConfigError, match="convgan"):
        weights_path("stylegan")


def test_the_encoder_writes_no_metadata_and_always_the_same_bytes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert encode(image) == encode(image)
    assert b"Exif" not in encode(image)


def test_importing_the_demo_loads_no_torch() -> None:
    code = (
        "import sys, harness.data.demo, harness.data.demo.corpus, harness.data.demo.generators\n"
        "raise SystemExit('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_the_exif_reader_knows_every_tag_of_the_sidecar(tmp_path: Path) -> None:
    """The project's own reader maps each text to a number or to a class of the shipped vocabulary."""
    from harness.data.exif.photos import Sources
    from harness.data.exif.table import build_table
    from harness.data.exif.vocabulary import load_vocabulary

    taken = [take_photograph(5, index, 64) for index in range(40)]
    sidecar = tmp_path / "exif.json"
    sidecar.write_text(json.dumps({f"{index:06d}": {"EXIF": photo.exif} for index, photo in enumerate(taken)}))
    shipped = Path(__file__).resolve().parents[2] / "suites/exif/blades.yaml"
    table = build_table(Sources([sidecar]), load_vocabulary(shipped))
    assert not table.problems
    frame = table.frame.set_index("id")
    for index, photo in enumerate(taken):
        row, exif = frame.loc[f"{index:06d}"], photo.exif
        if "ISO Speed Ratings" in exif:
            assert row["iso"] == photo.settings.iso
        if "Aperture Value" in exif:
            assert row["aperture"] == pytest.approx(photo.settings.aperture)
        if "Exposure Time" in exif:
            assert row["exposure_time"] == pytest.approx(photo.settings.exposure_time)
        if "Focal Length" in exif:
            assert row["focal_length"] == pytest.approx(photo.settings.focal_length)
        for tag, name in (
            ("make", "Make"),
            ("metering_mode", "Metering Mode"),
            ("exposure_mode", "Exposure Mode"),
            ("white_balance", "White Balance Mode"),
            ("exposure_program", "Exposure Program"),
        ):
            assert pd.isna(row[tag]) == (name not in exif), (index, tag)


def test_simple_measures_see_what_they_should() -> None:
    from harness.data.demo.simple import fine_energy, one_number_auc, regression_auc, spectrum

    rng = np.random.default_rng(0)
    flat, noisy = np.full((64, 64, 3), 90, np.uint8), rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert fine_energy(flat) == 0 < fine_energy(noisy)
    stripes = np.repeat(np.tile(np.array([0, 255], np.uint8), 32)[None, :, None], 64, 0).repeat(3, 2)
    assert spectrum(stripes).argmax() == 31
    assert spectrum(np.repeat(stripes[:, :16], 4, 1)).argmax() == 8
    assert one_number_auc(np.arange(5), np.arange(10, 14)) == one_number_auc(np.arange(10, 14), np.arange(5)) == 1
    apart = rng.normal(size=(80, 3))
    assert regression_auc(apart[:40], apart[40:] + 3) > 0.95
    assert 0.3 < regression_auc(apart[:40], apart[40:]) < 0.7


@pytest.mark.slow
def test_no_one_number_gives_the_generators_away(tmp_path: Path) -> None:
    """Grain was learnt: for three generators of four at least, the energy of fine detail has an AUC below 0.9."""
    from harness.data.demo.simple import separability

    table = separability(build_demo(tmp_path / "root", photographs=240, generated=80, workers=2))
    assert set(table) == set(GENERATORS)
    assert sum(row["fine energy"] < 0.9 for row in table.values()) >= 3, table
    assert sum(row["file size"] < 0.9 for row in table.values()) >= 3, table


def test_the_contact_sheet_has_a_block_for_photographs_and_for_each_generator(tmp_path: Path) -> None:
    from harness.data.demo.sheet import main

    main(["--out", str(tmp_path / "sub" / "sheet.png"), "--rows", "1", "--columns", "1"])
    with Image.open(tmp_path / "sub" / "sheet.png") as sheet:
        assert sheet.size == (5 * 128 + 4 * 12, 128 + 18)


@pytest.mark.slow
def test_generators_train_from_scratch_load_and_are_not_trained_twice(tmp_path: Path) -> None:
    import torch

    from harness.data.demo.train_generators import main

    threads = torch.get_num_threads()
    few = ["--out", str(tmp_path), "--scale", "0.002", "--photographs", "64"]
    try:
        main([*few, "--only", "vqvae"])
        before = (tmp_path / "vqvae.safetensors").stat().st_mtime_ns
        main(few)
        assert (tmp_path / "vqvae.safetensors").stat().st_mtime_ns == before
    finally:
        torch.set_num_threads(threads)
    for name in GENERATORS:
        made = generate(name, 0, weights=tmp_path / f"{name}.safetensors")
        assert made.shape == (128, 128, 3)
        assert (tmp_path / f"{name}.safetensors").stat().st_size <= MAX_BYTES

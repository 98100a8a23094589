"""`data exif` from the command line to its files, on 75 camera files and on small made folders."""

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

from harness.api.errors import ConfigError, DataError, HarnessError
from harness.data.exif.corpus import make_labels, write_corpus
from harness.data.exif.labels import ORDINAL, TAGS, read_labels
from harness.data.exif.levels import level_of
from harness.data.exif.table import read_table
from harness.data.exif.vocabulary import Vocabulary

from .conftest import GOOD_EXIF, GOOD_IFD0, RATIONAL, ROOT, SHORT, exif_block, write

FILES = {
    "exif.parquet", "exif.csv", "exif_tags.md", "exif_tags.csv", "exif_tags.tex", "exif_labels.json",
    "exif_cuts.json", "exif_levels.png", "exif_report.json",
}  # fmt: skip


def process(*words: object, ok: int = 0) -> str:
    command = [sys.executable, "-m", "harness", "data", "exif", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == ok, done.stdout + done.stderr
    return done.stderr if ok == 2 else done.stdout


def run(*words: object, ok: int = 0) -> str:
    """The command within this process, which has the libraries loaded."""
    from typer.testing import CliRunner

    from harness.cli import app

    done = CliRunner().invoke(app, ["data", "exif", *map(str, words)])
    if isinstance(done.exception, HarnessError):
        assert ok == 2
        return str(done.exception)
    assert done.exit_code == ok, done.output
    return done.output


def made(folder: Path, num: int = 9) -> Path:
    for i in range(num):
        tags = GOOD_EXIF | {0x8827: (SHORT, 100 * (i + 1)), 0x829A: (RATIONAL, (1, 30 * (i + 1)))}
        write(folder / f"{i}.jpg", exif_block(GOOD_IFD0, tags))
    return folder


@pytest.fixture(scope="module")
def cameras(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("cameras")
    return out, json.loads(process(shared_data / "exif", "--out", out, "--json"))


def test_all_files_are_written_and_said(cameras: tuple[Path, dict]) -> None:
    out, report = cameras
    assert {p.name for p in out.iterdir()} == FILES == set(report["files"])
    assert json.loads((out / "exif_report.json").read_text()) == report
    assert (report["photographs"], report["labelled"]) == (75, 75)


def test_the_label_file_is_the_table_seen_through_the_cuts(cameras: tuple[Path, dict]) -> None:
    out, report = cameras
    labels, table = read_labels(out / "exif_labels.json"), read_table(out / "exif.parquet")
    assert labels.ids == tuple(table["id"])
    for name in ORDINAL:
        values = table[name].to_numpy(dtype=np.float64, na_value=np.nan)
        assert np.array_equal(labels.tags[name], level_of(values, report["cuts"][name]["points"]))
        assert np.bincount(labels.tags[name][labels.tags[name] >= 0]).tolist() == report["cuts"][name]["counts"]
    for name, classes in report["classes"].items():
        named = [classes[i] if i >= 0 else None for i in labels.tags[name]]
        assert named == [None if pd.isna(v) else v for v in table[name]]
    assert report["known"] == {name: int((labels.tags[name] >= 0).sum()) for name in TAGS}


def test_tertiles_of_the_camera_files(cameras: tuple[Path, dict]) -> None:
    cuts = cameras[1]["cuts"]
    assert cuts["iso"]["points"] == [80, 141]
    assert cuts["aperture"]["points"] == [2.8, 4.5]
    assert cuts["exposure_time"]["points"] == pytest.approx([1 / 200, 2**-5.5])
    assert cuts["focal_length"]["points"] == [6, 17]
    assert cuts["exposure_time"]["counts"] == [25, 25, 25]
    assert cameras[1]["empty"]["metering_mode"] == ["others", "partial", "evaluative"]


def test_oddities_of_the_camera_files_are_counted(cameras: tuple[Path, dict]) -> None:
    report = cameras[1]
    assert {(p["kind"], p["tag"], p["count"]) for p in report["problems"]} == {
        ("padded-text", "make", 8),
        ("out-of-range", "iso", 1),
    }
    unlisted = report["unlisted_values"]
    assert sum(v["count"] for v in unlisted["make"]) == 17
    assert {(v["value"], v["means"]) for v in unlisted["exposure_program"]} == {
        ("0", "unknown"),
        ("5", "unmapped"),
        ("6", "unmapped"),
    }


def test_the_figure_shows_four_panels(cameras: tuple[Path, dict]) -> None:
    with Image.open(cameras[0] / "exif_levels.png") as figure:
        assert min(figure.size) > 500
        pixels = np.asarray(figure.convert("RGB")).astype(int)
    bars = (np.abs(pixels - [0x00, 0x72, 0xB2]) < 8).all(-1)
    cuts = (np.abs(pixels - [0xD5, 0x5E, 0x00]) < 8).all(-1)
    h, w = bars.shape
    for rows in (slice(0, h // 2), slice(h // 2, h)):
        for columns in (slice(0, w // 2), slice(w // 2, w)):
            assert bars[rows, columns].sum() > 500
            assert cuts[rows, columns].sum() > 100


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_the_same_bytes_again_and_over_an_older_run(tmp_path: Path, vocabulary: Vocabulary) -> None:
    folder = made(tmp_path / "in")
    write_corpus([folder], tmp_path / "a", vocabulary)
    first = digests(tmp_path / "a")
    write_corpus([folder], tmp_path / "a", vocabulary, levels=5)
    assert digests(tmp_path / "a") != first
    write_corpus([folder], tmp_path / "a", vocabulary)
    assert digests(tmp_path / "a") == first


def test_an_older_label_file_does_not_outlive_a_corpus_without_labels(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write_corpus([made(tmp_path / "in")], tmp_path / "out", vocabulary)
    write(tmp_path / "bare" / "1.jpg", None)
    corpus = write_corpus([tmp_path / "bare"], tmp_path / "out", vocabulary)
    assert len(corpus.labels) == 0
    assert not (tmp_path / "out" / "exif_labels.json").exists()


def test_cuts_of_one_set_are_used_on_another(tmp_path: Path, vocabulary: Vocabulary) -> None:
    run(made(tmp_path / "train"), "--out", tmp_path / "a")
    write(tmp_path / "other" / "x.jpg", exif_block(GOOD_IFD0, GOOD_EXIF | {0x8827: (SHORT, 450)}))
    said = run(tmp_path / "other", "--out", tmp_path / "b", "--cuts", tmp_path / "a" / "exif_cuts.json",
               "--cuts", "aperture=1,2", "--cuts", "focal_length=10,20")  # fmt: skip
    assert "iso: cut points 300, 600 (given)" in said
    labels = read_labels(tmp_path / "b" / "exif_labels.json", first_level=1)
    assert {name: labels.tags[name].tolist() for name in ORDINAL} == {
        "iso": [1], "aperture": [2], "exposure_time": [2], "focal_length": [2],
    }  # fmt: skip


def test_five_levels_and_a_vocabulary_of_ones_own(tmp_path: Path) -> None:
    text = (ROOT / "suites" / "exif" / "blades.yaml").read_text().replace("name: Canon,", "name: Canon Inc,")
    (tmp_path / "v.yaml").write_text(text)
    said = run(made(tmp_path / "in", 10), "--out", tmp_path / "out", "--levels", 5, "--vocabulary",
               tmp_path / "v.yaml", "--cuts", "aperture=1,2,3,4", "--cuts", "focal_length=1,2,3,4")  # fmt: skip
    labels = read_labels(tmp_path / "out" / "exif_labels.json")
    assert labels.levels == 5
    assert labels.tags["iso"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert labels.tags["exposure_time"].tolist() == [4, 4, 3, 3, 2, 2, 1, 1, 0, 0]  # 1/30 s is the longest
    assert "no photograph: aperture: ultra-low, low, high, ultra-high" in said
    assert set(read_table(tmp_path / "out" / "exif.parquet")["make"]) == {"Canon Inc"}


def test_a_tag_with_too_few_values_says_which_levels_stay_empty(tmp_path: Path) -> None:
    said = run(made(tmp_path / "in"), "--out", tmp_path / "out")
    assert "no photograph: aperture: medium, high" in said
    assert "aperture: cut points none" in said


def test_without_any_of_the_nine_tags_the_answer_is_no(tmp_path: Path) -> None:
    write(tmp_path / "in" / "1.jpg", None)
    said = run(tmp_path / "in", "--out", tmp_path / "out", ok=1)
    assert "1 photographs, 0 with labels" in said
    assert "problem: no-exif: 1" in said
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES - {"exif_labels.json"}


def test_of_a_repeated_id_the_first_has_the_label(tmp_path: Path, vocabulary: Vocabulary) -> None:
    made(tmp_path / "in" / "a", 3)
    made(tmp_path / "in" / "b", 4)
    corpus = write_corpus([tmp_path / "in"], tmp_path / "out", vocabulary)
    assert corpus.labels.paths == ("a/0.jpg", "a/1.jpg", "a/2.jpg", "b/3.jpg")
    assert corpus.table.problems["id-repeated"] == 3
    assert make_labels(corpus.table, corpus.cuts, corpus.classes, 3) == corpus.labels


def test_json_beside_images_without_exif_gives_the_labels(tmp_path: Path, vocabulary: Vocabulary) -> None:
    folder = tmp_path / "celeba-face"
    write(folder / "a" / "0.jpg", None)
    write(folder / "a" / "1.jpg", None)
    (folder / "exif.json").write_text(json.dumps({"0": {"EXIF": {"ISO Speed Ratings": "200"}}}))
    labels = write_corpus([folder], tmp_path / "out", vocabulary).labels
    assert (labels.ids, labels.tags["iso"].tolist()) == (("0",), [0])


def test_bad_requests_are_refused_before_anything_is_read(tmp_path: Path, vocabulary: Vocabulary) -> None:
    folder = made(tmp_path / "in", 1)
    with pytest.raises(ConfigError, match="increasing"):
        write_corpus([folder], tmp_path / "out", vocabulary, cuts={"iso": (3.0, 2.0)})
    with pytest.raises(DataError, match="no such file or folder"):
        write_corpus([tmp_path / "absent"], tmp_path / "out", vocabulary)
    assert not (tmp_path / "out").exists()
    assert "3 or 5" in process(folder, "--out", tmp_path / "out", "--levels", 4, ok=2)
    assert "cannot read" in run(folder, "--out", tmp_path / "out", "--vocabulary", tmp_path / "no.yaml", ok=2)
    assert "cannot write" in run(folder, "--out", folder / "0.jpg" / "out", ok=2)
    assert not (tmp_path / "out").exists()


def test_progress_counts_files(tmp_path: Path, vocabulary: Vocabulary) -> None:
    seen: list[tuple[int, int]] = []
    write_corpus([made(tmp_path / "in", 3)], tmp_path / "out", vocabulary, progress=lambda a, b: seen.append((a, b)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path, vocabulary: Vocabulary) -> None:
    if os.geteuid() == 0:
        pytest.skip("permissions do not bind root")
    made(tmp_path / "in", 1)
    (tmp_path / "in" / "closed").mkdir(mode=0)
    corpus = write_corpus([tmp_path / "in"], tmp_path / "out", vocabulary)
    assert [p.kind for p in corpus.problems] == ["unreadable"]

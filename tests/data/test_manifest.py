"""The manifest: what is in it, how it is split, and that every problem is listed at once."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from harness.api.errors import DataError, StoreError
from harness.data.layouts import CELEBA, FFHQ, DataSpec
from harness.data.manifest import COLUMNS, build_manifest, conform, manifest_digest, read_manifest, write_manifest
from harness.data.splits import SplitRule

from .conftest import fill, image_bytes, write_lines


def counts(table: object, *by: str) -> dict[object, int]:
    return table.groupby(list(by)).size().to_dict()  # type: ignore[attr-defined]


def test_a_row_holds_the_files_digest_place_class_and_header(root: Path) -> None:
    table = build_manifest(root).require().table
    assert {c: str(t) for c, t in table.dtypes.items()} == COLUMNS
    row = table[table["path"] == "celeba-face/imgs/00033.jpg"].iloc[0]
    data = (root / row["path"]).read_bytes()
    assert row["sha256"] == row["group"] == hashlib.sha256(data).hexdigest()
    assert (row["label"], row["generator"], row["dataset"], row["split"]) == (0, "", "celeba-face", "report")
    assert (row["width"], row["height"], row["format"], row["jpeg_quality"]) == (24, 20, "JPEG", 90)
    assert (row["order"], row["bytes"]) == (4, len(data))
    made = table[table["generator"] == "freedom"]
    assert (made["label"] == 1).all()
    assert made["order"].tolist() == list(range(6))
    assert set(made["split"]) == {"report"}


def test_photographs_are_split_by_their_lists(root: Path) -> None:
    table = build_manifest(root, DataSpec(splits=SplitRule(train_lines=20))).table
    photographs = table[table["label"] == 0]
    assert counts(photographs[photographs["order"] <= 20], "split") == {"train": 20, "report": 10}
    assert set(photographs.loc[photographs["order"] > 20, "split"]) == {"outer", "select"}


def test_photographs_without_lists_are_split_by_hash(root: Path) -> None:
    for name in ("train.txt", "test.txt"):
        (root / "celeba-face" / name).unlink()
    result = build_manifest(root).require()
    split = result.table[result.table["label"] == 0].set_index("path")["split"]
    assert set(split) == {"train", "outer", "select", "report"}
    assert any("split by hash" in n for n in result.notes)
    fill(root / "celeba-face" / "imgs", 5, 40)
    again = build_manifest(root).table.set_index("path")["split"]
    assert (again[split.index] == split).all()


def test_seen_generators_are_split_and_others_only_tested(root: Path) -> None:
    fill(root / "sdxl", 60, 5000)
    result = build_manifest(root, seen=["SDXL"]).require()
    assert set(result.table.loc[result.table["generator"] == "sdxl", "split"]) == {"train", "select", "report"}
    assert set(result.table.loc[result.table["generator"] == "ddim", "split"]) == {"report"}
    assert [p.kind for p in build_manifest(root, seen=["hps"]).problems] == ["missing-seen"]


def test_ffhq_is_for_testing_only(root: Path) -> None:
    fill(root / "ffhq", 5, 9000)
    fill(root / "ldm_ffhq", 5, 9100)
    table = build_manifest(root, DataSpec(photographs=(CELEBA, FFHQ))).require().table
    assert counts(table[table["dataset"] == "ffhq"], "label", "split") == {(0, "report"): 5, (1, "report"): 5}
    write_lines(root / "ffhq" / "test.txt", ["09001.jpg", "09003.jpg"])
    table = build_manifest(root, DataSpec(photographs=(CELEBA, FFHQ))).require().table
    assert counts(table[table["dataset"] == "ffhq"], "label") == {0: 2, 1: 5}


def test_the_same_data_elsewhere_in_any_order_of_threads_is_the_same_manifest(root: Path, tmp_path: Path) -> None:
    first = build_manifest(root, workers=0).table
    shutil.copytree(root, tmp_path / "moved" / "faces")
    second = build_manifest(tmp_path / "moved" / "faces", workers=7).table
    assert manifest_digest(first) == manifest_digest(second)
    assert first.drop(columns=["path"]).equals(second.drop(columns=["path"]))
    assert manifest_digest(first.sample(frac=1, random_state=1)) == manifest_digest(first)
    first.loc[0, "split"] = "report"
    assert manifest_digest(first) != manifest_digest(second)


def test_the_digest_is_of_the_sorted_lines_whatever_form_the_columns_have(root: Path) -> None:
    table = build_manifest(root, seen=["sdxl"]).table.sample(frac=1, random_state=3).reset_index(drop=True)
    columns = ["label", "generator", "dataset", "split", "order", "sha256", "group"]
    rows = sorted(table[columns].itertuples(index=False, name=None), key=lambda row: row[:5])
    plain = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    assert manifest_digest(table) == hashlib.sha256(plain.encode()).hexdigest()
    planned = table.drop(columns=["sha256", "group"]).astype({"generator": "category", "split": "category"})
    assert manifest_digest(planned, lambda some: table["sha256"].iloc[some]) == manifest_digest(table)
    table.loc[0, "group"] = "another"
    assert manifest_digest(table) != manifest_digest(planned, lambda some: table["sha256"].iloc[some])


def test_a_link_to_the_root_is_the_root(root: Path) -> None:
    os.symlink(root, root.parent / "link")
    assert build_manifest(root.parent / "link").require().table.equals(build_manifest(root).table)


def test_bad_images_are_all_listed_and_stop_or_are_left_out(root: Path) -> None:
    (root / "ddim" / "01000.jpg").write_bytes(b"")
    (root / "ddim" / "01001.jpg").write_text("I am text")
    (root / "freeDoM" / "02000.jpg").write_bytes(image_bytes(1)[:60])
    stop = build_manifest(root)
    assert {p.kind: (p.count, p.severity) for p in stop.problems} == {
        "empty": (1, "error"),
        "undecodable": (2, "error"),
    }
    with pytest.raises(DataError) as caught:
        stop.require(root)
    for name in ("01000.jpg", "01001.jpg", "02000.jpg"):
        assert name in str(caught.value)
    skip = build_manifest(root, on_bad_image="skip").require()
    assert {p.severity for p in skip.problems} == {"warning"}
    assert skip.skipped == 3
    assert len(skip.table) == 40 + 8 + 6 - 3


def test_only_full_decoding_finds_a_truncated_body(root: Path) -> None:
    data = (root / "ddim" / "01000.jpg").read_bytes()
    (root / "ddim" / "01000.jpg").write_bytes(data[: len(data) - 200])
    assert not build_manifest(root, decode="header").problems
    assert [p.kind for p in build_manifest(root, decode="full").problems] == ["undecodable"]


def test_digests_alone_look_at_no_header(root: Path) -> None:
    table = build_manifest(root, decode="none").table
    assert set(table["format"]) == {""}
    assert table["sha256"].tolist() == build_manifest(root).table["sha256"].tolist()


def test_an_unreadable_file_is_a_problem(root: Path) -> None:
    path = root / "ddim" / "01000.jpg"
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    assert [p.kind for p in build_manifest(root).problems] == ["unreadable"]


def test_copies_are_kept_once_within_a_role(root: Path) -> None:
    shutil.copy(root / "ddim" / "01000.jpg", root / "ddim" / "99999.jpg")
    result = build_manifest(root).require()
    assert len(result.table[result.table["generator"] == "ddim"]) == 8
    assert any("ddim: 1 files have the content of another" in n for n in result.notes)


def test_a_test_photograph_is_never_trained_on(root: Path) -> None:
    images = root / "celeba-face" / "imgs"
    shutil.copy(images / "00031.jpg", images / "00005.jpg")
    result = build_manifest(root).require()
    sha = hashlib.sha256((images / "00031.jpg").read_bytes()).hexdigest()
    assert result.table.loc[result.table["sha256"] == sha, "split"].tolist() == ["report"]
    assert [(p.kind, p.severity, p.count) for p in result.problems] == [("leak", "warning", 1)]


def test_an_image_on_both_lists_is_a_leak(root: Path) -> None:
    with (root / "celeba-face" / "train.txt").open("a") as handle:
        handle.write("imgs/00035.jpg\n")
    result = build_manifest(root)
    assert [(p.kind, p.examples) for p in result.problems] == [("leak", ("celeba-face/imgs/00035.jpg",))]


def test_an_image_in_both_classes_is_an_error_and_in_two_generators_a_warning(root: Path) -> None:
    shutil.copy(root / "celeba-face" / "imgs" / "00031.jpg", root / "ddim" / "copy.jpg")
    shutil.copy(root / "ddim" / "01003.jpg", root / "freeDoM" / "copy.jpg")
    result = build_manifest(root)
    assert {(p.kind, p.severity) for p in result.problems} == {
        ("both-classes", "error"),
        ("shared-generated", "warning"),
    }


def test_generated_copies_across_the_splits_of_a_seen_generator_are_a_leak(root: Path) -> None:
    fill(root / "sdxl", 20, 5000)
    table = build_manifest(root, seen=["sdxl"]).table
    trained = table[(table["generator"] == "sdxl") & (table["split"] == "train")]["path"].iloc[0]
    shutil.copy(root / trained, root / "ddim" / "copy.jpg")
    assert {p.kind for p in build_manifest(root, seen=["sdxl"]).problems} == {"shared-generated", "leak"}


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf\r\n \r\n"])
def test_lists_as_shipped_empty_are_an_error_with_a_fix(root: Path, content: bytes) -> None:
    (root / "celeba-face" / "test.txt").write_bytes(content)
    problems = build_manifest(root).problems
    assert [p.kind for p in problems] == ["empty-list"]
    assert "archive" in problems[0].fix


@pytest.mark.parametrize("name", ["train.txt", "test.txt"])
def test_one_list_without_the_other_is_an_error(root: Path, name: str) -> None:
    (root / "celeba-face" / name).unlink()
    problems = build_manifest(root).problems
    assert [p.kind for p in problems] == ["missing-list"]
    assert name in problems[0].fix


def test_everything_wrong_is_listed_in_one_error(root: Path) -> None:
    (root / "ddim" / "01000.jpg").write_bytes(b"")
    write_lines(root / "celeba-face" / "test.txt", ["/etc/passwd", "nope.jpg"])
    (root / "celeba-face" / "train.txt").write_bytes("imgs/00001.jpg".encode("utf-16"))
    result = build_manifest(root, DataSpec(generators=("ddim", "hps", "midjourney")))
    with pytest.raises(DataError) as caught:
        result.require(root)
    text = str(caught.value)
    for part in ("UTF-16", "nope.jpg", "/etc/passwd", "hps", "midjourney", "01000.jpg", "--allow-outside"):
        assert part in text
    assert "the data has 6 problems" in text


def test_outside_lines_are_absolute_and_said(root: Path) -> None:
    outside = fill(root.parent / "elsewhere", 1, 77)[0]
    with (root / "celeba-face" / "test.txt").open("a") as handle:
        handle.write(f"{outside}\n")
    result = build_manifest(root, allow_outside=True).require()
    assert str(outside.resolve()) in result.table["path"].tolist()
    assert any("outside the data root" in n for n in result.notes)


def test_unlisted_images_are_not_used_and_lines_matched_by_name_are_counted(root: Path) -> None:
    write_lines(root / "celeba-face" / "test.txt", ["/gone/00030.jpg", "/gone/00031.jpg"])
    result = build_manifest(root).require()
    assert any("2 of 2 lines matched by file name" in n for n in result.notes)
    assert any("8 images are on no list" in n for n in result.notes)


def test_progress_counts_every_file(root: Path) -> None:
    calls: list[tuple[int, int]] = []
    build_manifest(root, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (54, 54)


def test_a_manifest_is_written_whole_and_read_back(root: Path, tmp_path: Path) -> None:
    table = build_manifest(root).table
    path = write_manifest(table, tmp_path / "new" / "manifest.parquet")
    assert read_manifest(path).equals(table)
    assert [p.name for p in path.parent.iterdir()] == ["manifest.parquet"]


@pytest.mark.parametrize("data", [None, b"", b"garbage", b"PAR1garbagePAR1"])
def test_a_damaged_manifest_is_one_error(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "m.parquet"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match="manifest"):
        read_manifest(path)


def test_a_table_that_is_no_manifest_or_a_folder_in_the_way_are_errors(root: Path, tmp_path: Path) -> None:
    table = build_manifest(root).table
    with pytest.raises(DataError, match="jpeg_quality"):
        conform(table.drop(columns="jpeg_quality"))
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        write_manifest(table, tmp_path / "file" / "m.parquet")


def test_real_folders_give_a_complete_manifest(shared_data: Path) -> None:
    result = build_manifest(shared_data / "faces").require()
    assert counts(result.table, "label") == {0: 316, 1: 382}
    assert counts(result.table[result.table["label"] == 0], "split")["report"] == 127
    assert set(result.table["generator"]) == {
        "", "stylegan3", "gan_celebahq", "sd3", "sdxl", "flux1_schnell", "score_sde",
    }  # fmt: skip
    assert result.skipped == 0

"""Layouts: both released ones and any folder are found, under canonical names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from harness.api.errors import ConfigError, DataError
from harness.data.layouts import CELEBA, FFHQ, NAMES, DataSpec, PhotographSet, canonical_name, display_name, find_layout

from .conftest import fill, write_lines

RELEASED_BLO = [
    *("ddim", "freeDoM", "hps", "ldm", "midjourney", "sdxl"),
    *("sdv21", "stargan", "stylegan2", "pigan", "progan", "vqgan"),
]
RELEASED_EXIF = [
    *("DDIM", "FreeDoM_T", "HPS", "LDM", "Midjourney", "SDXL"),
    *("stable_diffusion_v_2_1_text2img_p2g3", "stylegan2", "VQ-GAN_celebahq"),
]
PAPERS_NINE = {"stylegan2", "vqgan", "ldm", "ddim", "sdv21", "freedom", "hps", "midjourney", "sdxl"}


def released(base: Path, folders: list[str], lists_at: str) -> Path:
    photographs = fill(base / "celeba-face" / ("imgs" if lists_at else ""), 3, 0)
    for i, name in enumerate(folders):
        fill(base / name, 1, 100 + i)
    for name in ("train.txt", "test.txt"):
        write_lines(base / lists_at / name, [photographs[0].name])
    return base


def test_the_layout_of_the_blades_release_is_found(tmp_path: Path) -> None:
    layout = find_layout(released(tmp_path, RELEASED_BLO, "celeba-face"), DataSpec())
    assert {g.name for g in layout.generators} == PAPERS_NINE | {"progan", "stargan", "pigan"}
    assert layout.photographs[0].folder == tmp_path / "celeba-face" / "imgs"
    assert layout.photographs[0].train == tmp_path / "celeba-face" / "train.txt"
    assert not layout.problems


def test_the_layout_of_the_exif_release_is_found(tmp_path: Path) -> None:
    layout = find_layout(released(tmp_path, RELEASED_EXIF, ""), DataSpec())
    assert {g.name for g in layout.generators} == PAPERS_NINE
    assert layout.photographs[0].folder == tmp_path / "celeba-face"
    assert layout.photographs[0].test == tmp_path / "test.txt"
    assert not layout.problems


def test_every_folder_of_both_releases_has_a_canonical_and_a_display_name() -> None:
    for folder in RELEASED_BLO + RELEASED_EXIF:
        assert canonical_name(folder) in NAMES
    assert canonical_name("FreeDoM_T") == canonical_name("freeDoM") == "freedom"
    assert display_name("freedom") == "FreeDoM"
    assert display_name("celeba-face") == "CelebA-HQ"
    assert display_name("mine") == "mine"
    assert all(canonical_name(n) == n and canonical_name(e.display) == n for n, e in NAMES.items())


def test_any_folder_of_images_is_a_generator_under_its_own_name(root: Path) -> None:
    fill(root / "My GAN v3", 2, 500)
    (root / "empty").mkdir()
    (root / "notes.txt").write_text("x")
    layout = find_layout(root, DataSpec())
    assert [g.name for g in layout.generators] == ["My GAN v3", "ddim", "freedom"]
    assert not layout.problems


def test_what_the_releases_put_beside_the_data_is_no_generator(root: Path) -> None:
    for name in ("SSL_training_data", "pretrained", ".cache", "FFHQ"):
        fill(root / name, 1, 800)
    assert {g.name for g in find_layout(root, DataSpec()).generators} == {"ddim", "freedom"}


def test_ffhq_generators_go_with_ffhq_photographs(root: Path) -> None:
    fill(root / "ffhq", 3, 900)
    fill(root / "stylegan2-FFHQ", 2, 910)
    fill(root / "ldm_ffhq", 2, 920)
    layout = find_layout(root, DataSpec(photographs=(CELEBA, FFHQ)))
    assert {g.name: g.dataset for g in layout.generators} == {
        "ddim": "celeba-face",
        "freedom": "celeba-face",
        "ldm_ffhq": "ffhq",
        "stylegan2_ffhq": "ffhq",
    }
    alone = find_layout(root, DataSpec())
    assert {g.name for g in alone.generators} == {"ddim", "freedom"}
    assert any("ldm_ffhq is left out" in note for note in alone.notes)


def test_a_generator_can_be_given_other_photographs_by_name(root: Path) -> None:
    fill(root / "mine", 3, 900)
    mine = PhotographSet(dataset="mine", folders=("mine",), use="test", generators=("freeDoM",))
    layout = find_layout(root, DataSpec(photographs=(CELEBA, mine)))
    assert {g.name: g.dataset for g in layout.generators} == {"ddim": "celeba-face", "freedom": "mine"}


def test_named_generators_keep_the_suites_order_and_all_missing_ones_are_listed(root: Path) -> None:
    layout = find_layout(root, DataSpec(generators=("FreeDoM", "SDv2.1", "ddim", "hps")))
    assert [g.name for g in layout.generators] == ["freedom", "ddim"]
    assert [p.kind for p in layout.problems] == ["missing-folder", "missing-folder"]
    assert "stable_diffusion_v_2_1_text2img_p2g3" in layout.problems[0].fix


def test_an_alias_of_the_suite_wins(root: Path) -> None:
    fill(root / "run-07 output", 2, 500)
    layout = find_layout(root, DataSpec(generators=("hps",), aliases={"run-07 output": "hps"}))
    assert [g.name for g in layout.generators] == ["hps"]
    assert "ddim, freedom" in layout.notes[0]


def test_two_folders_for_one_generator_are_a_problem(root: Path) -> None:
    fill(root / "DDIM", 1, 500)
    assert [p.kind for p in find_layout(root, DataSpec()).problems] == ["same-name"]


def test_all_missing_things_are_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "ddim").mkdir()
    layout = find_layout(tmp_path, DataSpec(photographs=(CELEBA, FFHQ)))
    assert [p.kind for p in layout.problems] == ["missing-folder", "missing-folder", "empty-folder", "no-generators"]


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_root_that_is_no_folder_is_one_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.touch()
    with pytest.raises(DataError, match="data root"):
        find_layout(path, DataSpec())


def test_a_spec_cannot_point_outside_the_root(root: Path) -> None:
    spec = DataSpec(photographs=(PhotographSet(dataset="x", folders=("../elsewhere",)),))
    with pytest.raises(ConfigError, match="leaves the data root"):
        find_layout(root, spec)


def test_a_list_that_is_a_link_out_of_the_root_needs_permission(root: Path) -> None:
    listed = root / "celeba-face" / "test.txt"
    listed.rename(root.parent / "test.txt")
    listed.symlink_to(root.parent / "test.txt")
    assert [p.kind for p in find_layout(root, DataSpec()).problems] == ["leaves-root"]
    assert not find_layout(root, DataSpec(), allow_outside=True).problems


@pytest.mark.parametrize(
    "bad",
    [
        {"generator": "all"},
        {"photographs": ["celebahq"]},
        {"photographs": []},
        {"photographs": ["ffhq", "ffhq"]},
        {"photographs": [{"dataset": "x", "folders": ["x"], "usage": "test"}]},
        {"splits": {"outer": 0.5, "select": 0.4}},
        {"splits": {"train_lines": 0}},
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DataSpec.model_validate(bad)


def test_known_datasets_are_named_by_a_string() -> None:
    assert DataSpec.model_validate({"photographs": ["celeba-face", "ffhq"]}).photographs == (CELEBA, FFHQ)


def test_importing_layouts_and_edits_is_light() -> None:
    heavy = "{'torch', 'pandas', 'sklearn'}"
    code = f"import sys, harness.data.layouts, harness.data.edits; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

"""Lists: every spelling the wild knows is understood, and nothing outside the data root is named unasked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.api.errors import DataError
from harness.data.lists import ListResolver, Resolved, read_list, scan_images

from .conftest import fill, write_lines


def resolve(root: Path, text: str | bytes, *, allow_outside: bool = False, where: str = "celeba-face") -> Resolved:
    path = root / where / "odd.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))
    folder = root / "celeba-face" / "imgs"
    resolver = ListResolver(root, folder, scan_images(root, folder), allow_outside=allow_outside)
    return resolver.resolve(read_list(path), path)


def kinds(resolved: Resolved) -> dict[str, int]:
    return {p.kind: p.count for p in resolved.problems}


@pytest.mark.parametrize(
    "line",
    [
        "celeba-face/imgs/00003.jpg",
        "imgs/00003.jpg",
        "00003.jpg",
        "./00003.jpg",
        "celeba-face/../celeba-face/imgs/00003.jpg",
        "../data/celeba-face/imgs/00003.jpg",
        "celeba-face\\imgs\\00003.jpg",
        "/home/authors/data/celeba-face/imgs/00003.jpg",
        "{root}/celeba-face/imgs/00003.jpg",
        "  \t00003.jpg  ",
    ],
)
def test_every_way_to_write_a_line_means_the_same_file(root: Path, line: str) -> None:
    found = resolve(root, line.replace("{root}", str(root)) + "\n")
    assert found.paths == ("celeba-face/imgs/00003.jpg",)
    assert found.numbers == (1,)
    assert not found.problems


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_mark_line_ends_and_blank_lines_are_tolerated(root: Path, end: str, mark: bytes) -> None:
    found = resolve(root, mark + end.join(["", "00001.jpg", "   ", "00002.jpg ", "", ""]).encode())
    assert found.paths == ("celeba-face/imgs/00001.jpg", "celeba-face/imgs/00002.jpg")
    assert found.numbers == (2, 4)


def test_paths_with_spaces_and_other_alphabets_are_found(root: Path) -> None:
    folder = root / "celeba-face" / "imgs"
    shutil.copy(folder / "00001.jpg", folder / "zwölf 脸.jpg")
    assert resolve(root, "imgs/zwölf 脸.jpg\n").paths == ("celeba-face/imgs/zwölf 脸.jpg",)


def test_the_authors_absolute_paths_are_matched_by_name_and_counted(root: Path) -> None:
    found = resolve(root, "/data/authors/a/00001.jpg\nD:\\faces\\00002.jpg\n00003.jpg\n")
    assert found.by_name == 2
    assert len(found.paths) == 3


def test_a_name_that_several_files_bear_is_not_guessed(root: Path) -> None:
    fill(root / "celeba-face" / "imgs" / "sub", 1, 1)
    found = resolve(root, "/gone/00001.jpg\n")
    assert kinds(found) == {"ambiguous": 1}
    assert not found.paths


def test_missing_files_are_listed_with_their_line_numbers(root: Path) -> None:
    found = resolve(root, "00001.jpg\nnope.jpg\n\nimgs\ngone/away.jpg\n")
    assert kinds(found) == {"missing-file": 3}
    assert found.problems[0].examples == ("line 2: nope.jpg", "line 4: imgs", "line 5: gone/away.jpg")


def test_repeated_lines_are_counted_once(root: Path) -> None:
    found = resolve(root, "00001.jpg\nimgs/00001.jpg\n00002.jpg\n00001.jpg\n")
    assert found.repeated == 2
    assert found.numbers == (1, 3)


@pytest.mark.parametrize("how", ["dots", "absolute", "symlink", "linked folder"])
def test_a_line_that_leaves_the_root_needs_permission(root: Path, how: str) -> None:
    outside = fill(root.parent / "elsewhere", 1, 77)[0]
    line = "../../elsewhere/00077.jpg" if how == "dots" else str(outside)
    if how == "symlink":
        os.symlink(outside, root / "celeba-face" / "imgs" / "link.jpg")
        line = "link.jpg"
    elif how == "linked folder":
        os.symlink(outside.parent, root / "linked")
        line = "linked/00077.jpg"
    refused = resolve(root, line)
    assert not refused.paths
    assert kinds(refused) == {"leaves-root": 1}
    assert "--allow-outside" in refused.problems[0].fix
    allowed = resolve(root, line, allow_outside=True)
    assert not allowed.problems
    assert (root / allowed.paths[0]).resolve() == outside.resolve()


def test_a_link_that_stays_inside_the_root_is_fine(root: Path) -> None:
    os.symlink(root / "ddim" / "01000.jpg", root / "celeba-face" / "imgs" / "link.jpg")
    assert resolve(root, "link.jpg").paths == ("celeba-face/imgs/link.jpg",)


def test_lines_that_cannot_be_paths_are_problems(root: Path) -> None:
    found = resolve(root, b"\xff\xfebad.jpg\n".replace(b"\xff\xfe", b"\xe9\xe8") + b"x" * 5000 + b"\n")
    assert kinds(found) == {"bad-line": 2}
    assert all(e.encode("utf-8") for e in found.problems[0].to_json()["examples"])


@pytest.mark.parametrize(
    ("data", "what"),
    [("a.jpg\n".encode("utf-16"), "UTF-16"), (b"\x89PNG\r\n\x1a\n\0\0\0", "NUL"), (None, "missing")],
)
def test_what_is_no_list_is_refused(root: Path, data: bytes | None, what: str) -> None:
    path = root / "x.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=what):
        read_list(path)


def test_a_pipe_as_list_does_not_hang(root: Path) -> None:
    os.mkfifo(root / "pipe.txt")
    with pytest.raises(DataError, match="regular file"):
        read_list(root / "pipe.txt")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_any_bytes_as_a_list_give_problems_and_never_another_exception(root: Path, data: bytes) -> None:
    try:
        found = resolve(root, data)
    except DataError:
        return
    for path in found.paths:
        assert (root / path).resolve().is_relative_to(root)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["..", ".", "/", "imgs", "celeba-face", "elsewhere", "00001.jpg", "00077.jpg", "data"]))
)
def test_no_combination_of_dots_leaves_the_root(root: Path, parts: list[str]) -> None:
    if not (root.parent / "elsewhere").exists():
        fill(root.parent / "elsewhere", 1, 77)
    for path in resolve(root, "/".join(parts) + "\n").paths:
        assert (root / path).resolve().is_relative_to(root)


def test_scanning_passes_over_hidden_and_foreign_files(root: Path) -> None:
    folder = root / "ddim"
    write_lines(folder / "readme.txt", ["hello"])
    shutil.copy(folder / "01000.jpg", folder / ".hidden.jpg")
    fill(folder / "__MACOSX", 1, 5)
    fill(folder / ".cache", 1, 5)
    fill(folder / "deeper" / "still", 1, 6, kind="PNG")
    scan = scan_images(root, folder)
    assert len(scan.files) == 9
    assert "ddim/deeper/still/00006.png" in scan.files
    assert scan.ignored == 1
    assert not scan.problems
    assert list(scan.files) == sorted(scan.files)


def test_scanning_lists_links_out_dangling_links_pipes_and_foreign_names(root: Path) -> None:
    folder = root / "ddim"
    outside = fill(root.parent / "elsewhere", 2, 77)
    os.symlink(outside[0], folder / "out.jpg")
    os.symlink(outside[0].parent, folder / "outdir")
    os.symlink(folder / "nothing.jpg", folder / "dangling.jpg")
    os.mkfifo(folder / "pipe.jpg")
    shutil.copy(folder / "01000.jpg", os.fsencode(folder) + b"/\xe9.jpg")
    scan = scan_images(root, folder)
    assert {p.kind: p.count for p in scan.problems} == {"leaves-root": 2, "dangling": 2, "file-name": 1}
    assert len(scan.files) == 8
    allowed = scan_images(root, folder, allow_outside=True)
    assert len(allowed.files) == 8 + 1 + 2


def test_scanning_ends_on_links_that_go_in_circles(root: Path) -> None:
    os.symlink(root / "ddim", root / "ddim" / "again")
    os.symlink(root, root / "ddim" / "up")
    scan = scan_images(root, root / "ddim")
    assert len([f for f in scan.files if f.startswith("ddim/0")]) == 8
    assert len(scan.files) < 200


def test_a_linked_generator_folder_needs_permission(root: Path) -> None:
    fill(root.parent / "disk", 3, 300)
    os.symlink(root.parent / "disk", root / "ldm")
    assert [p.kind for p in scan_images(root, root / "ldm").problems] == ["leaves-root"]
    assert scan_images(root, root / "ldm", allow_outside=True).files == tuple(f"ldm/0030{i}.jpg" for i in range(3))

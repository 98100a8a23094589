"""Lists, links and half-unpacked data roots, through ``data index``, ``data check`` and ``run``."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.api.errors import HarnessError
from harness.data.layouts import DataSpec
from harness.data.manifest import build_manifest, manifest_digest
from harness.data.problems import require


@pytest.fixture
def index(shell, suite) -> Callable[..., object]:
    """``data index`` of a data root."""

    def ran(root: Path, *words: object):
        return shell("data", "index", "--data-root", root, "--suite", suite(), "--out", "index", *words)

    return ran


def test_lists_as_other_systems_write_them_mean_the_same(index, shell, data: Path, own_data: Path) -> None:
    assert index(data).code == 0
    plain = pd.read_parquet(shell.folder / "index/manifest.parquet")
    for name in ("train.txt", "test.txt"):
        path = own_data / "celeba-face" / name
        lines = path.read_text().split()
        spaced = [f"  {line}\t" if i % 3 else f"./{line}".replace("/", "\\") for i, line in enumerate(lines)]
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join([*spaced, "   ", ""]).encode())
    assert index(own_data).code == 0
    other = pd.read_parquet(shell.folder / "index/manifest.parquet")
    columns = ["sha256", "path", "label", "split"]
    assert other[columns].equals(plain[columns])


LINES = {
    "../outside.jpg": "leave the data root",
    "/etc/passwd": "leave the data root",
    "imgs/../../../outside.jpg": "leave the data root",
    "link.jpg": "leave the data root",
    "imgs/none.jpg": "do not exist",
    "x" * 5000: "cannot be a path",
}


def test_every_line_that_cannot_be_used_is_listed_at_once_and_nothing_leaves_the_root(
    index, shell, suite, own_data: Path
) -> None:
    Image.new("RGB", (50, 50), (90, 120, 150)).save(own_data.parent / "outside.jpg")
    os.symlink(own_data.parent / "outside.jpg", own_data / "celeba-face/link.jpg")
    train = own_data / "celeba-face/train.txt"
    good = train.read_bytes()
    train.write_bytes(good + "".join(f"{line}\n" for line in LINES).encode() + b"imgs/\xff\xfe.jpg\nimgs/a\0b.jpg\n")
    for done in (index(own_data), shell.run(suite(), own_data)):
        text = done.refused()
        assert "NUL bytes" in text
    train.write_bytes(good + "".join(f"{line}\n" for line in LINES).encode() + b"imgs/\xff\xfe.jpg\n")
    text = index(own_data).refused()
    assert all(why in text for why in LINES.values())
    assert "4 lines leave" in text
    assert "2 lines cannot be a path" in text
    assert "\\udcff" in text
    train.write_bytes(good + b"../outside.jpg\n")
    allowed = index(own_data, "--allow-outside")
    assert allowed.code == 0, allowed.err
    paths = pd.read_parquet(shell.folder / "index/manifest.parquet")["path"]
    assert str(own_data.parent.resolve() / "outside.jpg") in set(paths)


def links(root: Path) -> None:
    (root.parent / "else").mkdir()
    shutil.copy(root / "ldm/0001.jpg", root.parent / "else/0.jpg")
    os.symlink(root.parent / "else", root / "sdxl")
    os.symlink(root.parent / "else/0.jpg", root / "ldm/z.jpg")
    os.symlink(root / "nowhere.jpg", root / "ldm/y.jpg")
    os.symlink(root / "ldm", root / "ldm/again")


def pipes(root: Path) -> None:
    os.mkfifo(root / "ldm/pipe.jpg")
    (root / "celeba-face/test.txt").unlink()
    os.mkfifo(root / "celeba-face/test.txt")


def half(root: Path) -> None:
    shutil.rmtree(root / "ddim")
    for path in sorted((root / "celeba-face/imgs").iterdir())[::2]:
        path.unlink()
    for path in (root / "ldm").iterdir():
        path.unlink()


ROOTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "links": (links, ("leave the data root", "lead to no regular file", "sdxl", "ldm/z.jpg", "ldm/y.jpg")),
    "pipes": (pipes, ("lead to no regular file", "not a regular file")),
    "half": (half, ("no folder for generator 'ddim'", "holds no images", "lines name files that do not exist")),
    "no lists": (lambda r: (r / "celeba-face/test.txt").unlink(), ("has one list but not the test list",)),
    "empty list": (lambda r: (r / "celeba-face/test.txt").write_text("\n \r\n"), ("the list is empty",)),
    "UTF-16 list": (lambda r: (r / "celeba-face/test.txt").write_text("imgs/a.jpg\n", "utf-16"), ("UTF-16",)),
    "a picture as list": (
        lambda r: shutil.copy(r / "ldm/0000.png", r / "celeba-face/test.txt"), ("not a text file",),
    ),
    "empty root": (lambda r: [shutil.rmtree(p) for p in r.iterdir()], ("celeba-face", "'ldm'", "'ddim'")),
    "no photographs": (lambda r: shutil.rmtree(r / "celeba-face"), ("photographs of 'celeba-face' are missing",)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROOTS)
def test_what_is_wrong_with_a_data_root_is_all_in_one_message(index, shell, suite, own_data: Path, kind: str) -> None:
    spoil, said = ROOTS[kind]
    spoil(own_data)
    names = (
        suite("calibrated", data={"photographs": ["celeba-face"], "generators": "all"}) if kind == "links" else suite()
    )
    for done in (
        shell("data", "index", "--data-root", own_data, "--suite", names, "--out", "index"),
        shell.run(names, own_data),
        shell.run(names, own_data, "--on-bad-image", "skip"),
        shell.run(names, own_data, "--dry-run"),
    ):
        text = done.refused()
        assert all(part in text for part in said), text
    checked = shell("data", "check", "--data-root", own_data, "--suite", names)
    assert checked.code == 1
    assert all(part in checked.out for part in said)
    assert not (shell.folder / "runs").exists()


@pytest.mark.parametrize("what", ["missing", "a file", "a dangling link", "a link to itself"])
def test_a_root_that_is_no_folder_is_one_message(index, shell, suite, tmp_path: Path, what: str) -> None:
    root = tmp_path / "root"
    if what == "a file":
        root.write_text("")
    elif what != "missing":
        os.symlink(root if "itself" in what else tmp_path / "none", root)
    for done in (index(root), shell.run(suite(), root), shell("data", "check", "--data-root", root)):
        done.refused()
    shell("fit", "--detector", "calibrated", "--data-root", root, "--out", "x").refused()
    shell("score", root, "--detector", "calibrated").refused()


# fuzz ----------------------------------------------------------------------------------------------------------------

NAMES = [f"imgs/{i:05d}.{'png' if i % 3 == 0 else 'jpg'}" for i in range(36)]
LINE = st.sampled_from(NAMES).map(str.encode) | st.sampled_from(
    [b"", b"  ", b"\xef\xbb\xbf", b"..", b"../..", b".", b"/", b"~", b"imgs", b"imgs/", b"//imgs//00001.jpg", b"*",
     b"\xff", b"a\0b", b"imgs/../imgs/00001.jpg", b"../ldm/0001.jpg", b"celeba-face/imgs/00002.jpg", b"imgs/*.jpg",
     b"C:\\imgs\\00004.jpg", "ä".encode(), b"\xe4", b"\x1b[2J", b"#", b"00005.jpg", b"file:///etc/passwd",
     b"imgs/00001.jpg 0", b"x" * 300]
)  # fmt: skip
FILES = st.lists(LINE | st.binary(max_size=12), max_size=30).flatmap(
    lambda lines: st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"]).map(lambda end: end.join(lines))
)


@pytest.fixture(scope="module")
def fuzzed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the data root whose lists each example replaces."""
    return Path(shutil.copytree(data, tmp_path_factory.mktemp("fuzzed") / "data"))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(FILES, FILES, st.booleans())
@example(b"\xff\xfei\0m\0g\0", b"", False)
def test_any_lists_give_a_manifest_or_one_error(fuzzed: Path, train: bytes, test: bytes, outside: bool) -> None:
    (fuzzed / "celeba-face/train.txt").write_bytes(train)
    (fuzzed / "celeba-face/test.txt").write_bytes(test)
    spec = DataSpec(generators=("ldm",))
    result = build_manifest(fuzzed, spec, allow_outside=outside, decode="none", workers=0)
    for problem in result.problems:
        problem.text().encode("utf-8")
    with contextlib.suppress(HarnessError):
        require(result.problems, fuzzed)
    if not outside:
        assert all(not Path(path).is_absolute() and ".." not in path for path in result.table["path"])
    assert len(manifest_digest(result.table)) == 64
    photographs = result.table[result.table["label"] == 0]
    assert photographs["sha256"].is_unique

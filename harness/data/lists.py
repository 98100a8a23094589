"""Files of a folder, and image lists (`train.txt`, `test.txt`): which files they mean, and what is wrong.

Nothing outside the data root is ever named by a result unless `allow_outside` says so: symbolic links and ".." are
followed to where they lead before that is decided.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from harness.api.errors import DataError
from harness.api.images import SUFFIXES
from harness.data.problems import Problem, about

MAX_LIST_BYTES = 256 * 2**20
MAX_LINE = 4096
_LEAVES = "put the files inside the data root, or allow it with --allow-outside"


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a list that means something.

    Attributes:
        number: line number, from 1.
        text: the line without surrounding white space.
    """

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Scan:
    """The images under a folder.

    Attributes:
        files: paths relative to the data root, posix, sorted.
        ignored: files without an image's name ending.
        problems: links that leave the root or lead nowhere, names that are not UTF-8, folders that cannot be read.
    """

    files: tuple[str, ...]
    ignored: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a list's lines mean.

    Attributes:
        paths: a path a kept line: relative to the data root, or absolute where it lies outside.
        numbers: the line number of each.
        by_name: lines whose own path does not exist, matched by file name in the dataset's folder.
        repeated: further lines for a file that an earlier line names (left out).
        problems: lines that mean nothing, or leave the root.
    """

    paths: tuple[str, ...]
    numbers: tuple[int, ...]
    by_name: int
    repeated: int
    problems: tuple[Problem, ...]


def is_within(path: str, root: str) -> bool:
    """Whether a real path is `root` or lies below it."""
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def is_utf8(name: str) -> bool:
    """Whether a file name came from valid UTF-8 (others cannot be stored in a manifest)."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@dataclass
class _Findings:
    suffixes: frozenset[str]
    files: list[str] = field(default_factory=list)
    ignored: int = 0
    leaving: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    bad_names: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def scan_images(root: Path, folder: Path, *, allow_outside: bool = False, suffixes: frozenset[str] = SUFFIXES) -> Scan:
    """All images below `folder`, in sorted order; hidden files and folders are passed over.

    Args:
        root: the data root, resolved.
        folder: a folder below it (or a link).
        allow_outside: follow links that leave the root.
        suffixes: name endings, in lower case, of what is looked for.
    """
    found = _Findings(suffixes)
    where = folder.relative_to(root).as_posix()
    real_root = os.path.realpath(root)
    real_folder = os.path.realpath(folder)
    if not is_within(real_folder, real_root) and not allow_outside:
        found.leaving.append(where)
    else:
        _walk(folder, real_root, str(root), allow_outside, {real_folder}, found)
    found.files.sort()
    fix_name = "rename them with UTF-8 names"
    problems = [
        *about("leaves-root", "error", "{n} links leave the data root", where, _LEAVES, found.leaving),
        *about("dangling", "error", "{n} names lead to no regular file", where, "remove them", found.dangling),
        *about("file-name", "error", "{n} file names are not UTF-8", where, fix_name, found.bad_names),
        *about("unreadable", "error", "{n} folders cannot be read", where, "check permissions", found.unreadable),
    ]
    return Scan(tuple(found.files), found.ignored, tuple(problems))


def _walk(folder: Path, real_root: str, root: str, allow_outside: bool, visited: set[str], found: _Findings) -> None:
    stack = [str(folder)]
    while stack:
        current = stack.pop()
        try:
            entries = list(os.scandir(current))
        except OSError:
            found.unreadable.append(os.path.relpath(current, root))
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            relative = entry.path[len(root) :].lstrip(os.sep)
            is_image = os.path.splitext(entry.name)[1].lower() in found.suffixes
            if entry.is_symlink():
                real = os.path.realpath(entry.path)
                if not is_within(real, real_root) and not allow_outside:
                    if is_image or os.path.isdir(real):
                        found.leaving.append(relative)
                    continue
                if os.path.isdir(real):
                    if real not in visited:
                        visited.add(real)
                        stack.append(entry.path)
                    continue
            elif entry.is_dir():
                stack.append(entry.path)
                continue
            if not is_image:
                found.ignored += 1
            elif not entry.is_file():
                found.dangling.append(relative)
            elif not is_utf8(relative):
                found.bad_names.append(relative)
            else:
                found.files.append(relative.replace(os.sep, "/"))


def read_list(path: Path) -> list[Listed]:
    """The lines of a list that are not blank, in order.

    Tolerated: a byte-order mark, CRLF, white space around a line, bytes that are not UTF-8 (kept as they are).

    Raises:
        DataError: not a regular file, too large, UTF-16, or not text.
    """
    if not path.is_file():
        raise DataError("the list is missing or not a regular file", path, "name an existing text file")
    if path.stat().st_size > MAX_LIST_BYTES:
        raise DataError(f"the list is larger than {MAX_LIST_BYTES:,} bytes", path, "name a list of images")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"the list cannot be read ({error.strerror})", path, "check its permissions") from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError("the list is UTF-16", path, "save it as UTF-8")
    if b"\0" in data[:65536]:
        raise DataError("the list is not a text file (it holds NUL bytes)", path, "name a list of images")
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [Listed(i, line.strip()) for i, line in enumerate(lines, 1) if line.strip()]


class ListResolver:
    """Finds the files that the lines of one dataset's lists mean.

    A line may be absolute, or relative to the data root, to the list's folder, to the dataset's image folder or to
    the dataset's own folder; the first that exists counts. A line that exists nowhere is matched by its file name
    among the dataset's images (the authors' lists hold their own absolute paths).
    """

    def __init__(self, root: Path, folder: Path, scan: Scan, *, allow_outside: bool = False) -> None:
        self._root = str(root)
        self._real_root = os.path.realpath(root)
        self._folder = folder
        self._allow_outside = allow_outside
        self._known = frozenset(scan.files)
        self._by_name: dict[str, list[str]] = {}
        for path in scan.files:
            self._by_name.setdefault(PurePosixPath(path).name, []).append(path)

    def resolve(self, lines: Iterable[Listed], list_path: Path) -> Resolved:
        """Paths for `lines` of the list at `list_path`."""
        bases = dict.fromkeys([self._root, str(list_path.parent), str(self._folder), str(self._folder.parent)])
        paths: dict[str, int] = {}
        by_name = repeated = 0
        bad: dict[str, list[str]] = {"missing": [], "leaves-root": [], "ambiguous": [], "bad-line": []}
        for line in lines:
            outcome, path = self._find(line.text, list(bases))
            if path is None:
                bad[outcome].append(f"line {line.number}: {line.text[:200]}")
                continue
            by_name += outcome == "by-name"
            if path in paths:
                repeated += 1
            else:
                paths[path] = line.number
        where = os.path.relpath(list_path, self._root)
        problems = [
            *about("missing-file", "error", "{n} lines name files that do not exist", where,
                   "unpack the missing images, or take the lines out", bad["missing"]),
            *about("leaves-root", "error", "{n} lines leave the data root", where, _LEAVES, bad["leaves-root"]),
            *about("ambiguous", "error", "{n} lines do not exist as written and match several files by name", where,
                   "write paths relative to the data root", bad["ambiguous"]),
            *about("bad-line", "error", "{n} lines cannot be a path", where, "one path a line, as UTF-8",
                   bad["bad-line"]),
        ]  # fmt: skip
        return Resolved(tuple(paths), tuple(paths.values()), by_name, repeated, tuple(problems))

    def _find(self, text: str, bases: list[str]) -> tuple[str, str | None]:
        if "\0" in text or len(text) > MAX_LINE or not is_utf8(text):
            return "bad-line", None
        leaves = False
        for candidate in self._candidates(text, bases):
            normal = os.path.normpath(candidate)
            relative = normal[len(self._root) :].lstrip(os.sep) if is_within(normal, self._root) else None
            if relative in self._known:
                return "found", relative
            if not os.path.isfile(candidate):
                continue
            real = os.path.realpath(candidate)
            if is_within(real, self._real_root):
                return "found", os.path.relpath(real, self._real_root)
            if self._allow_outside:
                return "found", real
            leaves = True
        if leaves:
            return "leaves-root", None
        same_name = self._by_name.get(PurePosixPath(text.replace("\\", "/")).name, [])
        if len(same_name) == 1:
            return "by-name", same_name[0]
        return ("ambiguous", None) if same_name else ("missing", None)

    def _candidates(self, text: str, bases: list[str]) -> Iterator[str]:
        for variant in dict.fromkeys([text, text.replace("\\", "/")]):
            if os.path.isabs(variant):
                yield variant
            else:
                yield from (os.path.join(base, variant) for base in bases)

"""Digest of the source code that a stage runs: its module and what that imports, inside the distributions at hand."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from harness.api.errors import PluginError

OUR_PACKAGES = frozenset({"harness", "detectors", "reports"})
TRAINED_BY = "correct the extractor's `trained_by`"


@cache
def _place(module: str) -> tuple[Path | None, tuple[Path, ...]]:
    """The source file of a module and the folders of its submodules, without importing it or what is above it."""
    loaded = sys.modules.get(module)
    if loaded is not None:
        origin = getattr(loaded, "__file__", None)
        return _source(origin), tuple(Path(p) for p in getattr(loaded, "__path__", ()))
    parent, _, last = module.rpartition(".")
    if not parent:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None, ()
        return (None, ()) if spec is None else (
            _source(spec.origin), tuple(Path(p) for p in spec.submodule_search_locations or ())
        )  # fmt: skip
    folders = _place(parent)[1]
    for folder in folders:
        for path, inside in ((folder / last / "__init__.py", (folder / last,)), (folder / f"{last}.py", ())):
            if path.is_file():
                return path, inside
    return None, tuple(folder / last for folder in folders if (folder / last).is_dir())


def _source(origin: str | None) -> Path | None:
    return Path(origin) if origin and origin.endswith(".py") else None


def _file_of(module: str) -> Path | None:
    """The source file of a module; None for packages without source and for no module."""
    return _place(module)[0]


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """Parts of a node that can run: of ``if TYPE_CHECKING``, what follows ``else`` alone."""
    test = node.test if isinstance(node, ast.If) else None
    name = test.id if isinstance(test, ast.Name) else test.attr if isinstance(test, ast.Attribute) else None
    if isinstance(node, ast.If) and name == "TYPE_CHECKING":
        yield from node.orelse
    else:
        yield from ast.iter_child_nodes(node)


def _import_nodes(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
        return
    for child in _children(node):
        yield from _import_nodes(child)


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    base = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join([*base, *([node.module] if node.module else [])])


def _defining_module(package: str, name: str) -> str | None:
    """Where ``from package import name`` really comes from, for packages that re-export lazily."""
    path = _file_of(package)
    if package not in sys.modules and path is not None and b"__getattr__" in path.read_bytes():
        try:
            importlib.import_module(package)
        except Exception as error:  # a plugin can fail in any way; the culprit must be named
            what = f"importing package {package!r} fails: {type(error).__name__}: {error}"
            raise PluginError(what, where=path) from error
    value = getattr(sys.modules.get(package), name, None)
    return getattr(value, "__module__", None) if value is not None else None


@cache
def imports_of(module: str, packages: frozenset[str]) -> tuple[str, ...]:
    """Modules of the named top-level packages that a module imports, at any depth of its code."""
    path = _file_of(module)
    if path is None:
        return ()
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise PluginError(f"the source of module {module!r} is not Python: {error}", where=path) from error
    found: set[str] = set()
    for node in _import_nodes(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
            continue
        base = _absolute(node, module, path.name == "__init__.py")
        if base.split(".")[0] not in packages:
            continue
        for alias in node.names:
            if _file_of(f"{base}.{alias.name}") is not None:
                found.add(f"{base}.{alias.name}")
                continue
            found.add(base)
            defined = _defining_module(base, alias.name)
            if defined is not None:
                found.add(defined)
    return tuple(sorted(m for m in found if m.split(".")[0] in packages and _file_of(m) is not None))


def closure(cls: type) -> tuple[str, ...]:
    """Names of the modules whose source decides what a class computes, sorted: its own module and, recursively,
    what those import from our distribution or from the class's own top-level package."""
    packages = OUR_PACKAGES | {cls.__module__.split(".")[0]}
    return _reached([base.__module__ for base in cls.__mro__ if base.__module__.split(".")[0] in packages], packages)


def _reached(modules: Sequence[str], packages: frozenset[str]) -> tuple[str, ...]:
    """These modules and what they import of the packages, at any depth, sorted."""
    seen: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo.extend(imports_of(module, packages))
    return tuple(sorted(seen))


@cache
def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def source_digest(cls: type) -> str:
    """sha256 over the closure of a class (module names and source bytes) and over the text of the class itself,
    which tells apart two classes of one module. Hashing bytes means that a changed comment recomputes too:
    the safe side."""
    return _digest(closure(cls), inspect.getsource(cls))


@cache
def target_digest(target: str) -> str:
    """As ``source_digest``, of the class or function that ``module:name`` names. It is read and not imported, so that
    to know what a training is takes none of the libraries that it runs on. (What a base class comes from is among the
    module's imports.) Where the module only hands on a class of another one, that class is imported and counts.

    Raises:
        PluginError: there is no such module, or nothing of this name in it.
    """
    module, _, name = target.partition(":")
    path = _file_of(module)
    if path is None:
        raise PluginError(f"there is no module {module!r}", where=target, fix=TRAINED_BY)
    if name in _stated(path):
        return _digest(_reached([module], OUR_PACKAGES | {module.split(".")[0]}), name)
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a plugin can fail in any way; the culprit must be named
        raise PluginError(f"{type(error).__name__}: {error}", where=target, fix=TRAINED_BY) from error
    return source_digest(found)


def _stated(path: Path) -> set[str]:
    """Names of the classes and functions that a source file states itself, at its top."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name for node in ast.parse(path.read_bytes()).body if isinstance(node, kinds)}


def _digest(modules: Sequence[str], text: str) -> str:
    digest = hashlib.sha256()
    for module in modules:
        path = _file_of(module)
        digest.update(f"{module}\0{_file_digest(path) if path else '-'}\0".encode())
    digest.update(text.encode())
    return digest.hexdigest()

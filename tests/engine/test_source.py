"""Which modules' source is in a key: what a class runs, followed through imports, and nothing else."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from harness.api.errors import PluginError
from harness.engine import source
from harness.engine.source import closure, source_digest, target_digest

CACHES = (source._place, source.imports_of, source._file_digest, source.source_digest, source.target_digest)


def forget() -> None:
    for cached in CACHES:
        cached.cache_clear()
    for name in [n for n in sys.modules if n.split(".")[0] == "h7_source"]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes modules of a package ``h7_source`` and gives the class ``Stage`` of its module ``stage``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()

    def write(**modules: str) -> type:
        for name, text in {"__init__": "", **modules}.items():
            path = tmp_path / "h7_source" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            if path.parent.name != "h7_source":
                (path.parent / "__init__.py").touch()
        forget()
        cls: type = importlib.import_module("h7_source.stage").Stage
        return cls

    yield write
    forget()


def names(cls: type) -> set[str]:
    return {name.removeprefix("h7_source.") for name in closure(cls)}


STAGE = "class Stage:\n    def load(self):\n"


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("import h7_source.helper\n" + STAGE + "        return 1\n", {"helper"}),
        ("from h7_source import helper\n" + STAGE + "        return 1\n", {"helper"}),
        ("from h7_source.helper import value\n" + STAGE + "        return value\n", {"helper"}),
        ("from . import helper\n" + STAGE + "        return 1\n", {"helper"}),
        ("from .helper import value\n" + STAGE + "        return value\n", {"helper"}),
        ("from .sub.deep import value\n" + STAGE + "        return value\n", {"sub.deep", "helper"}),
        (STAGE + "        from h7_source.helper import value\n        return value\n", {"helper"}),
        (STAGE + "        from .helper import value\n        return value\n", {"helper"}),
        (STAGE + "        try:\n            import h7_source.helper\n        finally:\n            pass\n", {"helper"}),
        ("import numpy, json\n" + STAGE + "        return 1\n", set()),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from h7_source import helper\n"
            + STAGE + "        return 1\n",
            set(),
        ),
        (
            "import typing\nif typing.TYPE_CHECKING:\n    from h7_source import helper\n"
            "else:\n    from h7_source import other\n" + STAGE + "        return 1\n",
            {"other"},
        ),
        (
            "from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    from h7_source import helper\n"
            + STAGE + "        return 1\n",
            {"helper"},
        ),
        (STAGE + "        import importlib\n        return importlib.import_module('h7_source.helper')\n", set()),
        (STAGE + "        return 'from h7_source import helper'\n", set()),
    ],
)  # fmt: skip
def test_imports_that_can_run_count_wherever_they_stand_and_no_others(package, text: str, counted: set[str]) -> None:
    cls = package(stage=text, helper="value = 1\n", other="value = 2\n", **{"sub/deep": "from ..helper import value\n"})
    assert names(cls) - {"h7_source", "stage"} == counted


def test_imports_are_followed_to_the_end_and_around(package) -> None:
    cls = package(
        stage="from .a import x\n" + STAGE + "        return x\n",
        a="from .b import x\n",
        b="x = 1\ndef late():\n    from .a import x\n    from .c import y\n",
        c="y = 2\n",
        unused="from .stage import Stage\n",
    )
    assert names(cls) - {"h7_source"} == {"stage", "a", "b", "c"}


def test_a_name_that_a_package_hands_on_lazily_counts_where_it_is_defined(package) -> None:
    lazy = (
        "def __getattr__(name):\n"
        "    if name == 'Thing':\n"
        "        from h7_source.helper import Thing\n"
        "        return Thing\n"
        "    raise AttributeError(name)\n"
    )
    text = "from h7_source import Thing\n" + STAGE + "        return Thing\n"
    cls = package(__init__=lazy, stage=text, helper="class Thing: ...\n", other="")
    assert "helper" in names(cls)
    assert "other" not in names(cls)


def test_base_classes_of_other_modules_count(package) -> None:
    cls = package(stage="from .base import Base\nclass Stage(Base): ...\n", base="class Base: ...\n")
    assert names(cls) >= {"stage", "base"}


def test_what_a_plugin_uses_of_ours_counts(package) -> None:
    cls = package(stage="from harness.api.preprocess import TensorResize\n" + STAGE + "        return 1\n")
    assert "harness.api.preprocess" in closure(cls)
    assert "harness.api.images" not in closure(cls)


def test_a_digest_changes_with_any_counted_module_and_with_no_other(package) -> None:
    text = "from .helper import value\n" + STAGE + "        return value\n"
    first = source_digest(package(stage=text, helper="value = 1\n", other="value = 1\n"))
    assert source_digest(package(stage=text, helper="value = 1\n", other="value = 2\n")) == first
    assert source_digest(package(stage=text, helper="value = 2\n", other="value = 1\n")) != first
    assert source_digest(package(stage=text + "        # a comment\n", helper="value = 1\n")) != first


def test_two_classes_of_one_module_have_two_digests(package) -> None:
    cls = package(stage="class Stage:\n    x = 1\nclass Other:\n    x = 2\n")
    assert source_digest(cls) != source_digest(sys.modules["h7_source.stage"].Other)


def test_a_module_that_is_not_python_is_named(package) -> None:
    cls = package(stage=STAGE + "        from h7_source import helper\n", helper="def broken(:\n")
    with pytest.raises(PluginError, match=r"h7_source\.helper.*not Python"):
        source_digest(cls)


def test_finding_the_sources_imports_nothing(package) -> None:
    cls = package(
        stage=STAGE + "        from h7_source.sub.deep import value\n        import h7_source.sub.more\n",
        **{"sub/deep": "value = 1\n", "sub/more": "value = 2\n", "sub/__init__": "raise RuntimeError('boom')\n"},
    )
    assert names(cls) >= {"sub.deep", "sub.more"}
    assert not [name for name in sys.modules if name.startswith("h7_source.sub")]


def test_a_class_that_is_named_is_not_imported_and_its_digest_changes_with_what_it_uses(package) -> None:
    def digest(helper: str, name: str = "Step") -> str:
        text = "from h7_source.helper import Base\nclass Step(Base): ...\nclass Other(Base): ...\nraise RuntimeError\n"
        package(stage=STAGE + "        return 1\n", step=text, helper=f"class Base:\n    x = {helper}\n")
        return target_digest(f"h7_source.step:{name}")

    first = digest("1")
    assert digest("1") == first
    assert digest("2") != first
    assert digest("1", "Other") != first
    assert "h7_source.step" not in sys.modules


@pytest.mark.parametrize(
    "hands_on",
    [
        "from h7_source.impl import Step\n",
        "import importlib\nStep = importlib.import_module('h7_source.impl').Step\n",
        "def __getattr__(name):\n    import importlib\n    return importlib.import_module('h7_source.impl').Step\n",
    ],
)
def test_of_a_class_that_is_handed_on_the_source_of_where_it_comes_from_counts(package, hands_on: str) -> None:
    def digest(value: int) -> str:
        package(stage=STAGE + "        return 1\n", step=hands_on, impl=f"class Step:\n    x = 0\n\ny = {value}\n")
        return target_digest("h7_source.step:Step")

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


def test_a_named_class_that_is_not_there_is_told(package) -> None:
    package(stage=STAGE + "        return 1\n")
    with pytest.raises(PluginError, match=r"no module 'h7_source\.absent'[\s\S]*trained_by"):
        target_digest("h7_source.absent:Step")
    with pytest.raises(PluginError, match=r"AttributeError[\s\S]*h7_source\.stage:Step[\s\S]*trained_by"):
        target_digest("h7_source.stage:Step")


def test_a_folder_without_init_is_a_package_too(package, tmp_path: Path) -> None:
    cls = package(
        stage="from h7_source.sub.deep import value\n" + STAGE + "        return value\n", **{"sub/deep": "value = 1\n"}
    )
    (tmp_path / "h7_source/sub/__init__.py").unlink()
    forget()
    assert "sub.deep" in names(importlib.import_module("h7_source.stage").Stage)
    assert cls is not None


def test_a_package_that_hands_on_lazily_and_fails_on_import_is_named(package) -> None:
    lazy = "def __getattr__(name): ...\nraise RuntimeError('boom')\n"
    cls = package(stage=STAGE + "        from h7_source.sub import Thing\n", **{"sub/deep": "", "sub/__init__": lazy})
    with pytest.raises(PluginError, match=r"h7_source\.sub.*RuntimeError: boom"):
        source_digest(cls)

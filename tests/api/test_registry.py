"""Finding detectors: third-party packages count like our own, and whatever is wrong names its culprit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from plugin_support import write_package

from harness.api import registry
from harness.api.errors import ConfigError, PluginError
from harness.api.registry import detector_class, make_detector, registrations, unknown

GOOD = """
from typing import Literal
from harness.api.contract import Detector, DetectorOptions, Facts
class Options(DetectorOptions):
    size: int = 3
    mode: Literal["a", "b"] = "a"
class {cls}(Detector):
    name = "{name}"
    facts = Facts("Good", "", "", "")
    Options = Options
    def preprocess(self): ...
    def extractor(self): ...
    def head(self): ...
    def threshold(self): ...
"""


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Adds an installed package to what this process sees."""
    registry._load.cache_clear()

    def added(distribution: str, points: dict[str, str], **modules: str) -> None:
        folder = write_package(tmp_path / distribution, distribution, points, modules)
        monkeypatch.syspath_prepend(str(folder))

    yield added
    registry._load.cache_clear()
    for name in [n for n in sys.modules if n.startswith("h7_")]:
        del sys.modules[name]


def test_our_own_detectors_are_registered_like_anybody_elses() -> None:
    ours = registrations()["blades-oc"]
    assert ours.distribution == "blades-bench"
    assert detector_class("blades-oc").name == "blades-oc"


def test_listing_imports_no_plugin(add) -> None:
    add("h7-dist", {"h7": "h7_bomb:Bomb"}, h7_bomb="raise SystemError('imported')")
    assert registrations()["h7"].distribution == "h7-dist"
    assert "h7_bomb" not in sys.modules


def test_listing_imports_nothing_heavy() -> None:
    code = "import sys, harness.api.registry as r; r.registrations(); print([m for m in sys.modules if m in sys.argv])"
    heavy = ["torch", "pandas", "sklearn", "mlflow", "ray", "transformers", "matplotlib", "scipy"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_third_partys_detector_is_made_with_typed_options(add) -> None:
    add("h7-dist", {"h7": "h7_good:Good"}, h7_good=GOOD.format(cls="Good", name="h7"))
    assert make_detector("h7", {"size": 5}).options.model_dump() == {"size": 5, "mode": "a"}


def test_an_unknown_detector_gets_a_suggestion(add) -> None:
    add("h7-dist", {"h7-special": "h7_good:Good"})
    with pytest.raises(ConfigError, match=r"unknown detector 'h7-specail'[\s\S]*did you mean 'h7-special'"):
        make_detector("h7-specail")


def test_a_name_like_no_other_gets_the_list() -> None:
    assert "known: alpha, beta" in str(unknown("detector", "zzz", ["beta", "alpha"]))
    assert "known: none" in str(unknown("detector", "zzz", []))


def test_an_unknown_option_gets_a_suggestion_and_a_wrong_value_its_place(add) -> None:
    add("h7-dist", {"h7": "h7_good:Good"}, h7_good=GOOD.format(cls="Good", name="h7"))
    with pytest.raises(ConfigError, match=r"option of detector 'h7': 'sise'[\s\S]*did you mean 'size'"):
        make_detector("h7", {"sise": 5})
    with pytest.raises(ConfigError, match=r"detector 'h7', option size: .*'large'"):
        make_detector("h7", {"size": "large"})
    with pytest.raises(ConfigError, match=r"detector 'h7', option mode: .*'c'"):
        make_detector("h7", {"mode": "c"})


def test_two_packages_with_one_name_are_both_named(add) -> None:
    add("h7-one", {"h7": "h7_one:A"})
    add("h7-two", {"h7": "h7_two:B"})
    with pytest.raises(PluginError) as caught:
        registrations()
    text = str(caught.value)
    assert all(word in text for word in ("h7-one", "h7-two", "h7_one:A", "h7_two:B", "uninstall one"))


def test_a_package_that_takes_the_name_of_one_of_ours_is_named(add) -> None:
    add("h7-thief", {"blades-oc": "h7_thief:Mine"})
    with pytest.raises(PluginError, match="h7-thief"):
        registrations()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("import h7_not_there", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("x = 1", "AttributeError"),
        ("Plugin = 3", "not a subclass"),
        ("class Plugin: name = 'h7'", "not a subclass"),
        (GOOD.format(cls="Plugin", name="other"), "says its name is 'other'.*registers it as 'h7'"),
        (GOOD.format(cls="Plugin", name="h7").replace('facts = Facts("Good", "", "", "")', ""), "states no facts"),
    ],
)
def test_a_broken_plugin_is_named_with_its_package_and_does_not_hide_the_others(add, source: str, said: str) -> None:
    add("h7-broken", {"h7": "h7_broken:Plugin"}, h7_broken=source)
    with pytest.raises(PluginError, match=said) as caught:
        detector_class("h7")
    assert "h7-broken" in str(caught.value)
    assert "h7_broken:Plugin" in str(caught.value)
    assert detector_class("blades-oc").name == "blades-oc"


def test_an_entry_point_to_no_module_is_a_broken_plugin(add) -> None:
    add("h7-broken", {"h7": "h7_nowhere:Plugin"})
    with pytest.raises(PluginError, match="h7-broken"):
        detector_class("h7")


def test_a_plugin_that_leaves_methods_out_is_named(add) -> None:
    source = GOOD.format(cls="Plugin", name="h7").replace("    def head(self): ...\n", "")
    add("h7-broken", {"h7": "h7_broken:Plugin"}, h7_broken=source)
    with pytest.raises(PluginError, match=r"detector 'h7' cannot be made: TypeError.*head"):
        make_detector("h7")

"""Suite files: strict about everything, and every complaint says where and what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_support import suite_document

from harness.api.errors import ConfigError
from harness.api.yamlsafe import load_yaml
from harness.engine.suite import find_suite, is_sweep, load_suite, merge, shipped


@pytest.fixture
def write(tmp_path: Path):
    """A suite file of a document."""

    def written(document: dict[str, Any] | None = None, **changes: Any) -> Path:
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump({**suite_document(), **changes} if document is None else document))
        return path

    return written


def test_every_shipped_suite_loads_in_both_profiles_and_all_protocols() -> None:
    assert {"cross_generator", "cross_dataset", "separability", "sensitivity"} <= set(shipped())
    for name in (n for n, path in shipped().items() if not is_sweep(load_yaml(path))):
        for profile in ("demo", "full"):
            for protocol in (None, "paper", "released", "clean"):
                suite = load_suite(name, profile=profile, protocol=protocol)
                assert (suite.suite, suite.profile) == (name, profile)


def test_a_suite_is_found_by_name_by_shipped_path_and_by_file(write, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # not where ./suites is
    assert find_suite("cross_generator") == find_suite("suites/cross_generator.yaml")
    assert find_suite(str(write())) == write()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cross_generater", r"unknown suite 'cross_generater'[\s\S]*did you mean 'cross_generator'"),
        ("nowhere/none.yaml", r"suite file not found[\s\S]*nowhere/none.yaml[\s\S]*cross_generator"),
        ("none.yaml", "unknown suite 'none'"),
    ],
)
def test_an_unknown_suite_says_which_there_are(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_suite(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"detectros": {}}, r"unknown key 'detectros'[\s\S]*did you mean 'detectors'"),
        ({"test": {"per_genrator": 3}}, r"unknown key 'per_genrator'[\s\S]*test[\s\S]*did you mean 'per_generator'"),
        ({"tables": [{"kind": "auc", "titel": "x", "title": "y"}]}, r"'titel'[\s\S]*did you mean 'title'"),
        ({"bootstrap": {"m": 3}}, r"unknown key 'm'[\s\S]*bootstrap"),
        ({"version": "one"}, "version:"),
        ({"version": 0}, "version:"),
        ({"suite": "Has Spaces"}, "suite:"),
        ({"test": {"per_generator": 0}}, r"test\.per_generator"),
        ({"detectors": {}}, "detectors:"),
        ({"detectors": ["calibrated"]}, "detectors:"),
        ({"detectors": {"calibrated": 3}}, r"detectors\.calibrated"),
        ({"detectors": {"../../escape": {}}}, r"detectors\."),
        ({"detectors": {"a/b": {}}}, r"detectors\."),
        ({"detectors": {"": {}}}, r"detectors\."),
        ({"reference": "nobody"}, "reference 'nobody' is no row"),
        ({"protocol": "papr"}, "unknown protocol 'papr'"),
        ({"protocol": {"base": "paper", "treshold": "held_out"}}, r"'treshold'[\s\S]*did you mean 'threshold'"),
        ({"protocol": {"base": "paper", "threshold": "never"}}, "threshold"),
        ({"profiles": {"dmeo": {}}}, r"unknown profile 'dmeo'[\s\S]*did you mean 'demo'"),
        ({"profiles": ["demo"]}, "profiles must be a mapping"),
        ({"execution": {"workers": -1}}, r"execution\.workers"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(write, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_suite(write(**change))


def test_a_profile_is_laid_over_and_a_null_row_removes_one(write) -> None:
    over = {"test": {"per_generator": 7}, "detectors": {"grad-map": None, "native-size": {"batch_size": 2}, "new": {}}}
    path = write(profiles={"demo": over})
    full, demo = load_suite(path), load_suite(path, profile="demo")
    assert (full.test.per_generator, demo.test.per_generator) == (100, 7)
    assert demo.test.seed == full.test.seed == 1
    assert "grad-map" in full.detectors
    assert "grad-map" not in demo.detectors
    assert demo.detectors["native-size"].batch_size == 2
    assert "new" in demo.detectors


PLAIN = st.integers(0, 5) | st.text(max_size=3)
NAMES = st.sampled_from("abc")
TREE = st.dictionaries(NAMES, st.recursive(PLAIN, lambda inner: st.dictionaries(NAMES, inner)))


@settings(deadline=None)
@given(TREE, TREE)
def test_laying_over_keeps_what_is_not_named_and_changes_neither_part(base, over) -> None:
    before = (repr(base), repr(over))
    merged = merge(base, over)
    assert set(merged) == set(base) | set(over)
    for key in set(base) - set(over):
        assert merged[key] == base[key]
    for key, value in over.items():
        if not (isinstance(value, dict) and isinstance(base.get(key), dict)):
            assert merged[key] == value
    assert merge(merged, over) == merged
    assert (repr(base), repr(over)) == before


def test_settings_reach_suite_keys_rows_and_options(write) -> None:
    words = ["test.per_generator=9", "calibrated.shrink=0.5", "detectors.calibrated.weights=random:3", "protocol=clean"]
    suite = load_suite(write(), settings=words)
    assert suite.test.per_generator == 9
    assert suite.detectors["calibrated"].options == {"shrink": 0.5}
    assert suite.detectors["calibrated"].weights == "random:3"
    assert suite.switches.threshold == "held_out"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("test.per_generator", "not of the form"),
        ("=3", "not of the form"),
        ("tset.per_generator=3", r"unknown key 'tset'[\s\S]*did you mean 'test'"),
        ("title.x=3", "'title' holds a value, not keys"),
        ("test.per_generator=[1", "cannot read the YAML"),
        ("test.per_generator=many", r"test\.per_generator"),
        ("calibratd.shrink=1", r"'calibratd'[\s\S]*did you mean 'calibrated'"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(write, word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_suite(write(), settings=[word])


def test_protocol_and_settings_win_over_profile_and_file_in_this_order(write) -> None:
    path = write(protocol="released", profiles={"demo": {"protocol": "clean"}})
    assert load_suite(path, profile="demo").protocol["base"] == "clean"
    assert load_suite(path, profile="demo", protocol="paper").protocol == {"base": "paper"}
    chosen = load_suite(path, protocol="paper", settings=["protocol.threshold=held_out"])
    assert chosen.switches.threshold == "held_out"


def test_only_the_named_rows_stay_and_a_reference_that_is_gone_is_dropped(write) -> None:
    path = write(reference="calibrated")
    assert list(load_suite(path, detectors=["grad-map", "calibrated"]).detectors) == ["calibrated", "grad-map"]
    assert load_suite(path, detectors=["calibrated"]).reference == "calibrated"
    assert load_suite(path, detectors=["grad-map"]).reference is None
    with pytest.raises(ConfigError, match=r"unknown detector row 'grad-mpa'[\s\S]*did you mean 'grad-map'"):
        load_suite(path, detectors=["grad-mpa"])


def test_a_resolved_suite_is_plain_data_that_loads_to_itself(write, tmp_path: Path) -> None:
    suite = load_suite(write(), settings=["calibrated.shrink=0.5"])
    document = suite.document()
    document.pop("profile")
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(document))
    assert load_suite(again) == suite

"""YAML from strangers is plain data or one clear error, never code, a surprise or a traceback."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.api.errors import ConfigError
from harness.api.yamlsafe import MAX_BYTES, load_yaml, parse_yaml

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), PLAIN, max_size=4))
def test_plain_data_comes_back_as_it_was(value) -> None:
    text = yaml.safe_dump(value)
    assert parse_yaml(text, "here") == value


@settings(deadline=None)
@given(st.text(alphabet="ab:-?[]{}&*!|>%@`'\"#,.\n \t0e", max_size=60))
@example("a: !!int ''")
@example("a: !!float ''")
@example("a: !!bool x")
@example("a: !!timestamp x")
@example("a: 2020-99-99")
@example("a: !!python/object/apply:os.system [id]")
@example("? [a]\n: b")
@example("? {a: b}\n: c")
@example("a: " + "1" * 5000)
@example("[" * 3000)
@example("a: !!binary '*'")
@example("!!set {a, b}")
@example("a: \x00")
@example("a: b\n---\nc: d")
@example("<<: 3")
def test_any_text_is_a_mapping_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_yaml(text, "here"), dict)


def test_a_key_that_stands_twice_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"'b' stands twice[\s\S]*line 4"):
        parse_yaml("a: 1\nn:\n  b: 1\n  b: 2\n", "here")


def test_an_alias_is_refused_before_it_can_grow() -> None:
    bomb = "a: &a [x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    )
    with pytest.raises(ConfigError, match=r"aliases are not accepted[\s\S]*line 2[\s\S]*write the value out"):
        parse_yaml(bomb, "here")


def test_a_tab_gets_the_advice_about_tabs() -> None:
    with pytest.raises(ConfigError, match=r"line 2[\s\S]*spaces, not tabs"):
        parse_yaml("a:\n\tb: 1\n", "here")


@pytest.mark.parametrize(("text", "kind"), [("[1, 2]", "list"), ("word", "str"), ("", "NoneType"), ("3", "int")])
def test_what_is_no_mapping_is_refused_by_its_kind(text: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"holds a {kind}, not a mapping"):
        parse_yaml(text, "here")


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("a: 1\n#" + "x" * MAX_BYTES)
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load_yaml(path)


def test_a_file_that_is_no_utf8_says_which_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: caf\xe9")
    with pytest.raises(ConfigError, match=r"not UTF-8[\s\S]*byte 6"):
        load_yaml(path)


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert load_yaml(path) == {"a": 1}


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the file[\s\S]*none\.yaml"):
        load_yaml(tmp_path / "none.yaml")

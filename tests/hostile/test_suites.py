"""Suite files and command lines that cannot be meant: exit code 2 and one message; nothing else can come of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plugin_support import suite_document

from harness.api.errors import HarnessError
from harness.engine.data import data_spec
from harness.engine.rows import prepare_rows
from harness.engine.suite import find_suite, load_suite

TOP = "suite: plugs\nversion: 1\ntitle: T\ndata: {photographs: [celeba-face], generators: all}\n"
ROW = "detectors: {calibrated: {}}\n"
LAUGHS = "a: &a [x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS + TOP + ROW, "aliases are not accepted"),
        (TOP + ROW + "reference: " + "[" * 5000 + "]" * 5000 + "\n", "cannot read the YAML"),
        (TOP + ROW + "reference: !!python/object/apply:os.system [id]\n", "cannot read the YAML"),
        (TOP + "\tdetectors: {}\n", "spaces, not tabs"),
        (TOP + ROW + "title: again\n", "'title' stands twice"),
        (TOP.replace("version: 1", "version: .inf") + ROW, "version"),
        (TOP.replace("suite: plugs", "suite: ../../plugs") + ROW, "suite"),
        (TOP + "detectors: {../../etc: {}}\n", "detectors"),
        (TOP + "detectors: {calibrated: 3}\n", "detectors.calibrated"),
        (TOP + "detectors: [calibrated]\n", "detectors"),
        (TOP + "detectors: {calibrated: {batch_size: 0}}\n", "batch_size"),
        (TOP + "detectors: {calibrated: {shrink: .nan}}\n", "shrink"),
        (TOP + "detectors: {3: {detector: calibrated}}\n", "detectors"),
        (TOP + "detectors: {trained-cnn: {weights: [a]}}\n", "weights"),
        (TOP + "detectors: {trained-cnn: {weights: random:x}}\n", "whole number"),
        (TOP + "detectors: {trained-cnn: {weights: 'recipe:none'}}\n", "unknown recipe"),
        (TOP + ROW + "protocol: {base: paper, treshold: in_sample}\n", "did you mean 'threshold'"),
        (TOP + ROW + "protocol: [paper]\n", "protocol"),
        (TOP + ROW + "profiles: [demo]\n", "profiles must be a mapping"),
        (TOP + ROW + "profiles: {full: [1]}\n", "profiles"),
        (TOP.replace("[celeba-face]", "3") + ROW, "photographs"),
        (TOP.replace("[celeba-face]", "[{dataset: x, folders: [../..]}]") + ROW, "leaves the data root"),
        ("", "not a mapping"),
    ],
)  # fmt: skip
def test_a_suite_file_that_cannot_be_meant_is_one_message(shell, data: Path, tmp_path: Path, text: str, said) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    assert said in shell.run(path, data).refused()
    assert not (shell.folder / "runs").exists()


@pytest.mark.parametrize("words", [
    ("--set", "detectors=3"), ("--set", "detectors=[]"), ("--set", "data=3"), ("--set", "data.photographs.x=1"),
    ("--set", "calibrated=null"), ("--set", "=1"), ("--set", "a.=1"), ("--set", ".=1"), ("--set", "detectors.=1"),
    ("--set", "test.per_generator=1e400"), ("--set", "calibrated.side={"), ("--set", "calibrated.side=!!int x"),
    ("--set", "execution.threads=0"), ("--set", "protocol=3"), ("--set", "suite=../x"), ("--detectors", "no"),
])  # fmt: skip
def test_a_setting_that_cannot_be_meant_is_one_message(shell, suite, data: Path, words: tuple[str, ...]) -> None:
    shell.run(suite(), data, *words).refused()


@pytest.mark.parametrize("words", [
    ("run", "x" * 5000), ("score", "x" * 5000, "--detector", "calibrated"), ("store", "ls", "--store", "x" * 5000),
    ("score", ".", "--detector", "trained-cnn", "--weights", "x" * 5000), ("report", "x" * 5000),
    ("fit", "--detector", "calibrated", "--data-root", "x" * 5000, "--out", "y"), ("suites", "show", "x" * 5000),
])  # fmt: skip
def test_a_name_longer_than_the_file_system_allows_is_one_message(shell, words: tuple[str, ...]) -> None:
    assert len(shell(*words).refused()) < 7000


@pytest.mark.parametrize("kind", ["folder", "bytes", "UTF-16", "large", "nul"])
def test_a_suite_that_is_no_text_file_is_one_message(shell, data: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "suite.yaml"
    contents = {
        "bytes": b"\xff\xfe\xfd\x00" * 9, "UTF-16": (TOP + ROW).encode("utf-16"), "large": b"#" * (2 << 20),
        "nul": (TOP + ROW).encode() + b"\0",
    }  # fmt: skip
    path.mkdir() if kind == "folder" else path.write_bytes(contents[kind])
    shell.run(path, data).refused()


# fuzz ----------------------------------------------------------------------------------------------------------------

GOOD = yaml.safe_dump(suite_document(("calibrated", "grad-map")), sort_keys=False)
SHIPPED = find_suite("separability").read_text(encoding="utf-8")
PIECES = st.sampled_from(
    ["{", "[", "*a", "&a ", "\t", ": ", "- ", "null", "~", "-1", "0", ".nan", ".inf", "1e999", "!!set", "!!binary",
     "<<: ", "? ", "'", '"', "|", "---\n", "...\n", "true", "2020-01-01", "0x10", "1_000", "../..", "\x85", "\u2028",
     "é", "{}", "[]"]
)  # fmt: skip
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 30), PIECES | st.text(max_size=4)), min_size=1, max_size=5)


def edited(text: str, edits: list[tuple[float, int, str]]) -> str:
    """The text with pieces put over parts of it."""
    for place, length, piece in edits:
        at = int(place * len(text))
        text = text[:at] + piece + text[at + length :]
    return text


def understand(path: Path) -> None:
    """What a run does with a suite before it looks at data."""
    for profile in ("full", "demo"):
        suite = load_suite(path, profile=profile)
        data_spec(suite)
        prepare_rows(suite, path.parent / "pretrained")


@pytest.mark.usefixtures("plugins")
@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.sampled_from([GOOD, SHIPPED]), EDITS)
@example("a: 1\n", [])
def test_a_damaged_suite_is_understood_or_refused(tmp_path_factory, text: str, edits) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "suite.yaml"
    path.write_text(edited(text, edits), encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(HarnessError):
        understand(path)


SCALARS = st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(0, 3), inner, max_size=3)
    ),
    max_leaves=5,
)  # fmt: skip
DOCUMENT = suite_document(("calibrated",), protocol={"base": "paper"}, profiles={"demo": {"test": {"seed": 2}}})
KEYS = [(key,) for key in DOCUMENT] + [
    (key, inner) for key, value in DOCUMENT.items() if isinstance(value, dict) for inner in value
]


@pytest.mark.usefixtures("plugins")
@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(KEYS), VALUES)
def test_any_value_under_any_key_is_understood_or_refused(tmp_path_factory, key: tuple[str, ...], value) -> None:
    document = yaml.safe_load(yaml.safe_dump(DOCUMENT))
    (document if len(key) == 1 else document[key[0]])[key[-1]] = value
    path = tmp_path_factory.mktemp("fuzz") / "suite.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    with contextlib.suppress(HarnessError):
        understand(path)

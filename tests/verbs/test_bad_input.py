"""Bad input through the real command line: exit code 2, one message with the way out, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugin_support import Cli, suite_document, write_package, write_suite

TOP = "suite: plugs\nversion: 1\ntitle: Plugs\ndata: {photographs: [celeba-face], generators: all}\n"
ROW = "detectors: {calibrated: {}}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TOP + "detectros: {calibrated: {}}\n", "did you mean 'detectors'"),
        (TOP + "detectors: {calibrate: {}}\n", "did you mean 'calibrated'"),
        (TOP + "detectors: {calibrated: {shrnk: 1}}\n", "did you mean 'shrink'"),
        (TOP + "detectors: {calibrated: {shrink: 7}}\n", "shrink"),
        (TOP + "detectors: {calibrated: {weights: random}}\nnew:\n\tkey: 1\n", "spaces, not tabs"),
        (TOP + ROW + ROW, "'detectors' stands twice"),
        (TOP + "detectors: &a {calibrated: {}}\nreference: *a\n", "aliases are not accepted"),
        ("[calibrated]\n", "holds a list, not a mapping"),
        (TOP + ROW + "#" + "x" * (1 << 20), "larger than 1 MiB"),
        (TOP + ROW + "protocol: papr\n", "papr"),
        (TOP + ROW + "tables: [{kind: auc, title: T, published: separabilty}]\n", "did you mean 'separability'"),
        (TOP.replace("celeba-face", "celeba-fcae") + ROW, "celeba-face"),
        (TOP.replace("generators:", "generator:") + ROW, "did you mean 'generators'"),
    ],
)
def test_a_suite_that_cannot_be_meant(cli: Cli, data: Path, tmp_path: Path, refused, text: str, said: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    assert said in refused(cli.run(path, data))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "calibratd.shrink=1"), "did you mean 'calibrated'"),
        (("--set", "nonsense"), "not of the form"),
        (("--detectors", "calibratd"), "did you mean 'calibrated'"),
        (("--protocol", "clan"), "did you mean 'clean'"),
        (("--profile", "fll"), "did you mean 'full'"),
        (("--device", "cuda:99"), "--device cpu"),
        (("--batch-size", "0"), "at least 1"),
        (("--engine", "spark"), "unknown engine"),
        (("--match-format", "large"), "SIZE:QUALITY"),
        (("--on-bad-image", "ignore"), "stop or skip"),
        (("--data-root", "/nowhere/at/all"), "data root is not there"),
        (("--set", "calibrated.weights=x.pth"), "no weights slot"),
        (("--set", "data.generators=[midjourney]"), "midjourney"),
    ],
)
def test_a_command_line_that_cannot_be_meant(cli, data, tmp_path, refused, words: tuple[str, ...], said: str) -> None:
    assert said in refused(cli.run(write_suite(tmp_path, ("calibrated",)), data, *words))


def test_an_unknown_suite_and_a_foreign_store(cli: Cli, data: Path, tmp_path: Path, refused) -> None:
    assert "did you mean 'cross_generator'" in refused(cli("run", "cross_generater"))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("")
    suite = write_suite(tmp_path, ("calibrated",))
    assert "is no store" in refused(cli.run(suite, data, "--store", taken))
    assert "no store here" in refused(cli("store", "ls"))


def test_a_run_from_python_refuses_unknown_options_with_a_suggestion() -> None:
    import harness
    from harness.api.errors import ConfigError

    with pytest.raises(ConfigError, match="did you mean 'data_root'"):
        harness.run("cross_generator", data_rot="x")


# plugins -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def beside(installed: Path, cli: Cli, tmp_path: Path):
    """The command line with another package beside the plugins."""

    def added(distribution: str, points: dict[str, str], **modules: str) -> Cli:
        return cli.with_(packages=(installed, write_package(tmp_path / distribution, distribution, points, modules)))

    return added


def test_two_packages_with_one_name_are_both_named(beside, refused) -> None:
    text = refused(beside("h7-thief", {"calibrated": "h7_thief:Mine"})("detectors", "list"))
    assert all(word in text for word in ("bench-plugins", "h7-thief", "registered twice", "uninstall one"))


def test_a_broken_plugin_is_listed_as_broken_and_stops_the_suites_that_name_it(beside, data, tmp_path, refused) -> None:
    cli = beside("h7-broken", {"broken": "h7_broken:Plugin"}, h7_broken="import no_such_library")
    listing = cli("detectors", "list")
    assert listing.code == 0
    assert "BROKEN" in listing.out
    assert "no_such_library" in listing.out
    text = refused(cli.run(write_suite(tmp_path, ("broken", "calibrated")), data))
    assert all(word in text for word in ("h7-broken", "no_such_library", "repair or uninstall"))
    assert cli("detectors", "show", "calibrated").code == 0


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("Plugin = 3", "not a subclass"),
        ("from bench_plugins.calibrated import Calibrated as Plugin", "says its name is 'calibrated'"),
        (
            "from bench_plugins.calibrated import Calibrated\nclass Plugin(Calibrated):\n    name = 'odd'\n"
            "    def head(self): raise RuntimeError('no head today')",
            "no head today",
        ),
        (
            "from bench_plugins.calibrated import Calibrated\nclass Plugin(Calibrated):\n    name = 'odd'\n"
            "    def head(self): return 3",
            "3 is no Head",
        ),
        (
            "from dataclasses import dataclass\nfrom bench_plugins.calibrated import Calibrated\n"
            "from bench_plugins.pixels import PixelStatistics\n@dataclass(frozen=True)\n"
            "class Wide(PixelStatistics):\n    how: object = print\n"
            "class Plugin(Calibrated):\n    name = 'odd'\n    def extractor(self): return Wide()",
            "h7_odd.Wide has no stable form",
        ),
    ],
)  # fmt: skip
def test_a_plugin_that_breaks_the_contract_is_named(beside, data, tmp_path, refused, source: str, said: str) -> None:
    cli = beside("h7-odd", {"odd": "h7_odd:Plugin"}, h7_odd=source)
    text = refused(cli.run(write_suite(tmp_path, ("odd",)), data, "--dry-run"))
    assert said in text
    assert "odd" in text


def test_the_document_of_these_tests_is_a_good_suite(cli: Cli, data: Path, tmp_path: Path) -> None:
    assert suite_document(("calibrated",))["detectors"] == {"calibrated": {}}
    assert cli.run(write_suite(tmp_path, ("calibrated",)), data, "--dry-run").code == 0

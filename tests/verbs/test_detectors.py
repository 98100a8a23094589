"""`harness detectors`, and a third party's package from its source to a table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from plugin_support import Cli, install, scores_file, write_package, write_suite

PLUGINS = {
    "calibrated", "pseudo-head", "grad-map", "native-size", "slow-native", "abstainer", "trained-cnn", "perilous",
}  # fmt: skip


def test_a_package_with_one_detector_is_built_installed_listed_checked_and_run(data: Path, tmp_path: Path) -> None:
    cli = Cli(tmp_path / "work", (install("lone_detector", tmp_path / "lone"),))
    assert not list((tmp_path / "lone").glob("harness*")), "nothing but the package itself is installed"
    listed = {row["detector"]: row for row in cli("detectors", "list", "--json").document}
    assert listed["brightness"]["package"] == "lone-detector"
    checked = cli("detectors", "check", "brightness")
    assert checked.code == 0, checked.text
    done = cli.run(write_suite(tmp_path, ("brightness",)), data)
    assert done.code == 0, done.text
    table = pd.read_parquet(scores_file(done, cli))
    assert set(table["detector"]) == {"brightness"}
    assert table["score"].between(0, 1).all()
    assert "Brightness" in next((cli.folder / done.document["run_dir"] / "tables").glob("*.md")).read_text() or (
        "brightness" in next((cli.folder / done.document["run_dir"] / "tables").glob("*.md")).read_text()
    )


def test_all_plugins_are_listed_with_their_package_beside_ours(cli: Cli) -> None:
    listed = {row["detector"]: row["package"] for row in cli("detectors", "list", "--json").document}
    assert {name for name, package in listed.items() if package == "bench-plugins"} == PLUGINS
    assert listed["blades-oc"] == "blades-bench"


def test_show_says_the_chain_the_options_and_what_is_missing(cli: Cli) -> None:
    shown = cli("detectors", "show", "trained-cnn")
    assert shown.code == 0, shown.text
    for word in (
        "Tiny network",
        "TinyCnn",
        "fixed 0.0",
        "pretrained/tiny/cnn.safetensors",
        "MISSING",
        "shelf of nobody",
    ):
        assert word in shown.out, word
    assert "generators" in cli("detectors", "show", "pseudo-head").out


def test_show_counts_parameters_and_flops_for_people_and_machines(cli: Cli) -> None:
    text = cli("detectors", "show", "trained-cnn").out
    flops = 2 * (15**2 * 8 * 27 + 7**2 * 8 * 72 + 8)
    assert "parameters not stated" in text
    assert f"FLOPs      {flops:,}" in text
    assert "multiply-adds counted as two" in text
    size = cli("detectors", "show", "trained-cnn", "--json").document["size"]
    assert (size["parameters"], size["flops"], size["flops_not_counted"]) == (None, flops, None)
    assert size["stages"] == [{"stage": "TinyCnn", "parameters": None, "flops": flops}]
    size = cli("detectors", "show", "lgrad", "--no-flops", "--json").document["size"]
    assert size["parameters"] == sum(stage["parameters"] for stage in size["stages"]) == 46_562_434
    assert (size["flops"], size["flops_not_counted"]) == (None, "not asked for")
    assert "abstains on a made image" in cli("detectors", "show", "hu21").out


def test_an_unknown_detector_gets_a_suggestion(cli: Cli, refused) -> None:
    assert "did you mean 'grad-map'" in refused(cli("detectors", "show", "grad-mpa"))
    assert "did you mean 'grad-map'" in refused(cli("detectors", "check", "grad-mpa"))


def test_check_passes_every_plugin_and_exits_1_for_one_that_breaks_the_contract(cli, installed, tmp_path) -> None:
    done = cli("detectors", "check", *sorted(PLUGINS))
    assert done.code == 0, done.text
    assert done.out.count("ok  ") == len(PLUGINS)
    source = (
        "from dataclasses import dataclass\nfrom bench_plugins.calibrated import Calibrated\n"
        "from bench_plugins.pixels import PixelStatistics\nfrom harness.api.contract import Facts\n"
        "@dataclass(frozen=True)\nclass Mixing(PixelStatistics):\n    def load(self, weights, device):\n"
        "        good = super().load(weights, device)\n        return lambda x: good(x) - good(x).mean(dim=0)\n"
        "class Mixer(Calibrated):\n    name = 'mixer'\n    facts = Facts('Mixer', '', '', '')\n"
        "    def extractor(self): return Mixing()\n"
    )
    faulty = write_package(tmp_path / "mixer", "h7-mixer", {"mixer": "h7_mixer:Mixer"}, {"h7_mixer": source})
    found = cli.with_(packages=(installed, faulty))("detectors", "check", "mixer", "calibrated")
    assert found.code == 1, found.text
    assert "FAIL mixer" in found.out
    assert "independent of order" in found.out
    assert "ok   calibrated" in found.out


@pytest.mark.parametrize("words", [("--help",), ("detectors", "list"), ("suites", "list")])
def test_light_commands_import_nothing_heavy(cli: Cli, words: tuple[str, ...]) -> None:
    timed = cli.with_(PYTHONPROFILEIMPORTTIME="1")(*words)
    assert timed.code == 0
    imported = {line.split("|")[-1].strip() for line in timed.err.splitlines() if line.startswith("import time:")}
    assert not imported & {"torch", "pandas", "sklearn", "mlflow", "ray", "transformers", "matplotlib", "scipy"}

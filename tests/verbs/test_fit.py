"""``fit``: equal to what a suite fits, plain folders, generated images, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from plugin_support import Cli, write_suite

ROWS = {
    "calibrated": {}, "native-size": {}, "grad-map": {}, "abstainer": {}, "pseudo-head": {"generators": ["ldm"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, installed: Path, data: Path) -> tuple[Cli, Path]:
    """A run under default splits and seed, and one thread."""
    folder = tmp_path_factory.mktemp("ran")
    cli = Cli(folder / "work", (installed,))
    spec = {"photographs": ["celeba-face"], "generators": ["ldm", "ddim"]}
    done = cli.run(write_suite(folder, ROWS, data=spec, test={"per_generator": 100, "seed": 2024}), data)
    assert done.code == 0, done.text
    return cli, cli.folder / done.document["run_dir"]


def same_head(one: Path, two: Path) -> bool:
    return all(
        (one / "head" / n).read_bytes() == (two / "head" / n).read_bytes() for n in ("head.safetensors", "head.json")
    )


def test_on_a_data_root_it_fits_what_a_run_fits_to_the_bit(ran: tuple[Cli, Path], data: Path) -> None:
    cli, run_dir = ran
    for row, options in ROWS.items():
        extra = ["--set", "generators=[ldm]"] if options else []
        done = cli("fit", "--detector", row, "--data-root", data, "--threads", 1, "--out", f"f/{row}", *extra, "--json")
        assert done.code == 0, done.text
        theirs = run_dir / "fitted" / row
        assert same_head(cli.folder / "f" / row, theirs), row
        said = json.loads((cli.folder / "f" / row / "fitted.json").read_text())
        stored = json.loads((theirs / "fitted.json").read_text())
        for key in ("threshold", "options", "protocol", "micro_batches", "calibration_images"):
            assert said[key] == stored[key], (row, key)
        assert done.document["threshold"] == said["threshold"]


def test_a_fitted_folder_scores_where_nothing_else_is(ran: tuple[Cli, Path], data: Path, installed: Path) -> None:
    cli, _ = ran
    assert cli("fit", "--detector", "native-size", "--data-root", data, "--out", "portable").code == 0
    away = Cli(cli.folder / "away", (installed,))
    shutil.copytree(cli.folder / "portable", away.folder / "fitted")
    words = ("score", data / "ldm", "--faces", "off", "--json", "--fitted")
    assert away(*words, "fitted").document["images"] == cli(*words, "portable").document["images"]


def test_a_plain_folder_is_fitted_on_whole_or_less_what_calibrates(cli: Cli, data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data / "celeba-face/imgs", tmp_path / "mine"))
    (folder / "zz.txt").write_text("no image")
    done = cli("fit", "--detector", "grad-map", "--data-root", folder, "--out", "a", "--json")
    assert done.code == 0, done.text
    assert done.document["fit_images"] == done.document["calibration_images"] == 36
    done = cli("fit", "--detector", "calibrated", "--data-root", folder, "--out", "b", "--json")
    assert done.code == 0, done.text
    assert done.document["fit_images"] + done.document["calibration_images"] == 36
    assert done.document["calibration_images"] > 0
    assert done.document["fit_set"] != done.document["calibration_set"]


def test_generated_images_are_asked_for_and_taken(cli: Cli, data: Path) -> None:
    plain = data / "celeba-face/imgs"
    words = ("fit", "--detector", "pseudo-head", "--set", "generators=[ldm]", "--data-root", plain, "--out", "f")
    refused = cli(*words)
    assert refused.code == 2
    assert "--generated DIR" in refused.err
    done = cli(*words, "--generated", data / "ldm", "--json")
    assert done.code == 0, done.text
    assert done.document["fit_images"] == 36 + 12
    alone = cli("fit", "--detector", "grad-map", "--data-root", plain, "--generated", data / "ldm", "--out", "g")
    assert alone.code == 2
    assert "photographs alone" in alone.err


def test_what_cannot_be_fitted_says_why(cli: Cli, data: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(data / "celeba-face/imgs", tmp_path / "mine"))
    (plain / "00000.jpg").write_text("text")
    cases = [
        (("--detector", "grad-map", "--data-root", tmp_path / "none"), "data root is not there"),
        (("--data-root", plain), "no detector is named"),
        (("--detector", "trained-cnn", "--data-root", plain), "the shelf of nobody"),
        (("--detector", "grad-map", "--data-root", plain, "--set", "cels=3"), "did you mean 'cells'"),
        (("--detector", "grad-map", "--data-root", plain, "--set", "cells"), "OPTION=VALUE"),
        (("--detector", "grad-map", "--data-root", plain), "00000.jpg"),
    ]
    for words, said in cases:
        done = cli("fit", *words, "--out", "f")
        assert (done.code, done.err.count("error:")) == (2, 1), (words, done.text)
        assert said in done.err, (words, done.err)
        assert "Traceback" not in done.text
    done = cli("fit", "--detector", "grad-map", "--data-root", plain, "--on-bad-image", "skip", "--out", "f", "--json")
    assert done.code == 3
    again = cli("fit", "--detector", "grad-map", "--data-root", plain, "--out", "f")
    assert again.code == 2
    assert "already" in again.err


def test_the_next_line_names_weights_that_lie_outside_the_weights_root(tmp_path: Path) -> None:
    from harness.verbs.choose import Chosen
    from harness.verbs.fit import _next

    out, root, inside = Path("f"), tmp_path / "root", str(tmp_path / "root/zou25/model.pth")
    assert _next(out, Chosen(detector="a", weights=("random",))) == "harness score IMAGES --fitted f"
    assert _next(out, Chosen(detector="a", weights=("here/w.pth",))).endswith("--fitted f --weights here/w.pth")
    assert _next(out, Chosen(detector="a", weights=(inside,), weights_root=root)).endswith(f"--weights-root {root}")

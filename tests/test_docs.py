"""What README and docs say is so: commands parse or run, links lead somewhere, stated switches are the program's."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _commands(kind: str) -> list[str]:
    """Shell lines of the fenced blocks and code spans that begin with a word, placeholders included."""
    found = []
    for path in DOCS:
        text = path.read_text(encoding="utf-8")
        fenced = [line.strip() for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
        prose = re.sub(r"```.*?```", "", text, flags=re.S)
        spans = [" ".join(s.split()) for s in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", prose)]
        found += [c for c in (*fenced, *spans) if c.startswith(f"{kind} ")]
    return sorted(set(found))


def _parse(words: list[str]) -> None:
    """Follow the words through the command tree and parse the options, running nothing."""
    from harness.cli import app

    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if words in ([], ["--help"]):
            return
        assert words[0] in command.commands, f"no verb {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, [w for w in words if w != "--help"])


@pytest.mark.parametrize("line", _commands("harness"))
def test_every_harness_line_is_a_command_with_options_it_has(line: str) -> None:
    _parse(shlex.split(line)[1:])


def test_the_parser_of_these_tests_refuses_what_is_not_there() -> None:
    with pytest.raises(Exception, match="No such option"):
        _parse(["run", "cross_generator", "--no-such-option"])
    with pytest.raises(AssertionError):
        _parse(["fly"])


RUNNABLE = (
    "harness suites list",
    "harness suites show cross_generator",
    "harness detectors list",
    "harness detectors show blades-oc",
    "harness weights list",
    "harness weights check",
)


@pytest.mark.parametrize("line", RUNNABLE)
def test_lines_that_need_no_data_run(line: str) -> None:
    command = [sys.executable, "-m", "harness", *shlex.split(line)[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_copied_suites_are_suites(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "harness",
        "suites",
        "copy",
        "cross_generator",
        "--out",
        str(tmp_path / "my_suite.yaml"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    from harness.engine.suite import load_suite

    assert load_suite(tmp_path / "my_suite.yaml").suite == "cross_generator"


@pytest.mark.parametrize("line", _commands("make"))
def test_every_make_line_names_a_target(line: str, tmp_path: Path) -> None:
    words = [w for w in shlex.split(line)[1:] if w != "..." and "=" not in w]
    command = ["make", "--dry-run", f"PYTHON={sys.executable}", f"VENV={tmp_path}", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_within_the_repository_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.slow
def test_the_readmes_lines_for_a_users_own_images_run(tmp_path: Path) -> None:
    """In one folder, in order; zou25's file is made from a seed, and the run's folder by a fit of a small encoder."""
    _own_images(tmp_path)
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## A verdict on your own images\n")[1]
    [block] = re.findall(r"```bash\n(.*?)```", section.split("\n## ")[0], re.S)
    lines = block.splitlines()
    assert [line.split()[1] for line in lines] == ["score", "fit", "score", "embed"]
    small = {"fit": " --batch-size 4", "embed": " --batch-size 4"}  # batches are padded: 32 would take a minute more
    answers = [_run(line + small.get(line.split()[1], ""), tmp_path) for line in lines]
    assert "blades-oc: generated where score >" in answers[0]
    assert {row["verdict"] for row in json.loads(answers[2])["images"]} <= {"photographic", "generated", "abstain"}
    assert (tmp_path / "features.npz").is_file()


def _own_images(folder: Path) -> None:
    import numpy as np
    import torch
    from PIL import Image

    from detectors.networks.resnet import ResNet
    from detectors.zou25 import HEADS

    random = np.random.default_rng(1)
    for name in [f"photographs/{i}.png" for i in range(24)] + ["portraits/a.png", "portraits/b.png", "holiday.jpg"]:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / name)
    state = ResNet.seeded(768, 0).to_torchvision("model.visual.")
    state |= {f"{h}.weight": torch.zeros(1, 768) for h in HEADS} | {f"{h}.bias": torch.zeros(1) for h in HEADS}
    (folder / "pretrained/zou25").mkdir(parents=True)
    torch.save({"model": state}, folder / "pretrained/zou25/our_model.pth")
    fitted = "runs/cross_generator-demo/RUN_ID/fitted/blades-oc"
    small = "--weights random --set encoder=tiny --set image_size=64 --set components=2"
    _run(f"harness fit --detector blades-oc {small} --data-root photographs --out {fitted}", folder)


def _run(line: str, folder: Path) -> str:
    command = [sys.executable, "-m", "harness", *shlex.split(line)[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_every_example_in_help_is_a_command() -> None:
    from harness.cli import app

    root: Any = typer.main.get_command(app)
    examples = [
        line.split("Example:", 1)[1].strip()
        for command in root.commands.values() for line in (command.help or "").splitlines() if "Example:" in line
    ]  # fmt: skip
    assert examples
    for example in examples:
        _parse(shlex.split(example)[1:])


def test_the_readme_shows_a_detector_that_keeps_the_contract() -> None:
    import numpy as np

    from harness.api.contract import Chain

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.S)
    space: dict[str, object] = {"__name__": "readme_example"}
    sys.modules["readme_example"] = type(sys)("readme_example")
    try:
        exec(compile(code, "README.md", "exec"), space)
    finally:
        del sys.modules["readme_example"]
    chain = Chain.of(space["Brightness"]())  # type: ignore[operator]
    extract = chain.extractor.load({}, "cpu")
    dark, bright = (np.full((9, 7, 3), value, np.uint8) for value in (10, 200))
    features = np.concatenate([extract(chain.preprocess(p)[None]).numpy() for p in (dark, bright)])
    scores = chain.head.fit(None, {}).score(features)
    assert scores[1] > scores[0]


def _table(path: Path, heading: str) -> list[list[str]]:
    section = path.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


def test_fidelity_lists_every_switch_with_the_programs_values() -> None:
    from harness.api.protocol import Protocol

    rows = {row[0]: row for row in _table(ROOT / "docs" / "fidelity.md", "Switches")}
    assert set(rows) == set(Protocol.model_fields)
    for column, name in ((1, "paper"), (2, "released"), (3, "clean")):
        for switch, value in Protocol.named(name).model_dump().items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            assert rows[switch][column] == text, f"{name}: {switch}"


def test_fidelity_says_truly_which_switches_are_in_effect() -> None:
    sources = [p for top in ("harness", "detectors") for p in (ROOT / top).rglob("*.py") if p.name != "protocol.py"]
    text = "\n".join(p.read_text(encoding="utf-8") for p in sources)
    for row in _table(ROOT / "docs" / "fidelity.md", "Switches"):
        used = re.search(rf"protocol\.{row[0]}\b", text) is not None
        assert row[4].startswith("yes") == used, row[0]


def test_the_sixteen_detectors_stand_in_the_architecture() -> None:
    rows = _table(ROOT / "docs" / "architecture.md", "How the 16 fit")
    assert len(rows) == 16
    assert all(all(row) for row in rows)


def _built_in() -> list[str]:
    from harness.api.registry import registrations

    return [name for name, entry in registrations().items() if entry.target.startswith("detectors.")]


def test_readme_and_architecture_name_the_detectors_that_are_here() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    built = _built_in()
    section = text.split("**Here: ")[1].split("\n- **")[0]
    assert sorted(re.findall(r"`([a-z0-9-]+)`", section)) == sorted(built)
    counts = {2: "two", 9: "nine", 10: "ten", 12: "twelve", 16: "sixteen"}
    assert section.startswith(f"{counts[len(built)]} of the sixteen detectors")
    rows = _table(ROOT / "docs" / "architecture.md", "How the 16 fit")
    here = [row[0].removesuffix(" (*here*)").lower() for row in rows if row[0].endswith("(*here*)")]
    assert sorted(here) == sorted(built)


def _first_column(text: str, before: str) -> list[str]:
    """First cells of the table after the line that begins "Options of `before`"."""
    lines = text.split(f"\nOptions of `{before}`")[1].split("\n\n")[1].splitlines()
    return [line.split("|")[1] for line in lines[2:]]


def test_each_detector_has_a_paragraph_with_its_files_and_options() -> None:
    from harness.api.registry import detector_class

    text = (ROOT / "docs" / "detectors.md").read_text(encoding="utf-8")
    shared = {"components", "seed", "fpr"}
    table = {row.strip(" `") for cell in _first_column(text, "head: fit") for row in cell.split(",")}
    for name in _built_in():
        assert f"\n**{name}.** " in text, name
        paragraph = text.split(f"\n**{name}.** ")[1].split("\n\n")[0]
        cls = detector_class(name)
        for file in cls.weights_files.values():
            assert f"`{file.name}`" in paragraph, file.name
        as_oc = {"encoder", "image_size"} if name == "blades-bc" else set()
        for option in set(cls.Options.model_fields) - shared - as_oc:
            in_table = name == "blades-bc" and option in table
            assert in_table or re.search(rf"`{option}\b", paragraph), f"{name}: {option}"
        assert "Never run: " in paragraph, name

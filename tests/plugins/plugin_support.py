"""What tests of the engine and of the command line share: installed plugin packages, a small data root, suites, and
the command line as a process. Imported by the conftest files beside those tests."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = ("bench_plugins", "lone_detector")
ALL_ROWS = ("calibrated", "pseudo-head", "grad-map", "native-size", "abstainer")
"""Plugins that need no weights."""
ENGINE_ROWS: dict[str, dict[str, Any]] = {name: {} for name in ALL_ROWS} | {"pseudo-head": {"generators": ["ldm"]}}
"""Those as rows of a suite, with a head that learns from one generator."""


@cache
def install(package: str, target: Path) -> Path:
    """Build and install one of the packages here into a folder with pip, offline; the folder."""
    source = target.with_name(f"{target.name}-source")
    shutil.copytree(HERE / package, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--target", str(target), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def write_package(folder: Path, distribution: str, points: Mapping[str, str], modules: Mapping[str, str]) -> Path:
    """An installed package as its files: modules, and metadata with entry points of detectors; the folder."""
    for name, text in modules.items():
        path = folder / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {target}\n" for name, target in points.items())
    (info / "entry_points.txt").write_text(f"[harness.detectors]\n{lines}")
    return folder


def _photograph(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    coarse = Image.fromarray(rng.integers(40, 220, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return (smooth + rng.normal(0, 3, smooth.shape)).clip(0, 255).astype(np.uint8)


def _generated(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    half = _photograph(rng, (width + 1) // 2, (height + 1) // 2)
    return half.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]


def _save(pixels: np.ndarray, stem: Path, as_jpeg: bool) -> str:
    path = stem.with_suffix(".jpg" if as_jpeg else ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=90) if as_jpeg else Image.fromarray(pixels).save(path)
    return path.name


def make_data(root: Path, train: int = 24, test: int = 12, made: int = 12) -> Path:
    """A data root in the released layout: photographs with both lists, two generators, sizes from 36 to 96 pixels,
    PNG and JPEG in both classes; two photographs are too small and one generated image too dark to judge."""
    rng = np.random.default_rng(5)

    def size(index: int) -> tuple[int, int]:
        return (36, 44) if index == 3 else (48 + 4 * (index % 13), 48 + 4 * (index * 7 % 13))

    folder = root / "celeba-face"
    names = [_save(_photograph(rng, *size(i)), folder / "imgs" / f"{i:05d}", i % 3 > 0) for i in range(train + test)]
    (folder / "train.txt").write_text("".join(f"imgs/{name}\n" for name in names[:train]))
    (folder / "test.txt").write_text("".join(f"imgs/{name}\n" for name in names[train:]))
    for generator in ("ldm", "ddim"):
        for i in range(made):
            pixels = _generated(rng, *size(i + 4))
            _save(pixels // 32 if (generator, i) == ("ddim", 2) else pixels, root / generator / f"{i:04d}", i % 3 > 0)
    return root


def suite_document(rows: Mapping[str, Any] | tuple[str, ...] = ALL_ROWS, **changes: Any) -> dict[str, Any]:
    """A suite over the data root of :func:`make_data`."""
    detectors = {name: {} for name in rows} if isinstance(rows, tuple) else dict(rows)
    return {
        "suite": "plugs", "version": 1, "title": "Plugins",
        "data": {"photographs": ["celeba-face"], "generators": ["ldm", "ddim"], "splits": {"select": 0.3}},
        "protocol": "paper", "test": {"per_generator": 100, "seed": 1}, "fit": {"dataset": "celeba-face"},
        "detectors": detectors, "tables": [{"kind": "accuracy", "title": "Accuracy"}],
        "bootstrap": {"n": 100, "comparisons": 100, "seed": 1}, "execution": {"workers": 2, "threads": 1}, **changes,
    }  # fmt: skip


def write_suite(folder: Path, rows: Mapping[str, Any] | tuple[str, ...] = ALL_ROWS, **changes: Any) -> Path:
    """The suite as a file."""
    path = folder / "plugs.yaml"
    path.write_text(yaml.safe_dump(suite_document(rows, **changes), sort_keys=False))
    return path


@dataclass(frozen=True)
class Done:
    """How a process ended."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """All that a person would have seen."""
        return self.out + self.err

    @property
    def document(self) -> Any:
        """Its JSON."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Cli:
    """``python -m harness`` in a folder of its own, where the named packages are installed."""

    folder: Path
    packages: tuple[Path, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV_"))}
        path = os.pathsep.join(str(p) for p in (*self.packages, ROOT))
        return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **self.env}

    def start(self, *words: object, limits: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        """A process that is not waited for."""
        self.folder.mkdir(parents=True, exist_ok=True)

        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background of a shell
            if limits is not None:
                limits()

        return subprocess.Popen(
            [sys.executable, "-m", "harness", *map(str, words)], cwd=self.folder, env=self._environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=prepare,
        )  # fmt: skip

    def __call__(self, *words: object, limits: Callable[[], None] | None = None) -> Done:
        """Run to the end."""
        process = self.start(*words, limits=limits)
        out, err = process.communicate(timeout=900)
        return Done(process.returncode, out, err)

    def run(self, suite: Path, data: Path, *words: object, limits: Callable[[], None] | None = None) -> Done:
        """``run`` with JSON, on the CPU, without MLflow; the store is ``.blades-store`` in the folder."""
        fixed = ("--data-root", data, "--device", "cpu", "--tracking-uri", "off", "--json")
        return self("run", suite, *fixed, *words, limits=limits)

    def with_(self, *, packages: tuple[Path, ...] | None = None, **env: str) -> Cli:
        """The same with other packages, or more environment."""
        return Cli(self.folder, self.packages if packages is None else packages, {**self.env, **env})


def scores_file(done: Done, cli: Cli) -> Path:
    """``scores.parquet`` of a run that ended well or with failed rows."""
    assert done.code in (0, 3), done.text
    return cli.folder / str(done.document["run_dir"]) / "scores.parquet"


def stop_when(process: subprocess.Popen[str], seen: Callable[[], bool], how: signal.Signals) -> Done:
    """Send a signal as soon as ``seen()`` holds; how the process ended."""
    deadline = time.monotonic() + 400
    while not seen():
        assert process.poll() is None, "".join(process.communicate())
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    out, err = process.communicate(timeout=400)
    return Done(process.returncode, out, err)


def segments(store: Path) -> Iterator[Path]:
    """Index files of every stored segment."""
    return store.glob("items/*/*.index")


@dataclass(frozen=True)
class Ran:
    """What the engine gave in this process: scores, images computed by kind and rows, failures, what was said, and the
    stages that began."""

    scores: Any
    computed: dict[str, int]
    failures: dict[str, dict[str, str]]
    plan: Any
    said: list[str]
    outcome: Any
    stages: list[str] = field(default_factory=list)

    def of(self, detector: str) -> dict[tuple[str, str], float]:
        """Score by image and generator."""
        rows = self.scores[self.scores["detector"] == detector]
        return {(s, g): v for s, g, v in zip(rows["sha256"], rows["generator"], rows["score"], strict=True)}


def engine_run(
    suite: Path, data: Path, folder: Path, *, limit: int | None = None, workers: int = 0, batch: int | None = None,
    threads: int = 1, edits: Any = None, plan_only: bool = False, weights_root: Path = Path("pretrained"),
) -> Ran:  # fmt: skip
    """Plan and execute a suite in this process, without tables or tracking; the store is ``folder / "store"``."""
    import pandas as pd

    from harness.data.edits import InputEdits
    from harness.engine.data import prepare_data
    from harness.engine.execute import Executor
    from harness.engine.images import Reader
    from harness.engine.plan import Settings, edits_key, make_plan
    from harness.engine.rows import prepare_rows
    from harness.engine.suite import load_suite
    from harness.results.store import Store

    said: list[str] = []
    stages: list[str] = []

    def listen(event: Any) -> None:
        if event.kind in ("warning", "note"):
            said.append(str(event.fields["text"]))
        if event.kind == "stage_start":
            stages.append(str(event.fields["stage"]))

    edits = edits or InputEdits()
    loaded = load_suite(suite)
    rows = prepare_rows(loaded, weights_root)
    store = Store(folder / "store", warn=said.append)
    seen, known = [g for row in rows for g in row.trains_on], [g for row in rows for g in row.trained_on]
    ready = prepare_data(
        loaded, data, store, seen=seen, known=known, limit=limit, allow_outside=False, on_bad_image="stop", workers=0,
        emit=listen,
    )  # fmt: skip
    settings = Settings("cpu", threads, batch, edits_key(edits))
    plan = make_plan(loaded, rows, ready.manifest, ready.root, ready.draws, ready.cell_rows, store, settings)
    if plan_only:
        return Ran(None, {}, {}, plan, said, None)
    reader = Reader(ready.root, list(ready.manifest["path"]), list(ready.manifest["sha256"]), edits)
    outcome = Executor(plan, store, reader, listen, workers).run(folder / "fitted")
    scores = pd.concat([row.frame() for row in outcome.scores], ignore_index=True) if outcome.scores else pd.DataFrame()
    return Ran(scores, computed_by_stage(plan, outcome.computed), outcome.failures, plan, said, outcome, stages)


def computed_by_stage(plan: Any, computed: Mapping[str, int]) -> dict[str, int]:
    """Images computed by "kind of rows", stages that computed nothing left out."""
    names = {key: f"{stage.kind} of {'+'.join(stage.rows)}" for key, stage in plan.stages.items()}
    return {names[key]: count for key, count in computed.items() if count}


def keys_of(plan: Any) -> dict[str, dict[str, str]]:
    """Keys by row: maps, features, head, upstream, threshold."""
    out = {}
    for row in plan.rows:
        keys = {stage.kind: stage.key for stage in row.stages}
        upstream = {} if row.head.upstream is None else {"upstream": row.head.upstream.key}
        out[row.row.name] = {**keys, "head": row.head.key, **upstream, "threshold": row.threshold_key}
    return out


def same(one: Ran, other: Ran, rows: Iterable[str] = ENGINE_ROWS) -> bool:
    """Whether all images that both scored have the same bits."""
    compared = 0
    for row in rows:
        left, right = one.of(row), other.of(row)
        common = left.keys() & right.keys()
        compared += len(common)
        if any(left[k] != right[k] and not (math.isnan(left[k]) and math.isnan(right[k])) for k in common):
            return False
    return compared > 0

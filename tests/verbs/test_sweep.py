"""`harness sweep` as a user runs it: what it leaves, what it does not do twice, how it goes on, and how it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from plugin_support import Cli, Done, make_data

from harness.engine.halving import Course, Halving, standings
from harness.results.store import Store
from harness.results.sweep import SweepFolder, read_sweep

RECIPE: dict[str, Any] = {
    "recipe": "lam", "detector": "blades-oc", "options": {"encoder": "tiny", "image_size": 32}, "step": "bilevel",
    "settings": {"tasks": ["face_coarse", "face_fine"], "work_size": 32, "manipulations": [0, 1, 3]}, "epochs": 4,
    "batch_size": 8, "lr": 1e-3, "seed": 1,
}  # fmt: skip
SWEEP: dict[str, Any] = {
    "sweep": "rates", "version": 1, "title": "Rates",
    "space": {"settings.lambda_lr": {"loguniform": [1e-5, 1e-2]}, "lr": {"loguniform": [1e-4, 0.1]}},
    "samples": 3, "seed": 3, "objective": {"metric": "fine_accuracy"},
    "scheduler": {"asha": {"grace": 1, "reduction": 2}},
}  # fmt: skip
SAME = ("trials.csv", "select.csv", "trials/0000.csv", "trials/0001.csv", "trials/0002.csv")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with photographs enough for `outer` and `select`; not to be written to."""
    return make_data(tmp_path_factory.mktemp("sweep") / "data", train=48, test=4, made=4)


def sweep_file(folder: Path, recipe: dict[str, Any] | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lam.yaml").write_text(yaml.safe_dump({**RECIPE, **(recipe or {})}))
    path = folder / "rates.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, "recipe": str(folder / "lam.yaml"), **changes}, sort_keys=False))
    return path


def words(path: Path, photographs: Path, *more: object) -> tuple[object, ...]:
    return ("sweep", path, "--data-root", photographs, "--device", "cpu", "--json", *more)


def folder_of(cli: Cli, done: Done) -> SweepFolder:
    assert done.code in (0, 3), done.text
    return read_sweep(cli.folder / done.document["folder"])


@pytest.fixture(scope="session")
def swept(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cli, Path, Done]:
    """A sweep that nothing disturbed, logged to the default store: command line, file, end."""
    folder = tmp_path_factory.mktemp("swept")
    cli, path = Cli(folder / "work", ()), sweep_file(folder)
    return cli, path, cli(*words(path, photographs, "--concurrent", "2"))


# what it leaves ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_trial_is_in_the_table_and_its_end_follows_from_the_values(swept: tuple[Cli, Path, Done]) -> None:
    cli, _, done = swept
    assert done.code == 0, done.text
    read = folder_of(cli, done)
    assert (read.record.trials, done.document["trained"]) == (3, 3)
    table = read.trials
    assert set(table["state"]) <= {"finished", "stopped"}
    courses = []
    for number in range(3):
        mine = read.select[read.select["trial"] == number]
        courses.append(Course(4, dict(zip(mine["epoch"], mine["fine_accuracy"], strict=True))))
        assert mine["epoch"].tolist() == list(range(1, int(table["epochs"][number]) + 1))
        history = read.histories[number]
        assert int(history["epoch"].max()) == int(table["epochs"][number])
        assert history["lambda/face_coarse"].notna().all()
        assert mine["step"].tolist() == history.groupby("epoch")["step"].max().tolist()
    found = standings(courses, Halving(1, 2.0))
    expected = [4 if s.stopped is None else s.stopped.epoch for s in found]
    assert table["epochs"].tolist() == expected
    assert {p.name for p in (read.folder / "figures").iterdir()} == {
        "parallel.png", "objective.png", "epochs.png", "lambda.png",
    }  # fmt: skip
    assert done.document["best"]["trial"] == read.record.best
    assert not (cli.folder / ".blades-store" / "tune").exists() or not list(
        (cli.folder / ".blades-store" / "tune").iterdir()
    )


@pytest.mark.slow
def test_again_nothing_is_trained_and_the_tables_are_the_same_bytes(
    swept: tuple[Cli, Path, Done], photographs: Path, tmp_path: Path
) -> None:
    cli, path, done = swept
    first = folder_of(cli, done)
    kept = {name: (first.folder / name).read_bytes() for name in SAME}
    again = cli(*words(path, photographs, "--tracking-uri", "off"))
    assert again.document["trained"] == 0
    assert "3 in the store, 0 to train" in again.err
    assert {name: (first.folder / name).read_bytes() for name in SAME} == kept
    more = cli(*words(path, photographs, "--samples", "4", "--dry-run"))
    assert [row["state"] for row in more.document["trials"]] == ["stored"] * 3 + ["to train"]


@pytest.mark.slow
def test_one_trial_after_another_gives_the_same_bytes(
    swept: tuple[Cli, Path, Done], photographs: Path, tmp_path: Path
) -> None:
    cli, path, done = swept
    other = Cli(tmp_path / "work", ())
    alone = other(*words(path, photographs, "--concurrent", "1", "--tracking-uri", "off"))
    assert alone.document["trained"] == 3
    one, two = folder_of(cli, done).folder, folder_of(other, alone).folder
    for name in SAME:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.slow
def test_parent_trials_and_trajectories_are_read_back_through_a_started_server(
    swept: tuple[Cli, Path, Done], mlflow_server: str
) -> None:
    cli, _, done = swept
    read = folder_of(cli, done)
    assert "mlflow ui" in done.document["mlflow_ui"]
    logged = cli("report", done.document["folder"], "--log", "--tracking-uri", mlflow_server)
    assert logged.code == 0, logged.text
    assert logged.out.count("figure: ") == 4

    def ask(path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{mlflow_server}/api/2.0/mlflow/{path}", data,
                                         {"Content-Type": "application/json"})  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    experiment = ask("experiments/get-by-name?experiment_name=sweep-rates")["experiment"]["experiment_id"]
    runs = ask("runs/search", {"experiment_ids": [experiment]})["runs"]
    tags = [{t["key"]: t["value"] for t in run["data"]["tags"]} for run in runs]
    (parent,) = [r for r, t in zip(runs, tags, strict=True) if "mlflow.parentRunId" not in t]
    children = {int(t["blades.trial"]): r for r, t in zip(runs, tags, strict=True) if "mlflow.parentRunId" in t}
    assert sorted(children) == [0, 1, 2]
    assert {t["mlflow.parentRunId"] for t in tags if "mlflow.parentRunId" in t} == {parent["info"]["run_id"]}
    for number, run in children.items():
        params = {p["key"]: p["value"] for p in run["data"]["params"]}
        assert float(params["settings.lambda_lr"]) == read.trials["settings.lambda_lr"][number]
        path = f"metrics/get-history?run_id={run['info']['run_id']}&metric_key=lambda/face_coarse"
        found = [(m["step"], m["value"]) for m in ask(path)["metrics"]]
        history = read.histories[number]
        assert found == list(zip(history["step"], history["lambda/face_coarse"], strict=True))
        metrics = {m["key"]: m["value"] for m in run["data"]["metrics"]}
        assert metrics["objective"] == read.trials["objective"][number]


# cut off -------------------------------------------------------------------------------------------------------------


def trained_keys(store: Path) -> dict[str, int]:
    """Sessions in which each finished trial was trained, and when its entry was written, by key."""
    return {p.stem: p.stat().st_mtime_ns for p in (store / "entries" / "recipes").glob("*.json")}


def family(pid: int) -> dict[int, str]:
    """Processes below a process, with their commands; without Ray's own agents, which notice an end after minutes."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (path / "stat").read_text().rpartition(")")[2].split()
            parents[int(path.name)] = int(state[1])
    found, todo = {}, [pid]
    while todo:
        here = todo.pop()
        for child in [c for c, parent in parents.items() if parent == here]:
            todo.append(child)
            with contextlib.suppress(OSError):
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return {pid: command for pid, command in found.items() if "agent" not in command.lower()}


def alive(pids: Iterable[int]) -> list[int]:
    """Those that still run."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(pid)
    return found


def gone(pids: Iterable[int]) -> bool:
    deadline = time.monotonic() + 60
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not alive(pids)


def wait(process: Any, seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 280
    while not seen():
        assert process.poll() is None, "".join(process.communicate())
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_driver_that_was_killed_trains_no_finished_trial_again_and_ends_the_same(
    swept: tuple[Cli, Path, Done], photographs: Path, tmp_path: Path
) -> None:
    undisturbed, path, done = swept
    cli = Cli(tmp_path / "work", ())
    store = cli.folder / ".blades-store"
    go = words(path, photographs, "--concurrent", "1", "--every", "2", "--tracking-uri", "off")
    process = cli.start(*go)

    def seen() -> bool:
        return bool(trained_keys(store)) and bool(list(store.glob("training/*/step-*/state.json")))

    wait(process, seen)
    relatives = family(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert gone(relatives)
    before = trained_keys(store)
    assert 0 < len(before) < 3
    again = cli(*go)
    assert again.code == 0, again.text
    assert again.document["trained"] == 3 - len(before)
    assert {key: when for key, when in trained_keys(store).items() if key in before} == before
    kept = Store(store)
    for key in before:
        assert len(kept.entry("recipes", key)["sessions"]) == 1
    one, two = folder_of(undisturbed, done).folder, folder_of(cli, again).folder
    for name in SAME:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.slow
def test_a_worker_that_was_killed_goes_on_within_the_same_command(
    swept: tuple[Cli, Path, Done], photographs: Path, tmp_path: Path
) -> None:
    undisturbed, path, done = swept
    cli = Cli(tmp_path / "work", ())
    process = cli.start(*words(path, photographs, "--every", "2", "--tracking-uri", "off"))
    wait(process, lambda: bool(list((cli.folder / ".blades-store").glob("training/*/step-*/state.json"))))
    workers = [pid for pid, command in family(process.pid).items() if "ImplicitFunc" in command]
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    one, two = folder_of(undisturbed, done).folder, folder_of(cli, Done(0, out, err)).folder
    for name in SAME:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.slow
def test_an_interrupt_leaves_with_130_and_no_process_behind(photographs: Path, tmp_path: Path) -> None:
    cli, path = Cli(tmp_path / "work", ()), sweep_file(tmp_path)
    process = cli.start(*words(path, photographs, "--tracking-uri", "off"))
    wait(process, lambda: bool(list((cli.folder / ".blades-store").glob("entries/trials/*.json"))))
    relatives = family(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    assert gone(relatives)
    assert not (cli.folder / "runs").exists()


@pytest.mark.slow
def test_a_trial_that_fails_is_listed_with_exit_3_and_the_rest_is_kept(photographs: Path, tmp_path: Path) -> None:
    cli = Cli(tmp_path / "work", ())
    path = sweep_file(tmp_path, {"epochs": 2}, space={"lr": {"grid": [1e-3, 1e30]}, "seed": {"grid": [1, 1.0]}},
                      samples=1, scheduler=None)  # fmt: skip
    go = words(path, photographs, "--tracking-uri", "off")
    done = cli(*go)
    assert done.code == 3, done.text
    table = folder_of(cli, done).trials
    assert table["state"].tolist() == ["finished", "repeats", "failed", "repeats"]
    assert "not finite" in table["reason"][2]
    assert done.document["best"]["trial"] == 0
    assert "trial 2 failed" in done.err
    again = cli(*go)
    assert (again.code, again.document["trained"]) == (3, 0)


# bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ({}, ("--set", "sample=3"), "did you mean 'samples'"),
        ({"space": {"lr": {"uniform": [1, 1]}}}, (), "not below high"),
        ({"space": {"lr": {"loguniform": [0, 1]}}}, (), "above 0"),
        ({"space": {"settings.lambda_lrr": {"choice": [1]}}}, (), "lambda_lrr"),
        ({"space": {"options.encodr": {"choice": ["tiny"]}}}, (), "did you mean 'encoder'"),
        (
            {"space": {"options.encoder": {"grid": ["tiny", "huge"]}}, "samples": 1},
            (),
            "trial 1 (options.encoder=huge)",
        ),
        ({"objective": {"metric": "coarse_accuracy", "split": "report"}}, (), "report"),
        ({}, ("--profile", "demo"), "--data-root"),
        ({}, ("--device", "abacus"), "abacus"),
        ({}, ("--ray-address", "nowhere"), "--ray-address"),
        ({}, ("--ray-address", "127.0.0.1:9"), "no Ray cluster"),
    ],
)
def test_what_cannot_be_meant_ends_with_a_reason_before_anything_is_trained(
    here, refused, photographs: Path, tmp_path: Path, changes: dict[str, Any], more: tuple[str, ...], said: str
) -> None:
    done = here(*words(sweep_file(tmp_path, **changes), photographs, *more))
    assert said in refused(done)
    assert not Path("runs").exists()
    assert not Path("mlflow.db").exists()
    assert not list(Path(".").glob(".blades-store/entries/*/*"))


def test_a_suite_is_not_swept_and_a_sweep_not_run(here, refused, photographs: Path, tmp_path: Path) -> None:
    assert "harness run" in refused(here("sweep", "cross_generator", "--data-root", photographs))
    assert "harness sweep" in refused(here("run", "sweep_lambda_lr", "--data-root", photographs))
    assert "kind" in here("suites", "list", "--json").document[0]


def test_a_dry_run_lists_the_trials_and_writes_nothing(here, photographs: Path, tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    done = here(*words(path, photographs, "--dry-run", "--samples", "5"))
    rows = done.document["trials"]
    assert [row["state"] for row in rows] == ["to train"] * 5
    assert list(rows[0]) == ["trial", "settings.lambda_lr", "lr", "epochs", "state"]
    assert here(*words(path, photographs, "--dry-run")).document["trials"] == rows[:3]
    assert list(Path(".").iterdir()) == []


@pytest.mark.slow
def test_a_metric_that_is_not_there_ends_the_sweep_and_names_those_that_are(
    refused, photographs: Path, tmp_path: Path
) -> None:
    cli = Cli(tmp_path / "work", ())
    done = cli(*words(sweep_file(tmp_path, objective={"metric": "accuracy"}), photographs, "--tracking-uri", "off"))
    said = refused(done)
    assert "'accuracy' is not among the metrics" in said
    assert "coarse_accuracy" in said
    assert not (cli.folder / "runs").exists()


@pytest.mark.slow
def test_a_copied_store_without_the_other_files_is_enough(
    swept: tuple[Cli, Path, Done], photographs: Path, tmp_path: Path
) -> None:
    cli, path, done = swept
    other = Cli(tmp_path / "work", ())
    other.folder.mkdir(parents=True)
    shutil.copytree(cli.folder / ".blades-store", other.folder / ".blades-store")
    again = other(*words(path, photographs, "--tracking-uri", "off"))
    assert again.document["trained"] == 0
    pd.testing.assert_frame_equal(folder_of(other, again).trials, folder_of(cli, done).trials)

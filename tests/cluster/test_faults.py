"""What breaks under Ray, with real processes: scores are those of an undisturbed run, or what is missing is listed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cluster_support import RAY, Base, born, command, descendants, features_stored, pixels_digest, wait_until, workers
from plugin_support import Cli, Done, make_data, scores_file, stop_when, write_package, write_suite

pytestmark = pytest.mark.slow

ONE = (*RAY, "--set", "execution.max_actors=1")
"""One worker: faster to start."""
SLOW = ("--detectors", "slow-native")
PERILOUS = ("--detectors", "perilous")


def start(cli: Cli, base: Base, data: Path, *words: object, engine: tuple[str, ...] = ONE) -> subprocess.Popen[str]:
    """A run that is not waited for."""
    fixed = ("--data-root", data, "--device", "cpu", "--tracking-uri", "off", "--json")
    return cli.start("run", base.suite, *fixed, *engine, *words)


def ended(process: subprocess.Popen[str]) -> Done:
    """How it ended."""
    out, err = process.communicate(timeout=600)
    return Done(process.returncode, out, err)


def working(process: subprocess.Popen[str], cli: Cli) -> list[int]:
    """Its workers, once some features are stored."""

    def found() -> list[int]:
        assert process.poll() is None, "".join(process.communicate())
        stored = features_stored(cli.folder / ".blades-store")
        return [pid for pid in workers(process.pid) if "extract" in command(pid)] if stored else []

    return wait_until(found)


# workers -------------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_costs_nothing_but_time(base: Base, data: Path, cli: Cli) -> None:
    process = start(cli.with_(BENCH_PLUGINS_PAUSE="0.3"), base, data, *SLOW, engine=RAY)
    os.kill(working(process, cli)[0], signal.SIGKILL)
    done = ended(process)
    assert "a worker was lost" in done.err
    base.same(done, cli, "slow-native")
    assert done.document["set_aside"] == []


def test_a_worker_that_hangs_is_replaced_after_the_timeout(base: Base, data: Path, cli: Cli) -> None:
    words = (*SLOW, "--set", "execution.timeout_seconds=6")
    process = start(cli.with_(BENCH_PLUGINS_PAUSE="0.2"), base, data, *words)
    stopped = working(process, cli)[0]
    os.kill(stopped, signal.SIGSTOP)
    done = ended(process)
    assert "it hung for 6 s" in done.err
    base.same(done, cli, "slow-native")
    assert command(stopped) == ""


# the driver ----------------------------------------------------------------------------------------------------------


def none_left(processes: dict[int, str]) -> None:
    """Processes of a Ray of our own end with the one that started it."""
    wait_until(lambda: not any(born(pid) == began for pid, began in processes.items()))


def below(process: subprocess.Popen[str]) -> dict[int, str]:
    """All processes below one, and when they began."""
    return {pid: born(pid) for pid in descendants(process.pid)}


def test_a_driver_killed_while_it_extracts(base: Base, data: Path, cli: Cli) -> None:
    process = start(cli.with_(BENCH_PLUGINS_PAUSE="0.3"), base, data, *SLOW)
    working(process, cli)
    family = below(process)
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    none_left(family)
    done = cli.run(base.suite, data, *ONE, *SLOW)
    base.same(done, cli, "slow-native")
    (stage,) = done.document["plan"]
    assert stage["stored"] > 0
    assert done.document["computed_images"] == stage["to_do"]


@pytest.mark.parametrize("place", ["fit", "score"])
def test_a_driver_killed_while_it_fits_or_scores(base: Base, data: Path, cli: Cli, tmp_path: Path, place: str) -> None:
    process = start(cli.with_(BENCH_PLUGINS_DAWDLE=f"{place}:{tmp_path}:60"), base, data, *PERILOUS)
    wait_until(lambda: (tmp_path / place).exists() or process.poll() is not None)
    assert process.poll() is None, ended(process).text
    family = below(process)
    process.kill()
    ended(process)
    none_left(family)
    heads = list((cli.folder / ".blades-store/heads").glob("[!.]*"))
    assert len(heads) == (1 if place == "score" else 0)
    done = cli.run(base.suite, data, *PERILOUS)
    base.same(done, cli, "perilous")
    assert done.document["computed_images"] == 0


def tracked(cli: Cli) -> list[dict[str, Any]]:
    """Parent runs of the MLflow store of a folder: status, tags, metrics of their children."""
    code = (
        "import json, mlflow\n"
        "client = mlflow.MlflowClient('sqlite:///mlflow.db')\n"
        "ids = [e.experiment_id for e in client.search_experiments()]\n"
        "runs = client.search_runs(ids)\n"
        "out = [{'status': r.info.status, 'parent': r.data.tags.get('mlflow.parentRunId'), 'id': r.info.run_id,\n"
        "        'metrics': r.data.metrics} for r in runs]\n"
        "print(json.dumps(out))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=cli.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout.splitlines()[-1])
    parents = [run for run in runs if run["parent"] is None]
    for parent in parents:
        parent["children"] = [run for run in runs if run["parent"] == parent["id"]]
    return parents


def test_a_driver_killed_while_it_logs(base: Base, data: Path, cli: Cli) -> None:
    words = ("run", base.suite, "--data-root", data, "--device", "cpu", "--detectors", "calibrated")
    process = cli.start(*words, *ONE)
    stop_when(process, lambda: (cli.folder / "mlflow.db").exists(), signal.SIGKILL)
    done = cli(*words, "--json")
    assert done.code == 0, done.text
    assert done.document["computed_images"] == 0
    base.same(done, cli, "calibrated")
    whole = [run for run in tracked(cli) if run["status"] == "FINISHED" and run["children"]]
    assert len(whole) >= 1
    assert all(child["metrics"] for run in whole for child in run["children"])


def test_an_interrupt_ends_the_workers_and_exits_130(base: Base, data: Path, cli: Cli) -> None:
    process = start(cli.with_(BENCH_PLUGINS_PAUSE="0.3"), base, data, *SLOW)
    working(process, cli)
    family = below(process)
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert done.code == 130, done.text
    assert "the same command goes on from there" in done.err
    assert "Traceback" not in done.text
    none_left(family)
    dry = cli.run(base.suite, data, "--dry-run", *SLOW)
    assert dry.document["plan"][0]["stored"] > 0


# the cluster ---------------------------------------------------------------------------------------------------------


def test_a_node_that_goes_away_takes_no_result_with_it(
    base: Base, data: Path, cli: Cli, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_PLUGINS_PAUSE", "0.5")
    cluster.add_node(num_cpus=1, include_dashboard=False)
    second = cluster.add_node(num_cpus=1)
    process = start(cli, base, data, *SLOW, "--ray-address", cluster.address, engine=RAY)

    def both() -> bool:
        assert process.poll() is None, "".join(process.communicate())
        busy = [pid for pid in descendants(os.getpid()) if command(pid).startswith("ray::Worker.extract")]
        return len(busy) == 2 and features_stored(cli.folder / ".blades-store")

    wait_until(both)
    cluster.remove_node(second, allow_graceful=False)
    done = ended(process)
    assert "Ray: 2 nodes, 2 CPUs" in done.err
    assert "a worker was lost" in done.err
    base.same(done, cli, "slow-native")
    assert done.document["set_aside"] == []


FILL = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50)
kept = []
for _ in range(40):
    kept.append(ray.put(bytes(4 << 20)))
print("full", flush=True)
time.sleep(600)
"""


def test_a_full_object_store_is_nothing_to_us(base: Base, data: Path, cli: Cli, cluster: Any) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=80 << 20, include_dashboard=False)
    hog = subprocess.Popen([sys.executable, "-c", FILL, cluster.address], stdout=subprocess.PIPE, text=True)
    try:
        assert hog.stdout is not None
        assert hog.stdout.readline().strip() == "full"
        rows = "calibrated,grad-map,native-size"
        done = cli.run(base.suite, data, *RAY, "--ray-address", cluster.address, "--detectors", rows)
    finally:
        hog.kill()
        hog.wait()
    base.same(done, cli, *rows.split(","))
    assert "a worker was lost" not in done.err


# detectors and images ------------------------------------------------------------------------------------------------

RAISES = """
from bench_plugins.calibrated import Calibrated
from bench_plugins.pixels import PixelStatistics
from dataclasses import dataclass
from harness.api.contract import Facts

@dataclass(frozen=True)
class Bad(PixelStatistics):
    def load(self, weights, device):
        def raises(images):
            raise RuntimeError("this detector has a fault")
        return raises

class Raises(Calibrated):
    name = "raises"
    facts = Facts("Raises", "nobody", "this file", "Apache-2.0")
    def extractor(self):
        return Bad()
"""


def test_a_detector_that_raises_fails_alone(base: Base, data: Path, cli: Cli, tmp_path: Path) -> None:
    package = write_package(tmp_path / "raises", "raises", {"raises": "d_raises:Raises"}, {"d_raises": RAISES})
    suite = write_suite(tmp_path, ("raises", "calibrated", "native-size"))
    both = cli.with_(packages=(*cli.packages, package))
    done = both.run(suite, data, *ONE)
    assert done.code == 3, done.text
    assert list(done.document["failed"]) == ["raises"]
    assert "RuntimeError: this detector has a fault" in done.document["failed"]["raises"]
    scores = pd.read_parquet(scores_file(done, cli))
    pd.testing.assert_frame_equal(scores, base.table("calibrated", "native-size"), check_exact=True)
    record = json.loads((scores_file(done, cli).parent / "record.json").read_text())
    assert "d_raises.py" in record["detectors"]["raises"]["traceback"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with fewer images: finding a bad one takes several workers' lives."""
    return make_data(tmp_path_factory.mktemp("small") / "data", train=8, test=4, made=4)


def only(done: Done) -> dict[str, Any]:
    """The one image that was set aside."""
    (entry,) = done.document["set_aside"]
    return dict(entry)


def test_an_image_that_ends_its_worker_is_found_set_aside_and_listed(small: Path, cli: Cli, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, ("perilous", "native-size"))
    image = small / "ldm/0001.jpg"
    peril = cli.with_(BENCH_PLUGINS_PERIL=f"exit:{pixels_digest(image)}")
    done = peril.run(suite, small, *RAY)
    assert done.code == 3, done.text
    assert done.document["failed"] == {}
    entry = only(done)
    assert (entry["row"], entry["path"]) == ("perilous", "ldm/0001.jpg")
    assert "ldm/0001.jpg has no score" in done.err
    folder = scores_file(done, cli).parent
    record = json.loads((folder / "record.json").read_text())
    assert record["set_aside"] == [entry]
    assert any("1 images that ended every worker have no score (perilous)" in stamp for stamp in record["stamps"])
    broken = pd.read_parquet(scores_file(done, cli))
    silent = broken[broken["score"].isna()]
    assert set(silent["sha256"]) == {entry["sha256"]}
    assert set(silent["detector"]) == {"perilous"}
    # nothing was stored of it: without the fault it is computed, and it alone
    mended = cli.run(suite, small)
    assert mended.code == 0, mended.text
    assert mended.document["computed_images"] == 1
    whole = pd.read_parquet(scores_file(mended, cli))
    assert np.isfinite(whole["score"]).all()
    pd.testing.assert_frame_equal(whole.loc[broken["score"].notna()], broken.dropna(subset="score"), check_exact=True)


def test_an_image_that_hangs_its_worker_is_set_aside_too(small: Path, cli: Cli, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, ("perilous",))
    peril = cli.with_(BENCH_PLUGINS_PERIL=f"hang:{pixels_digest(small / 'ddim/0000.png')}")
    words = ("--set", "execution.timeout_seconds=5", "--set", "execution.retries=0")
    done = peril.run(suite, small, *ONE, *words)
    assert done.code == 3, done.text
    assert only(done)["path"] == "ddim/0000.png"
    assert "it hung for 5 s" in only(done)["why"]


def test_a_bad_image_of_the_fit_set_fails_the_row_and_says_what_to_do(small: Path, cli: Cli, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, ("perilous", "native-size"))
    image = small / "celeba-face" / (small / "celeba-face/train.txt").read_text().splitlines()[0]
    peril = cli.with_(BENCH_PLUGINS_PERIL=f"exit:{pixels_digest(image)}")
    done = peril.run(suite, small, *ONE, "--set", "execution.retries=0")
    assert done.code == 3, done.text
    assert list(done.document["failed"]) == ["perilous"]
    message = done.document["failed"]["perilous"]
    assert re.search(r"an image of the (fit|calibration) set ended every worker", message)
    assert str(image) in message
    assert "fix: replace the image" in message
    scores = pd.read_parquet(scores_file(done, cli))
    assert set(scores["detector"]) == {"native-size"}


def test_images_that_change_under_the_run_stop_it_as_inline_does(cli: Cli, tmp_path: Path) -> None:
    root = make_data(tmp_path / "changing")
    suite = write_suite(tmp_path, ("slow-native",))
    process = cli.with_(BENCH_PLUGINS_PAUSE="0.3").start(
        "run", suite, "--data-root", root, "--device", "cpu", "--tracking-uri", "off", "--json", *ONE
    )
    working(process, cli)
    for path in root.rglob("*.??g"):
        path.write_bytes(b"nothing that could be decoded")
    done = ended(process)
    assert done.code == 2, done.text
    assert "the image changed while the run was going on" in done.err
    assert "Traceback" not in done.text


# several at once -----------------------------------------------------------------------------------------------------


def test_four_runs_at_once_on_one_store_and_one_mlflow_store(base: Base, data: Path, cli: Cli) -> None:
    words = ("run", base.suite, "--data-root", data, "--device", "cpu", "--json", "--detectors", "calibrated,grad-map")
    processes = [cli.start(*words, *engine) for engine in (ONE, (), ONE, ())]
    for process in processes:
        base.same(ended(process), cli, "calibrated", "grad-map")
    assert cli("store", "verify").out.strip() == "sound"
    parents = tracked(cli)
    assert [run["status"] for run in parents] == ["FINISHED"] * 4
    for run in parents:
        assert len(run["children"]) == 3  # two rows and the audit
        assert all(child["metrics"] for child in run["children"])


def test_a_tracking_server_that_is_down_costs_nothing_but_the_log(base: Base, data: Path, cli: Cli) -> None:
    words = ("run", base.suite, "--data-root", data, "--device", "cpu", "--json", "--detectors", "calibrated")
    done = cli(*words, *ONE, "--tracking-uri", "http://127.0.0.1:9")
    base.same(done, cli, "calibrated")
    assert "not logged to MLflow" in done.err
    logged = cli("report", done.document["run_dir"], "--log", "--tracking-uri", "sqlite:///mlflow.db")
    assert logged.code == 0, logged.text
    assert [run["status"] for run in tracked(cli)] == ["FINISHED"]

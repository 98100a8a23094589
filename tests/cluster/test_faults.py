"""What breaks under Ray, with real processes: scores are those of an undisturbed run, or what is missing is listed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cluster_support import (
    EXECUTION,
    RAY,
    ROWS,
    Base,
    command,
    descendants,
    ended,
    features_stored,
    pixels_digest,
    same_results,
    start,
    wait_until,
    working,
)
from plugin_support import Cli, Done, make_data, scores_file, write_package, write_suite

pytestmark = pytest.mark.slow

ONE = (*RAY, "--set", "execution.max_actors=1")
"""One worker: faster to start."""
SLOW = ("--detectors", "slow-native")


def losses(done: Done) -> int:
    """Workers that were lost, by the warnings."""
    return done.err.count(": a worker was lost (")


def strikes(done: Done, unit: str = "images") -> list[tuple[int, int]]:
    """Strikes as they were given: the how manyth, and against how much."""
    return [(int(k), int(n)) for k, n in re.findall(rf"; strike (\d+) against (\d+) {unit}\)", done.err)]


# workers -------------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_costs_nothing_but_time(base: Base, data: Path, cli: Cli) -> None:
    process = start(cli.with_(BENCH_PLUGINS_PAUSE="0.3"), base.wide, data, *SLOW)
    os.kill(working(process, cli)[0], signal.SIGKILL)
    done = ended(process)
    assert losses(done) == 1
    assert len(strikes(done)) <= 1  # none where all of its piece was stored
    base.same(done, cli, "slow-native")
    assert done.document["set_aside"] == []
    # images that the lost worker had stored are no part of the rate: their time is not known
    (rate,) = (cli.folder / ".blades-store/entries/rates").glob("*.json")
    assert json.loads(rate.read_text())["value"]["images_per_second"] < 1 / 0.3


def test_a_worker_that_hangs_is_replaced_after_the_timeout(base: Base, data: Path, cli: Cli, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, ROWS, execution={**EXECUTION, "max_actors": 1, "timeout_seconds": 6})
    process = start(cli.with_(BENCH_PLUGINS_PAUSE="0.2"), suite, data, *SLOW)
    stopped = working(process, cli)[0]
    os.kill(stopped, signal.SIGSTOP)
    done = ended(process)
    assert "it hung for 6 s" in done.err
    base.same(done, cli, "slow-native")
    assert command(stopped) == ""


# the cluster ---------------------------------------------------------------------------------------------------------


def test_a_node_that_goes_away_takes_no_result_with_it(
    base: Base, data: Path, cli: Cli, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_PLUGINS_PAUSE", "0.5")
    cluster.add_node(num_cpus=1, include_dashboard=False)
    second = cluster.add_node(num_cpus=1)
    process = start(cli, base.wide, data, *SLOW, "--ray-address", cluster.address)

    def both() -> bool:
        assert process.poll() is None, "".join(process.communicate())
        busy = [pid for pid in descendants(os.getpid()) if command(pid).startswith("ray::Worker.extract")]
        return len(busy) == 2 and features_stored(cli.folder / ".blades-store")

    wait_until(both)
    cluster.remove_node(second, allow_graceful=False)
    done = ended(process)
    assert "Ray: 2 nodes, 2 CPUs" in done.err
    assert losses(done) == 1
    assert "a worker was lost (its node has died)" in done.err
    assert strikes(done) == []
    base.same(done, cli, "slow-native")
    assert done.document["set_aside"] == []


FILL = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50)
kept = []
for _ in range(200):
    began = time.monotonic()
    try:
        kept.append(ray.put(bytes(4 << 20)))
    except ray.exceptions.ObjectStoreFullError:
        break
    if time.monotonic() - began > 1:  # Ray found no room in memory and took a file
        break
else:
    sys.exit("the object store does not get full")
print("full", flush=True)
time.sleep(600)
"""
WEIGHTY = """
from dataclasses import dataclass
from bench_plugins.calibrated import Calibrated
from bench_plugins.gaussian import GaussianHead
from harness.api.contract import Facts

@dataclass(frozen=True)
class WeightyHead(GaussianHead):
    note: str = "x" * 1_000_000  # as much as a fit set of 25,000 images

class Weighty(Calibrated):
    name = "weighty"
    facts = Facts("Pixel statistics, with a long note", "nobody", "this file", "Apache-2.0")
    def head(self):
        return WeightyHead(self.options.shrink)
"""


def test_a_full_object_store_is_nothing_to_us(data: Path, cli: Cli, cluster: Any, tmp_path: Path) -> None:
    package = write_package(tmp_path / "weighty", "weighty", {"weighty": "d_weighty:Weighty"}, {"d_weighty": WEIGHTY})
    suite = write_suite(tmp_path, ("calibrated", "grad-map", "native-size", "weighty"))
    both = cli.with_(packages=(*cli.packages, package))
    undisturbed = Cli(tmp_path / "other", both.packages)
    expected = scores_file(undisturbed.run(suite, data), undisturbed).parent
    cluster.add_node(
        num_cpus=1, object_store_memory=80 << 20, include_dashboard=False,
        _system_config={"automatic_object_spilling_enabled": False},
    )  # fmt: skip
    hog = subprocess.Popen([sys.executable, "-c", FILL, cluster.address], stdout=subprocess.PIPE, text=True)
    try:
        assert hog.stdout is not None
        assert hog.stdout.readline().strip() == "full"
        done = both.run(suite, data, *RAY, "--ray-address", cluster.address)
    finally:
        hog.kill()
        hog.wait()
    assert done.code == 0, done.text
    same_results(scores_file(done, both).parent, expected)
    assert losses(done) == 0


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
    given = strikes(done)
    whole = given[0][1]
    assert whole > 1
    assert given[:3] == [(1, whole), (2, whole), (3, whole)]
    assert given[-3:] == [(1, 1), (2, 1), (3, 1)]
    assert {k for k, _ in given[2:-3]} == {3}
    assert all(size in (before // 2, before - before // 2) for (_, before), (_, size) in pairwise(given[2:-2]))
    assert losses(done) == len(given)
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


def test_a_head_that_ends_its_worker_fails_its_row_alone(base: Base, data: Path, cli: Cli) -> None:
    done = cli.with_(BENCH_PLUGINS_PERIL="head:").run(base.suite, data, *RAY, "--detectors", "perilous,native-size")
    assert done.code == 3, done.text
    assert list(done.document["failed"]) == ["perilous"]
    assert "making this head ended or stopped 3 workers" in done.document["failed"]["perilous"]
    assert strikes(done, "head") == [(1, 1), (2, 1), (3, 1)]
    assert losses(done) == 3
    scores = pd.read_parquet(scores_file(done, cli))
    pd.testing.assert_frame_equal(scores, base.table("native-size"), check_exact=True)
    mended = cli.run(base.suite, data, *RAY, "--detectors", "perilous,native-size")
    assert mended.document["computed_images"] == 0
    base.same(mended, cli, "perilous", "native-size")

"""A run that is killed, interrupted or run twice at once: what is stored is found, and the scores are the same."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pandas as pd
from plugin_support import Cli, Done, scores_file, segments, stop_when

ROW = ("--detectors", "slow-native")


def start(cli: Cli, base, data: Path, *words: str):
    """A run that takes a while."""
    return cli.with_(BENCH_PLUGINS_PAUSE="0.3").start(
        "run", base.suite, "--data-root", data, "--device", "cpu", "--tracking-uri", "off", *ROW, *words
    )  # fmt: skip


def counts(done: Done) -> tuple[int, int]:
    """Images stored and to do of the only stage."""
    (stage,) = done.document["plan"]
    return stage["stored"], stage["to_do"]


def test_kill_9_in_the_middle_costs_the_segment_in_flight_and_no_bit(base, cli: Cli, data: Path) -> None:
    store = cli.folder / ".blades-store"
    key = next(p["key"] for p in base.done.document["plan"] if p["rows"] == ["slow-native"])
    process = start(cli, base, data)
    killed = stop_when(process, lambda: any(key in str(path) for path in segments(store)), signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    done = cli.run(base.suite, data, *ROW)
    stored, to_do = counts(done)
    assert stored > 0
    assert to_do > 0
    assert done.document["computed_images"] == to_do
    assert f"{to_do:,} images to do, {stored:,} already stored" in done.err
    pd.testing.assert_frame_equal(pd.read_parquet(scores_file(done, cli)), base.table("slow-native"))
    assert cli("store", "verify").out.strip() == "sound"


def test_an_interrupt_exits_130_says_how_to_go_on_and_loses_nothing(base, cli: Cli, data: Path) -> None:
    def reading() -> bool:
        started = any("features" in p.read_text() for p in (cli.folder / ".blades-store/items").glob("*/key.json"))
        time.sleep(1.5 if started else 0)  # a few images into the stage
        return started

    done = stop_when(start(cli, base, data), reading, signal.SIGINT)
    assert done.code == 130, done.text
    assert "the same command goes on from there" in done.err
    assert "Traceback" not in done.text
    stored, to_do = counts(cli.run(base.suite, data, "--dry-run", *ROW))
    assert stored > 0
    assert to_do > 0


def test_two_runs_at_once_on_a_fresh_store_both_end_well_with_the_same_scores(base, cli: Cli, data: Path) -> None:
    words = ("run", base.suite, "--data-root", data, "--device", "cpu", "--tracking-uri", "off", "--json",
             "--detectors", "calibrated,grad-map")  # fmt: skip
    both = [cli.start(*words) for _ in range(2)]
    ended = [Done(p.returncode, out, err) for p in both for out, err in [p.communicate(timeout=120)]]
    expected = base.table("calibrated", "grad-map")
    for done in ended:
        assert done.code == 0, done.text
        pd.testing.assert_frame_equal(pd.read_parquet(scores_file(done, cli)), expected)
    assert cli("store", "verify").out.strip() == "sound"

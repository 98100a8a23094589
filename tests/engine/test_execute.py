"""Execution of real plugins: the same numbers whatever the order, batches or interruptions."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from plugin_support import ENGINE_ROWS as ROWS
from plugin_support import engine_run, same, write_suite

from harness.data.edits import InputEdits, MatchFormat
from harness.engine import inline

pytestmark = pytest.mark.usefixtures("plugins")


# what comes out ------------------------------------------------------------------------------------------------


def test_every_row_scores_every_image_of_every_cell_once(first) -> None:
    _, ran = first
    assert ran.failures == {}
    named = {(s, g) for s, g in zip(ran.plan.cells["sha256"], ran.plan.cells["generator"], strict=True)}
    for row in ROWS:
        assert ran.of(row).keys() == named
        assert (ran.scores["detector"] == row).sum() == len(named)


def test_the_columns_are_those_of_the_schema(first) -> None:
    kinds = {name: str(kind) for name, kind in first[1].scores.dtypes.items()}
    assert list(kinds) == ["sha256", "label", "generator", "detector", "score", "threshold", "prediction"]
    assert (kinds["label"], kinds["score"], kinds["threshold"], kinds["prediction"]) == (
        "int8",
        "float64",
        "float64",
        "int8",
    )


def test_small_and_dark_images_abstain_and_no_others(first, data: Path) -> None:
    _, ran = first
    table = ran.plan.manifest.set_index("sha256")
    silent = {s for (s, _), score in ran.of("abstainer").items() if math.isnan(score)}
    for sha in {s for s, _ in ran.of("abstainer")}:
        pixels = np.asarray(Image.open(data / table.loc[sha, "path"]).convert("RGB"))
        assert (sha in silent) == (min(pixels.shape[:2]) < 40 or pixels.mean() < 20)
    assert len(silent) == 1
    rows = ran.scores[(ran.scores["detector"] == "abstainer") & ran.scores["score"].isna()]
    assert set(rows["prediction"]) == {-1}


def test_a_held_out_threshold_comes_from_photographs_the_head_never_saw(first) -> None:
    (row,) = [r for r in first[1].plan.rows if r.row.name == "calibrated"]
    splits = first[1].plan.manifest["split"].to_numpy()
    assert set(splits[row.calibration_rows]) == {"select"}
    assert set(splits[row.head.fit_rows]) == {"train"}


def test_a_head_learns_from_train_images_of_its_generators_and_none_of_them_is_tested(first) -> None:
    _, ran = first
    (row,) = [r for r in ran.plan.rows if r.row.name == "pseudo-head"]
    fitted = ran.plan.manifest.iloc[row.head.fit_rows]
    assert set(fitted[fitted["label"] == 1]["generator"]) == {"ldm"}
    assert set(fitted["split"]) == {"train"}
    assert not set(fitted["sha256"]) & set(ran.plan.cells["sha256"])


def test_detectors_tell_the_two_classes_apart(first) -> None:
    found = first[1].scores.query("detector == 'native-size'")
    means = found.groupby("label")["score"].mean()
    assert means[1] > means[0]


# what is computed ---------------------------------------------------------------------------------------------------


def test_shared_stages_are_computed_once_and_a_second_run_computes_nothing(first, data: Path) -> None:
    folder, ran = first
    counts = dict(ran.computed)
    assert set(counts) == {
        "features of calibrated+pseudo-head", "maps of grad-map", "features of grad-map", "features of native-size",
        "features of abstainer",
    }  # fmt: skip
    again = engine_run(write_suite(folder, ROWS), data, folder)
    assert again.computed == {}
    assert not [text for text in again.said if text.startswith("fitting")]
    assert again.scores.equals(ran.scores)


def test_the_same_data_in_another_folder_recomputes_nothing(first, data: Path, tmp_path: Path, run) -> None:
    folder, ran = first
    shutil.copytree(folder / "store", tmp_path / "store")
    moved = run(root=Path(shutil.copytree(data, tmp_path / "moved")))
    assert moved.computed == {}
    assert moved.scores.equals(ran.scores)


def test_another_draw_or_another_detector_computes_what_is_missing_alone(run) -> None:
    few = run({"calibrated": {}}, limit=3)
    many = run({"calibrated": {}})
    both = run({"calibrated": {}, "pseudo-head": {}})
    assert few.computed["features of calibrated"] + many.computed["features of calibrated"] == len(
        many.plan.rows[0].extractor.needed
    )
    assert both.computed == {}


# the same numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_no_bit(first, run, workers: int) -> None:
    assert run(workers=workers).scores.equals(first[1].scores)


@pytest.mark.parametrize("limit", [1, 5, 7])
def test_a_limit_and_its_short_last_batches_change_no_bit(first, run, limit: int) -> None:
    limited = run(limit=limit)
    assert 0 < len(limited.scores) < len(first[1].scores)
    assert same(limited, first[1])


def test_the_order_of_test_images_changes_no_bit(first, run, data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(data, tmp_path / "reordered"))
    listed = root / "celeba-face/test.txt"
    lines = listed.read_text().splitlines(keepends=True)
    listed.write_text("".join(lines[i] for i in np.random.default_rng(3).permutation(len(lines))))
    shuffled = run(root=root)
    assert [*shuffled.plan.manifest["sha256"]] != [*first[1].plan.manifest["sha256"]]
    assert same(shuffled, first[1])
    assert all(len(shuffled.of(row)) == len(first[1].of(row)) for row in ROWS)


def test_the_order_of_rows_and_other_rows_change_no_bit(first, run) -> None:
    assert same(run(dict(reversed(ROWS.items()))), first[1])


def test_alone_or_with_others_a_row_has_the_same_scores(first, run, tmp_path: Path) -> None:
    for row in ("calibrated", "grad-map"):
        assert same(run({row: ROWS[row]}, folder=tmp_path / row), first[1], [row])


def test_micro_batches_of_1_and_32_agree_to_1e5(first, run, tmp_path: Path) -> None:
    one, many = run(batch=1, folder=tmp_path / "1"), run(batch=32, folder=tmp_path / "32")
    for row in ROWS:
        left, right = one.of(row), many.of(row)
        assert left.keys() == right.keys()
        for image in left:
            assert left[image] == pytest.approx(right[image], rel=1e-5, abs=1e-5, nan_ok=True)
    assert one.computed == many.computed == first[1].computed


@pytest.mark.parametrize("batch", [5, 7, 10])
def test_odd_micro_batches_change_no_bit_by_order_or_limit(run, data: Path, tmp_path: Path, batch: int) -> None:
    rows = {"trained-cnn": {"weights": "random:3"}}
    whole = run(rows, batch=batch, folder=tmp_path / "whole")
    assert same(run(rows, batch=batch, limit=3, folder=tmp_path / "few"), whole, rows)


def test_features_of_micro_batches_of_1_and_32_agree_to_1e5(run, tmp_path: Path) -> None:
    from harness.results.store import Store

    found = []
    for size in (1, 32):
        ran = run({"calibrated": {}}, batch=size, folder=tmp_path / str(size))
        stage = ran.plan.rows[0].extractor
        found.append(Store(tmp_path / str(size) / "store").items(stage.key).matrix(stage.needed, 9)[0])
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5)


def test_an_interrupted_stage_goes_on_where_it_stopped_with_the_same_bits(first, run, monkeypatch) -> None:
    monkeypatch.setattr(inline, "FLUSH_ROWS", 4)
    original, calls = inline.forward, []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    monkeypatch.setattr(inline, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(inline, "forward", original)
    resumed = run()
    assert 0 < sum(resumed.computed.values()) < sum(first[1].computed.values())
    assert resumed.scores.equals(first[1].scores)


# sidecars and edits -------------------------------------------------------------------------------------------------


def test_a_changed_sidecar_recomputes_its_image_alone(run, data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(data, tmp_path / "boxed"))
    before = run({"abstainer": {}}, root=root)
    sha, generator = next(k for k, v in before.of("abstainer").items() if k[1] == "ldm" and not math.isnan(v))
    path = root / before.plan.manifest.set_index("sha256").loc[sha, "path"]
    side = min(Image.open(path).size)
    path.with_name(path.name + ".json").write_text(json.dumps({"box": [side - 40, side - 40, side, side]}))
    after = run({"abstainer": {}}, root=root)
    assert after.computed == {"features of abstainer": 1}
    moved = {k for k, v in after.of("abstainer").items() if v != before.of("abstainer")[k] and not math.isnan(v)}
    assert moved == {(sha, generator)}
    path.with_name(path.name + ".json").unlink()
    assert run({"abstainer": {}}, root=root).computed == {}


def test_matched_formats_give_other_scores_and_are_stored_apart(run) -> None:
    plain = run({"native-size": {}})
    matched = run({"native-size": {}}, edits=InputEdits(match_format=MatchFormat(size=64, quality=80)))
    assert matched.computed == plain.computed
    assert not same(plain, matched, ["native-size"])
    assert run({"native-size": {}}).computed == {}

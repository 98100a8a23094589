from __future__ import annotations

import json

import pytest

from harness.api.errors import ConfigError, DataError
from reports.compare import compare


def _wide(fake, tolerance=0.05):
    """A run whose accuracy table alone is compared, with a tolerance that its few images can decide."""
    fake.record["tables"] = [
        {"kind": "accuracy", "title": "Accuracy", "published": "cross_generator", "tolerance": tolerance}
    ]
    fake.images = 600
    return fake


def test_a_run_with_the_published_values_is_reproduced_and_exits_0(full_run):
    result = compare(_wide(full_run).write())
    assert {r.verdict for r in result.rows} == {"reproduced"}
    assert (result.verdict, result.exit_code) == ("reproduced", 0)
    assert len(result.rows) == 16
    assert all(r.low95 <= r.difference <= r.high95 for r in result.rows)


def test_a_number_that_is_clearly_off_is_not_reproduced_and_exits_1(full_run):
    full_run.accuracy["blades-oc"]["ddim"] -= 0.3
    result = compare(_wide(full_run).write())
    assert (result.verdict, result.exit_code) == ("not reproduced", 1)
    off = [r for r in result.rows if r.verdict == "not reproduced"]
    assert ("blades-oc", "DDIM") in {(r.row, r.column) for r in off}
    assert "not reproduced" in result.text()


def test_too_few_images_are_inconclusive_and_exit_4(full_run):
    fake = _wide(full_run, tolerance=0.005)
    fake.images = 40
    result = compare(fake.write())
    assert (result.verdict, result.exit_code) == ("inconclusive", 4)
    assert any("more images would decide" in reason for reason in result.reasons)


def test_a_demo_run_compares_nothing_and_says_why(demo_run):
    result = compare(demo_run.write())
    assert (result.verdict, result.exit_code) == ("inconclusive", 4)
    assert {r.verdict for r in result.rows} == {"not comparable"}
    assert "a demo run is not on the paper's images" in result.text()


def test_a_missing_row_or_generator_keeps_the_run_from_being_reproduced(full_run):
    fake = _wide(full_run)
    fake.record["detectors"]["blades-bc"] |= {"status": "missing", "message": "BC.pth is not there"}
    del fake.accuracy["blades-bc"]
    result = compare(fake.write())
    assert result.exit_code == 4
    assert {r.verdict for r in result.rows if r.row == "blades-oc"} == {"reproduced"}
    missing = [r for r in result.rows if r.row == "blades-bc"]
    assert {(r.verdict, r.reason) for r in missing} == {("not measured", "BC.pth is not there")}


def test_a_generator_that_is_not_there_is_listed_as_not_measured(full_run):
    fake = _wide(full_run)
    for row in fake.accuracy.values():
        del row["ldm"]
    result = compare(fake.write())
    verdicts = {(r.row, r.column): r.verdict for r in result.rows}
    assert verdicts["blades-oc", "LDM"] == "not measured"
    assert verdicts["blades-oc", "Avg."] == "not comparable"
    assert result.exit_code == 4


def test_a_partial_run_is_never_reproduced(full_run):
    fake = _wide(full_run)
    fake.record["stamps"] = ["PARTIAL: at most 600 generated images a generator"]
    result = compare(fake.write())
    assert {r.verdict for r in result.rows} == {"reproduced"}
    assert result.exit_code == 4
    assert any("PARTIAL" in reason for reason in result.reasons)


def test_random_weights_are_not_comparable(full_run):
    fake = _wide(full_run)
    fake.record["detectors"]["blades-oc"]["random_weights"] = True
    result = compare(fake.write())
    assert {r.reason for r in result.rows if r.row == "blades-oc"} == {"random weights"}


def test_a_row_can_name_the_published_row_it_stands_for(full_run):
    fake = _wide(full_run)
    for table in (fake.record["detectors"], fake.accuracy):
        table["mine"] = table.pop("blades-oc")
    fake.record["detectors"]["mine"]["published_row"] = "BLADES-OC"
    fake.record["reference"] = None
    result = compare(fake.write())
    assert {r.row for r in result.rows} == {"mine", "blades-bc"}


def test_numbers_of_generators_that_a_row_was_trained_on_are_marked(full_run):
    result = compare(full_run.write())
    seen = {(r.table, r.row, r.column) for r in result.rows if r.seen}
    assert {place for place in seen if place[0] != "sensitivity"} == {
        ("cross_generator", "blades-bc", "LDM"), ("cross_generator", "blades-bc", "Avg."),
    }  # fmt: skip
    assert {place[1] for place in seen} == {"blades-bc"}
    text = result.text().splitlines()
    marked = [line for line in text if line.lstrip().startswith("BLADES-BC") and "†" in line]
    assert len(marked) == len(seen)
    assert any(" LDM † " in line for line in marked)
    assert not any("†" in line for line in text if line.lstrip().startswith("BLADES-OC"))
    assert sum(line.startswith("  † This row") for line in text) == 1
    assert {r["column"] for r in result.document()["rows"] if r["seen"]} >= {"LDM", "Avg."}


def test_a_row_that_was_trained_on_nothing_here_has_no_marks_and_no_legend(full_run):
    full_run.record["detectors"]["blades-bc"]["seen"] = ["elsewhere"]
    result = compare(full_run.write())
    assert not any(r.seen for r in result.rows)
    assert "†" not in result.text()


def test_one_table_can_be_chosen(full_run):
    folder = full_run.write()
    assert {r.table for r in compare(folder, "sensitivity").rows} == {"sensitivity"}
    assert {r.table for r in compare(folder, "auc").rows} == {"separability"}
    with pytest.raises(ConfigError, match="no table 'roc'"):
        compare(folder, "roc")


def test_nothing_published_is_inconclusive(full_run):
    full_run.record["tables"] = [{"kind": "auc", "title": "AUC", "published": None}]
    result = compare(full_run.write())
    assert (result.exit_code, result.rows) == (4, [])
    assert "names no published table" in result.text()


def test_a_tolerance_in_points_instead_of_fractions_is_refused(full_run):
    with pytest.raises(ConfigError, match="tolerance"):
        compare(_wide(full_run, tolerance=2.0).write())


def test_the_document_is_json_without_nan(full_run):
    fake = _wide(full_run)
    fake.record["detectors"]["blades-bc"] |= {"status": "failed", "message": "boom"}
    document = compare(fake.write()).document()
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text)["exit_code"] == 4


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "scores.parquet").unlink(), "scores.parquet is missing"),
        (lambda f: (f / "scores.parquet").write_bytes(b"no parquet"), "scores.parquet cannot be read"),
        (lambda f: (f / "record.json").unlink(), "record.json is missing"),
        (lambda f: (f / "record.json").write_text("{"), "the record cannot be read"),
        (lambda f: (f / "record.json").write_text("[]"), "not a JSON object"),
        (lambda f: (f / "record.json").write_text('{"suite": "x"}'), "the record lacks"),
    ],
)
def test_folders_that_are_no_finished_run_are_data_errors(full_run, spoil, says):
    folder = full_run.write()
    spoil(folder)
    with pytest.raises(DataError, match=says):
        compare(folder)


def test_a_folder_that_is_not_there_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="not there"):
        compare(tmp_path / "nothing")

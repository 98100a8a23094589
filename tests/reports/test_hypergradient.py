"""The audit's figure and table: what they hold follows from the history, and bad histories are refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from harness.api.errors import DataError
from reports.hypergradient import (
    COLUMNS,
    OVERALL,
    agreement,
    audit_rows,
    audit_table,
    hypergradient_figure,
    main,
    read_history,
    save_audit,
)


def step(number: int, exact: dict[str, float], by_scale: dict[float, dict[str, float]]) -> dict[str, Any]:
    differences = []
    for scale, found in by_scale.items():
        relative = {k: abs(found[k] - x) / abs(x) if x else None for k, x in exact.items()}
        differences.append({"scale": scale, "eps": scale * 0.3, "difference": found, "relative": relative,
                            "overall": max(r or 0 for r in relative.values()), "same_sign": 1.0})  # fmt: skip
    return {"step": number, "audit": {"exact": exact, "v_norm": 2.0, "differences": differences}}


HISTORY = [
    step(1, {"iso": 2.0, "make": 0.0}, {1.0: {"iso": -1.0, "make": 0.0}, 0.1: {"iso": 1.5, "make": 0.0}}),
    {"step": 2, "losses": {}},
    step(3, {"iso": -4.0, "make": 1.0}, {1.0: {"iso": -3.0, "make": 2.0}, 0.1: {"iso": -4.4, "make": 1.0}}),
]


def test_rows_hold_every_audited_step_task_and_eps() -> None:
    rows = audit_rows(HISTORY)
    assert len(rows) == 2 * 2 * 3
    assert {row["step"] for row in rows} == {1, 3}
    [first] = [r for r in rows if (r["step"], r["scale"], r["task"]) == (1, 1.0, "iso")]
    assert first == {"step": 1, "scale": 1.0, "eps": 0.3, "task": "iso", "exact": 2.0, "difference": -1.0,
                     "relative_error": 1.5}  # fmt: skip
    [none] = [r for r in rows if (r["step"], r["scale"], r["task"]) == (1, 1.0, "make")]
    assert none["relative_error"] is None


def test_signs_are_counted_over_tasks_with_a_product() -> None:
    rows = audit_rows(HISTORY)
    assert agreement(rows, 1.0) == pytest.approx(2 / 3)
    assert agreement(rows, 0.1) == 1.0
    assert agreement(rows, 7.0) is None
    assert agreement(rows, 1.0, "iso") == 0.5
    assert agreement(rows, 1.0, "make") == 1.0


def test_table_has_a_row_a_task_with_its_errors_and_signs() -> None:
    head, rule, *rows = audit_table(audit_rows(HISTORY)).splitlines()
    assert head == "| task | error at 1 ε | signs | error at 0.1 ε | signs |"
    assert rule == "|---|---|---|---|---|"
    assert rows[0] == "| iso | 87.5% (150%) | 50% | 17.5% (25%) | 100% |"
    assert rows[1] == "| make | 100.0% (100%) | 100% | 0.0% (0%) | 100% |"
    assert rows[2].startswith(f"| {OVERALL} | ")
    assert "| 67% |" in rows[2]


def test_figure_draws_the_medians_of_each_task() -> None:
    figure = hypergradient_figure(audit_rows(HISTORY), "tiny encoder")
    [ax] = figure.axes
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert {"iso", "make", OVERALL} <= set(lines)
    assert list(lines["iso"].get_xdata()) == [1.0, 0.1]
    assert list(lines["iso"].get_ydata()) == pytest.approx([(1.5 + 0.25) / 2, (0.25 + 0.1) / 2])
    assert "2 audited steps" in ax.get_title()
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1\n67%", "0.1\n100%"]


def test_a_history_becomes_a_table_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "history.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in HISTORY))
    assert read_history(source) == HISTORY
    assert main([str(source), str(tmp_path / "out")]) == 0
    table, text, picture = map(Path, capsys.readouterr().out.split())
    assert text.read_text() == audit_table(audit_rows(HISTORY))
    assert picture.read_bytes().startswith(b"\x89PNG")
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert [float(r["exact"]) for r in rows if r["exact"]] == [
        r["exact"] for r in audit_rows(HISTORY) if r["exact"] is not None
    ]


@pytest.mark.parametrize("text", ["", "{}\n", "[1]\n", "not json\n", '{"step": 1}\n'])
def test_what_is_no_audited_history_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "history.jsonl"
    source.write_text(text)
    with pytest.raises(DataError):
        save_audit(read_history(source), tmp_path / "out")
    assert main([str(source), str(tmp_path / "out")]) == 2
    assert main([str(source)]) == 2
    assert "usage" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

from __future__ import annotations

import csv
import io
import math
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.api.errors import ConfigError
from harness.results.evaluate import evaluate
from reports.inputs import read_run
from reports.render import comparison_grid, grid, latex, markdown, tex_escape, to_csv
from reports.tables import build_tables, columns_of, label_of


def _tables(fake):
    fake.write()
    run = read_run(fake.folder)
    result = evaluate(
        run.scores, run.cells, seed=run.seed, n_boot=200, n_compare=300, seen=run.seen,
        reference=run.record["reference"], audit=run.audit,
    )  # fmt: skip
    return build_tables(run.record, result.metrics, run.test_sets, result.notes), result


def _cell(table, row, column):
    return next(r for r in table.rows if r.name == row).cells[column]


def test_measured_stands_beside_published_with_the_difference(full_run):
    tables, _ = _tables(full_run)
    assert [t.slug for t in tables] == ["cross_generator", "separability", "sensitivity"]
    cell = _cell(tables[0], "blades-oc", "ddim")
    assert cell.beside.number.text == "96.05"
    assert cell.difference == pytest.approx(cell.value - 0.9605)
    assert cell.low <= cell.value <= cell.high
    assert (cell.n_photographic, cell.n_generated) == (200, 200)
    mean = _cell(tables[0], "blades-bc", "mean")
    assert mean.beside.comparable
    assert mean.difference == pytest.approx(mean.value - 0.9186)
    assert _cell(tables[2], "blades-bc", "f_score").beside.number.fraction == 0.91


def test_columns_are_in_the_papers_order_then_by_name():
    labels = [c.label for c in columns_of("accuracy", ["zz", "sdxl", "stylegan2", "aa"])]
    assert labels == ["StyleGAN2", "SDXL", "aa", "zz", "Mean", "Photographic kept"]


def test_a_mean_over_other_generators_is_not_compared(full_run):
    for row in full_run.accuracy.values():
        del row["hps"]
    tables, _ = _tables(full_run)
    mean = _cell(tables[0], "blades-oc", "mean")
    assert mean.beside.number.text == "88.01"
    assert mean.difference is None
    assert _cell(tables[0], "blades-oc", "ddim").difference is not None
    assert "n/c (not comparable): the published mean is over the paper's nine generators" in markdown(grid(tables[0]))


def test_demo_tables_are_stamped_and_compare_nothing(demo_run):
    tables, result = _tables(demo_run)
    for table in tables:
        assert all(c.difference is None for row in table.rows for c in row.cells.values())
        for text in (markdown(grid(table)), latex(grid(table)), to_csv(table)):
            assert "DEMO: embedded corpus, not the paper's data" in text
        assert not any(row.status == "published" for row in table.rows)
    against = comparison_grid(result.comparisons, tables[0].stamps, 300)
    assert "DEMO" in markdown(against)
    assert "DEMO" in latex(against)


def test_rows_say_what_they_are(demo_run):
    tables, _ = _tables(demo_run)
    text = markdown(grid(tables[0]))
    assert "(RANDOM WEIGHTS)" in text
    assert "format-only (audit, not a detector)" in text
    assert "EAL: not run: weights: wrapper" in text
    assert "abstained on 16 of 240 images" in text
    assert "could not be decoded: 2" in text
    assert "Protocol clean: outer" in text
    assert "threshold=in" in text
    assert tables[0].rows[-1].status == "audit"


def test_seen_generators_are_marked_and_unseen_ones_are_not(demo_run):
    tables, _ = _tables(demo_run)
    assert _cell(tables[0], "blades-bc", "convgan").seen
    assert _cell(tables[0], "blades-bc", "mean").seen
    assert not _cell(tables[0], "blades-bc", "vqae").seen
    assert not _cell(tables[0], "blades-bc", "photographic_kept").seen
    assert not _cell(tables[0], "blades-oc", "convgan").seen
    assert "† This row" in markdown(grid(tables[0]))


def _marked(text, sep, detector="BLADES-BC"):
    return [part for line in text.splitlines() if line.strip(" |*").startswith(detector) for part in line.split(sep)]


def test_every_rendering_of_every_kind_marks_what_was_seen(demo_run):
    tables, result = _tables(demo_run)
    assert [t.kind for t in tables] == ["accuracy", "auc", "sensitivity"]
    for table in tables:
        seen = {c.key for c in table.columns if _cell(table, "blades-bc", c.key).seen}
        assert seen == ({"convgan", "mean"} if table.kind != "sensitivity" else {c.key for c in table.columns})
        assert sum("†" in part for part in _marked(markdown(grid(table)), "|")) == len(seen)
        assert sum(r"\dag{}" in part for part in _marked(latex(grid(table)), " & ")) == len(seen)
        rows = list(csv.DictReader(io.StringIO(to_csv(table))))
        assert {r["column"] for r in rows if r["detector"] == "blades-bc" and r["seen"] == "true"} == seen
        assert not any(r["seen"] == "true" for r in rows if r["detector"] != "blades-bc")
        others = [line for line in markdown(grid(table)).splitlines() if line.startswith("| **BLADES-OC")]
        assert others
        assert "†" not in others[0]
        assert r"\dag{} This row" in latex(grid(table))
    against = comparison_grid(result.comparisons, [], 300)
    assert {line[0] for line in against.lines if "†" in line[0]} == {"BLADES-BC †"}
    assert r"BLADES-BC \dag{}" in latex(against)


@pytest.mark.parametrize("note", [None, "Nothing stands beside this: 5 % & more_"])
def test_a_note_of_the_suite_stands_first_under_its_table_and_under_no_other(full_run, note):
    full_run.record["tables"][1]["note"] = note
    tables, _ = _tables(full_run)
    plain = [len(t.notes) for t in tables]
    for table in tables:
        has = table.kind == "auc" and note is not None
        assert (table.notes[0] == note) == has
        assert ("- Nothing stands beside this: 5 % & more\\_" in markdown(grid(table))) == has
        assert (r"5 \% \& more\_\par" in latex(grid(table))) == has
    assert plain[1] == plain[0] + (note is not None)


def test_random_weights_and_edited_images_are_not_compared(full_run):
    full_run.record["detectors"]["blades-oc"]["random_weights"] = True
    tables, _ = _tables(full_run)
    assert _cell(tables[0], "blades-oc", "ddim").difference is None
    assert _cell(tables[0], "blades-bc", "ddim").difference is not None
    full_run.record["edits"] = {"rotate": False, "match_format": {"size": 256, "quality": 90}}
    tables, _ = _tables(full_run)
    assert _cell(tables[0], "blades-bc", "ddim").difference is None


def test_csv_holds_every_cell_at_full_precision(full_run):
    tables, _ = _tables(full_run)
    rows = list(csv.DictReader(io.StringIO(to_csv(tables[0]))))
    assert len(rows) == len(tables[0].rows) * len(tables[0].columns)
    row = next(r for r in rows if r["detector"] == "blades-oc" and r["column"] == "ddim")
    cell = _cell(tables[0], "blades-oc", "ddim")
    assert float(row["measured"]) == cell.value
    assert float(row["difference"]) == cell.difference
    assert row["seen"] == "false"
    published = next(r for r in rows if r["detector"] == "CNND" and r["column"] == "vqgan")
    assert (published["status"], published["published"]) == ("published", "0.9989")


def test_a_suite_without_tables_gets_the_papers_three(full_run):
    full_run.record["tables"] = []
    tables, _ = _tables(full_run)
    assert [t.kind for t in tables] == ["accuracy", "auc", "sensitivity"]


def test_unknown_kinds_and_published_tables_are_errors(full_run):
    full_run.record["tables"] = [{"kind": "recall", "title": "x"}]
    with pytest.raises(ConfigError, match="no kind of table"):
        _tables(full_run)
    full_run.record["tables"] = [{"kind": "auc", "title": "x", "published": "table_99"}]
    with pytest.raises(ConfigError, match="no published table"):
        _tables(full_run)


def test_names_are_the_papers_where_it_has_one():
    assert label_of("blades-oc") == "BLADES-OC"
    assert label_of("farl") == "FaRL"
    assert label_of("mine") == "mine"


@given(st.text())
def test_latex_escapes_any_text_to_ascii_with_balanced_braces(text):
    escaped = tex_escape(text)
    assert escaped.isascii()
    depth, i = 0, 0
    while i < len(escaped):
        if escaped[i] == "\\":
            i += 2
            continue
        assert escaped[i] not in "#%&"
        depth += (escaped[i] == "{") - (escaped[i] == "}")
        assert depth >= 0
        i += 1
    assert depth == 0


@given(st.text(min_size=1))
def test_markdown_cells_stay_in_their_cell(text):
    from reports.render import Grid

    shown = Grid("t", ["a", "b"], [[text, text]], ["sub"], [], [])
    line = markdown(shown).splitlines()[4]
    assert line.startswith("| ")
    assert line.endswith(" |")
    assert len(line.replace("\\\\", "").replace("\\|", "").split("|")) == 4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(demo_run, tmp_path):
    tables, result = _tables(demo_run)
    body = "\n".join(latex(grid(t)) for t in tables) + latex(comparison_grid(result.comparisons, ["a & b"], 300))
    odd = tex_escape('odd: \\ { } $ & # % _ ~ ^ < > [1] – † ± é Ж " | 漢')
    source = "\\documentclass{article}\\usepackage[T1]{fontenc}\\begin{document}\n" + body + odd + "\n\\end{document}\n"
    (tmp_path / "t.tex").write_text(source, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_nothing_stands_for_what_was_not_measured(demo_run):
    tables, _ = _tables(demo_run)
    assert math.isnan(_cell(tables[0], "eal", "convgan").value)
    line = next(x for x in grid(tables[0]).lines if x[0] == "EAL")
    assert line[1] == "not run"
    assert set(line[2:]) == {"–"}

"""A run folder's metrics, tables, figures and page, made from its stored scores and record alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.results.bootstrap import DEFAULT_COMPARISONS, DEFAULT_RESAMPLES
from harness.results.evaluate import evaluate
from harness.results.files import write_atomic
from reports.compare import compare_inputs
from reports.figures import save_figures
from reports.inputs import read_run
from reports.page import render_page
from reports.render import Grid, comparison_grid, grid, latex, markdown, to_csv
from reports.tables import build_tables
from reports.training import make_training_figures, training_folders

if TYPE_CHECKING:
    import pandas as pd


def make_report(run_dir: str | Path) -> list[Path]:
    """Write metrics.csv, comparisons.csv, tables/, figures/ and report.html of a finished run; the paths written.

    Reads scores, cells, audit, manifest and record; needs no model and no image. Made again it gives the same files.

    Raises:
        DataError: the folder is no finished run, or its files contradict each other.
        ConfigError: the record asks for a table that does not exist.
    """
    folder = Path(run_dir)
    run = read_run(folder)
    bootstrap = run.record["bootstrap"]
    n_compare = int(bootstrap.get("comparisons", DEFAULT_COMPARISONS))
    evaluation = evaluate(
        run.scores,
        run.cells,
        seed=run.seed,
        n_boot=int(bootstrap.get("n", DEFAULT_RESAMPLES)),
        n_compare=n_compare,
        seen=run.seen,
        reference=run.record.get("reference"),
        audit=run.audit,
    )
    stamps = [str(s) for s in run.record.get("stamps", ())]
    tables = build_tables(run.record, evaluation.metrics, run.test_sets, evaluation.notes)
    grids = [grid(table) for table in tables]
    paths = [
        _write_frame(folder / "metrics.csv", evaluation.metrics),
        _write_frame(folder / "comparisons.csv", evaluation.comparisons),
    ]
    for table, shown in zip(tables, grids, strict=True):
        paths += _write_grid(folder / "tables", table.slug, shown)
        paths.append(_write(folder / "tables" / f"{table.slug}.csv", to_csv(table)))
    if len(evaluation.comparisons):
        against = comparison_grid(evaluation.comparisons, stamps, n_compare)
        paths += _write_grid(folder / "tables", "comparisons", against)
        paths.append(_write_frame(folder / "tables" / "comparisons.csv", _stamped(evaluation.comparisons, stamps)))
        grids.append(against)
    figures = save_figures(folder / "figures", evaluation.sets, run.record)
    for training in training_folders(folder):
        figures += make_training_figures(training)
    paths += [path for path, _ in figures]
    page = render_page(run, evaluation.metrics, grids, figures, compare_inputs(run, sets=evaluation.sets))
    paths.append(_write(folder / "report.html", page))
    return paths


def _write_grid(folder: Path, name: str, shown: Grid) -> list[Path]:
    return [_write(folder / f"{name}.md", markdown(shown)), _write(folder / f"{name}.tex", latex(shown))]


def _stamped(table: pd.DataFrame, stamps: list[str]) -> pd.DataFrame:
    return table.assign(stamps="; ".join(stamps))


def _write_frame(path: Path, table: pd.DataFrame) -> Path:
    return _write(path, table.to_csv(index=False, lineterminator="\n"))


def _write(path: Path, text: str) -> Path:
    write_atomic(path, text.encode())
    return path

"""``report`` and ``compare``: from stored scores alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import ConfigError, DataError, HarnessError
from harness.data.tables import is_table, read_table, write_table

if TYPE_CHECKING:
    from harness.engine.suite import Suite
    from harness.results.training import TrainingFolder

_UNFINISHED = "name a folder below runs/SUITE-PROFILE/; where its run was interrupted, run the suite again"


def check_run_dir(folder: Path) -> Path:
    """The folder, when it is a run folder.

    Raises:
        DataError: it is not there, or holds no record and scores (an interrupted run).
    """
    if not folder.is_dir():
        raise DataError("the run folder is not there", where=folder, fix="name runs/SUITE-PROFILE/RUN_ID")
    for name in ("record.json", "scores.parquet", "cells.parquet"):
        if not is_table(folder / name):
            raise DataError(f"not a finished run folder: {name} is missing", where=folder, fix=_UNFINISHED)
    return folder


def check_tables(suite: Suite) -> None:
    """Refuse a suite that names a published table which is not there, before anything is computed.

    Raises:
        ConfigError: says the table and the nearest known one.
    """
    from harness.api.registry import unknown
    from reports.published import names

    for index, table in enumerate(suite.tables):
        if table.published is not None and table.published not in names():
            raise unknown("published table", table.published, list(names()), where=f"tables.{index}.published")


def audit_warnings(folder: Path) -> list[str]:
    """Run the format audit on a run folder (``audit.parquet``); one sentence a test set that metadata separate."""
    from harness.data.audit import AUDITED, format_audit_scores, separations
    from harness.data.edits import InputEdits
    from harness.data.manifest import read_manifest

    record = read_record(folder)
    edits = InputEdits.model_validate(record["edits"])
    manifest, cells = read_manifest(folder / "manifest.parquet", AUDITED), read_table(folder / "cells.parquet")
    audit = format_audit_scores(manifest, cells, record["bootstrap"]["seed"], edits=edits)
    write_table([audit], folder / "audit.parquet", rows=len(audit), by="test_set")
    return [s.message for s in separations(audit) if s.warns]


def remake(folder: Path) -> list[Path]:
    """Make metrics, tables, figures and page of a run folder, and the audit where it is not there; files written."""
    from reports.report import make_report

    if not is_table(check_run_dir(folder) / "audit.parquet"):
        audit_warnings(folder)
    return make_report(folder)


def tables_text(folder: Path) -> str:
    """The tables of a run for a terminal, in the suite's order; their legends stay in the files."""
    wanted = [str(table.get("published") or table["kind"]) for table in read_record(folder)["tables"]]
    paths = sorted((folder / "tables").glob("*.md"), key=lambda p: (_place(p.stem, wanted), p.stem))
    parts = []
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines()
        shown = [re.sub(r"\\([_*|~])", r"\1", line) for line in lines if not line.startswith("- ")]
        parts.append(re.sub(r"\n{3,}", "\n\n", "\n".join(shown)).strip())
    legend = f"what the columns and marks mean: {folder / 'tables'}/*.md, or the page"
    return "\n\n".join([*parts, legend])


def _place(stem: str, wanted: Sequence[str]) -> int:
    return wanted.index(stem) if stem in wanted else len(wanted)


def log_folder(folder: Path, tracking_uri: str | None) -> str:
    """Log a folder of a run, a training or a sweep to MLflow; the command that opens the UI.

    Raises:
        HarnessError: the tracking server or store cannot be reached.
    """
    from harness.results.sweep import is_sweep_folder
    from harness.results.training import is_training
    from harness.track import default_tracking_uri, log_run
    from harness.track.sweep import log_sweep
    from harness.track.training import log_training

    log = log_training if is_training(folder) else log_sweep if is_sweep_folder(folder) else log_run
    return log(folder, tracking_uri or default_tracking_uri(folder)).ui_command


def report_runs(folders: Sequence[Path], *, log: bool, tracking_uri: str | None, out: Path | None = None) -> None:
    """Remake each folder's report (of a training or a sweep, its figures), and log it where asked. Reports of several
    trainings become one table, written into ``out`` where that is given.

    Raises:
        HarnessError: the first folder that is none of these, or the tracking store's error.
        ConfigError: ``out`` with no training that was reported on.
    """
    from harness.results.sweep import is_sweep_folder, read_sweep
    from harness.results.training import is_training, read_training
    from reports.sweep import make_sweep_figures
    from reports.training import make_training_figures, report_text

    trainings, sweeps = {}, set()
    for folder in folders:
        if is_training(folder):
            trainings[folder] = read_training(folder)
        elif is_sweep_folder(folder):
            sweeps.add(read_sweep(folder).folder)
        else:
            check_run_dir(folder)
    table = _trainings_table(list(trainings.values()), out)
    for folder in folders:
        if folder in trainings:
            print("\n".join(f"figure: {path}" for path, _ in make_training_figures(folder)))
            if len(folders) == 1 and len(trainings[folder].report):
                print(report_text(trainings[folder].report))
        elif folder in sweeps:
            print("\n".join(f"figure: {path}" for path, _ in make_sweep_figures(folder)))
        else:
            remake(folder)
            print(tables_text(folder))
            print(f"page: {folder / 'report.html'}")
        if log:
            print(f"MLflow: {log_folder(folder, tracking_uri)}")
    if table:
        print(table)


def _trainings_table(trainings: Sequence[TrainingFolder], out: Path | None) -> str:
    """One table of several trainings, or of any number where it is to be written; nothing where there is none."""
    from reports.trainings import markdown, summarise, write_summary

    summary = summarise(trainings) if out is not None or len(trainings) > 1 else None
    if summary is None:
        if out is not None:
            fix = "name folders of trainings that were made with `harness train RECIPE --report`"
            raise ConfigError("--out has nothing to hold: no folder is a training with a report", out, fix)
        return ""
    written = [] if out is None else [f"table: {path}" for path in write_summary(summary, out)]
    return "\n".join([markdown(summary).rstrip(), *written])


def compare_run(folder: Path, table: str | None) -> tuple[Any, str, int]:
    """Document, text and exit code of measured against published."""
    from reports.compare import compare

    result = compare(check_run_dir(folder), table)
    return result.document(), result.text(), result.exit_code


def read_record(folder: Path) -> dict[str, Any]:
    """``record.json`` of a run folder.

    Raises:
        HarnessError: unreadable.
    """
    try:
        content: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        return content
    except (OSError, ValueError) as error:
        raise HarnessError(f"cannot read the record: {error}", where=folder / "record.json") from error

"""What a run says of itself: its record at the start and at the end, and the stamps on every table and figure."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.engine.rows import PreparedRow, describe
from harness.engine.suite import Suite

if TYPE_CHECKING:
    from harness.data.edits import InputEdits
    from harness.engine.data import RunData
    from harness.engine.execute import Outcome
    from harness.engine.plan import Settings
    from harness.results.record import Record
    from harness.verbs.run import RunRequest


def stamps(request: RunRequest, suite: Suite, rows: list[PreparedRow], skipped: int) -> list[str]:
    """What every table and figure of this run must say."""
    out = []
    if suite.profile == "demo":
        out.append("DEMO: embedded corpus or demo sizes, not the paper's data")
    partial = []
    if request.limit is not None:
        partial.append(f"at most {request.limit} generated images a generator")
    if request.detectors is not None:
        partial.append(f"only rows {', '.join(request.detectors)}")
    absent = [row.name for row in rows if row.missing is not None]
    if absent:
        partial.append(f"no weights for {', '.join(absent)}")
    if skipped:
        partial.append(f"{skipped} undecodable images left out")
    if partial:
        out.append(f"PARTIAL: {'; '.join(partial)}")
    random = [row.name for row in rows if row.random]
    if random:
        out.append(f"RANDOM WEIGHTS: {', '.join(random)}")
    if request.settings:
        out.append(f"CHANGED: {' '.join(request.settings)}")
    if request.match_format:
        out.append(f"FORMAT MATCHED: {request.match_format}")
    return out


def _changed_options(settings: Sequence[str], row: str) -> list[str]:
    """Options of a row that ``--set`` changed (its weights aside): such a row is not the published detector."""
    words = [setting.partition("=")[0].strip().removeprefix("detectors.").split(".") for setting in settings]
    return [".".join(w[1:]) for w in words if w[0] == row and w[1:2] != ["weights"]]


def first_record(
    request: RunRequest, suite: Suite, rows: list[PreparedRow], data: RunData, settings: Settings, edits: InputEdits,
    run_id: str,
) -> Record:  # fmt: skip
    """What is known before anything is computed."""
    from harness.results.record import DetectorRecord, Record, environment, now

    detectors = {}
    for row in rows:
        entry = DetectorRecord.model_validate(describe(row))
        entry.changed = _changed_options(request.settings, row.name)
        if row.missing:
            entry.status, entry.message = "missing", row.missing
        detectors[row.name] = entry
    return Record(
        run_id=run_id, suite=suite.suite, suite_version=suite.version, title=suite.title, profile=suite.profile,
        started=now(), command=["harness", *sys.argv[1:]], protocol=suite.switches.model_dump(mode="json"),
        protocol_base=str(suite.protocol.get("base", "paper")), edits=edits.model_dump(mode="json"),
        stamps=stamps(request, suite, rows, data.skipped), detectors=detectors, reference=suite.reference,
        bootstrap=suite.bootstrap.model_dump(), tables=[t.model_dump(mode="json") for t in suite.tables],
        skipped_images=data.skipped, notes=list(data.notes),
        images=data.draws.counts(), environment=environment(settings.device, settings.threads),
    )  # fmt: skip


def finished(record: Record, outcome: Outcome, started: float) -> Record:
    """The same with how it went; ``started`` on the monotonic clock."""
    from harness.results.record import now

    for name, failure in outcome.failures.items():
        entry = record.detectors[name]
        entry.status, entry.message, entry.traceback = "failed", failure["message"], failure["traceback"]
    for name, value in outcome.thresholds.items():
        record.detectors[name].threshold = value
    for entry in record.detectors.values():
        for weights in entry.weights.values():
            made = outcome.recipes.get(weights["identity"]) if weights["kind"] == "recipe" else None
            if made is not None:
                weights["identity"] = made["sha256"]
    record.failures = [{"row": n, "message": f["message"]} for n, f in outcome.failures.items()]
    record.set_aside = outcome.set_aside
    if outcome.set_aside:
        images = len({entry["sha256"] for entry in outcome.set_aside})
        rows = ", ".join(dict.fromkeys(entry["row"] for entry in outcome.set_aside))
        record.stamps.append(f"PARTIAL: {images} images that ended every worker have no score ({rows})")
    record.computed, record.recipes, record.warnings = outcome.computed, outcome.recipes, outcome.warnings
    record.finished = now()
    record.timings["total_seconds"] = round(time.monotonic() - started, 3)
    return record

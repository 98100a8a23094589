"""``run``: suite -> data -> plan -> execution -> run folder -> tables, figures, page -> MLflow."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import ConfigError, DataError, HarnessError, WeightsError
from harness.api.events import Event, Listener
from harness.engine.rows import PreparedRow, prepare_rows
from harness.engine.suite import Suite, load_suite
from harness.results.files import require_writable, to_json, write_atomic
from harness.verbs.progress import Progress, clock
from harness.verbs.run_record import finished, first_record

if TYPE_CHECKING:
    from harness.data.edits import InputEdits
    from harness.engine.data import RunData
    from harness.engine.execute import Outcome
    from harness.engine.plan import Plan, Settings
    from harness.results.record import Record
    from harness.results.store import Store


@dataclass(frozen=True)
class RunRequest:
    """What the user asked for; the command line's options, one to one."""

    suite: str
    profile: str | None = None
    protocol: str | None = None
    data_root: Path | None = None
    manifest: Path | None = None
    out: Path = Path("runs")
    settings: tuple[str, ...] = ()
    detectors: tuple[str, ...] | None = None
    limit: int | None = None
    engine: str | None = None
    ray_address: str | None = None
    require_all: bool = False
    dry_run: bool = False
    match_format: str | None = None
    rotate: bool = False
    on_bad_image: str = "stop"
    workers: int | None = None
    threads: int | None = None
    allow_outside: bool = False
    device: str = "auto"
    batch_size: str | None = None
    store: Path = Path(".blades-store")
    weights_root: Path = Path("pretrained")
    tracking_uri: str | None = None
    every: int = 500


@dataclass
class RunResult:
    """How it ended: exit code, the run folder (None for a dry run), failed rows, images set aside, the plan, the
    MLflow command."""

    exit_code: int
    run_dir: Path | None = None
    failed: dict[str, str] = field(default_factory=dict)
    set_aside: list[dict[str, str]] = field(default_factory=list)
    plan: list[dict[str, Any]] = field(default_factory=list)
    computed: int = 0
    ui_command: str | None = None

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "exit_code": self.exit_code, "run_dir": None if self.run_dir is None else str(self.run_dir),
            "failed": self.failed, "set_aside": self.set_aside, "plan": self.plan, "computed_images": self.computed,
            "mlflow_ui": self.ui_command,
        }  # fmt: skip


def _settle_profile(request: RunRequest, say: Listener) -> tuple[str, Path | None]:
    """Profile and data root; None stands for the demo corpus, which is made."""
    if request.data_root is not None:
        if not request.data_root.is_dir():
            raise DataError("the data root is not there", where=request.data_root, fix="check --data-root")
        return request.profile or "full", request.data_root
    default = Path("data")
    if request.profile is None:
        profile = "full" if default.is_dir() else "demo"
        why = "./data exists" if profile == "full" else "there is no ./data: this is the embedded demo corpus"
        say(Event("note", {"text": f"profile {profile}, because {why} (say --profile or --data-root to choose)"}))
    else:
        profile = request.profile
    if profile == "full":
        if not default.is_dir():
            raise DataError(
                "there is no ./data", where=Path.cwd(), fix="name the images with --data-root, or --profile demo"
            )
        return profile, default
    return profile, None


def demo_root(store: Path, emit: Listener) -> Path:
    """The demo corpus, made once beside the store and used again."""
    from harness.data.demo import build_demo
    from harness.data.demo.labels import write_demo_labels
    from harness.data.exif.vocabulary import load_vocabulary
    from harness.verbs.data_exif import shipped_vocabulary

    def progress(done: int, total: int) -> None:
        emit(Event("progress", {"stage": "demo corpus", "done": done, "total": total, "unit": "images"}))

    emit(Event("note", {"text": "demo corpus: rendered photographs and images of small neural generators"}))
    workers = min(2, len(os.sched_getaffinity(0)))
    root = build_demo(store / "demo-corpus", workers=workers, progress=progress)
    write_demo_labels(root, load_vocabulary(shipped_vocabulary()))
    return root


def _edits(request: RunRequest) -> InputEdits:
    from harness.data.edits import InputEdits, MatchFormat

    matched = None if request.match_format is None else MatchFormat.parse(request.match_format)
    return InputEdits(match_format=matched, rotate=request.rotate)


def _settings(request: RunRequest, suite: Suite) -> Settings:
    from harness.engine.engines import check_engine
    from harness.engine.execute import with_device
    from harness.engine.plan import Settings, edits_key
    from harness.engine.probe import check_probe

    batch = None
    if request.batch_size is not None and request.batch_size != "auto":
        if not request.batch_size.isdecimal() or int(request.batch_size) < 1:
            raise ConfigError(f"--batch-size {request.batch_size!r}", fix="a whole number of at least 1, or auto")
        batch = int(request.batch_size)
    threads = request.threads or suite.execution.threads or len(os.sched_getaffinity(0))
    engine = request.engine or suite.execution.engine
    check_engine(engine, request.ray_address, request.device)
    there = engine == "ray" and request.device == "cuda"  # on the cluster's machines, not needed on this one
    device = "cuda" if there else with_device(request.device)
    if request.batch_size == "auto":
        check_probe(device)
    return Settings(device, threads, batch, edits_key(_edits(request)), request.weights_root)


def _say_missing(rows: list[PreparedRow], emit: Listener, require_all: bool) -> None:
    missing = [(row.name, row.missing) for row in rows if row.missing is not None]
    if not missing:
        return
    lines = "\n".join(f"  {name}: {text}" for name, text in missing)
    if require_all:
        raise WeightsError(
            f"{len(missing)} rows lack weights:\n{lines}", fix="get the files, or leave --require-all out"
        )
    hint = "the other rows go on; `--set ROW.weights=random` runs a row with random weights, and says so everywhere"
    emit(Event("warning", {"text": f"{len(missing)} rows lack weights and are not run:\n{lines}\n  {hint}"}))


def plan_text(summary: Sequence[Mapping[str, Any]]) -> str:
    """The plan for people: stored, to do, hours, GB."""
    if not summary:
        return "nothing to compute: no row of the suite can run here"
    lines = [f"{'stage':<34} {'stored':>9} {'to do':>9} {'hours':>8} {'GB':>8}"]
    for row in summary:
        name = f"{row['stage']} ({', '.join(dict.fromkeys(row['rows']))})" if row["rows"] else row["stage"]
        hours = "?" if row["hours"] is None else f"{row['hours']:.2f}"
        lines.append(f"{name[:34]:<34} {row['stored']:>9,} {row['to_do']:>9,} {hours:>8} {row['gigabytes']:>8.3f}")
    if any(row["hours"] is None for row in summary):
        lines.append("hours ?: this stage was never measured on this store; the run prints its rate")
    return "\n".join(lines)


def _run_id() -> str:
    return f"{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def _data(
    request: RunRequest, suite: Suite, root: Path, rows: list[PreparedRow], store: Store, say: Listener
) -> RunData:
    """The images: read and checked now, or as a manifest has them."""
    from harness.engine.data import prepare_data
    from harness.engine.written import written_data

    if request.manifest is not None:
        return written_data(
            suite, root, request.manifest, rows, settings=request.settings, limit=request.limit,
            allow_outside=request.allow_outside, on_bad_image=request.on_bad_image, emit=say,
        )  # fmt: skip
    return prepare_data(
        suite, root, store, seen=[g for row in rows for g in row.trains_on],
        known=[g for row in rows for g in row.trained_on], limit=request.limit, allow_outside=request.allow_outside,
        on_bad_image=request.on_bad_image, workers=request.workers, emit=say,
    )  # fmt: skip


def _write_tables(folder: Path, suite: Suite, data: RunData, plan: Plan, outcome: Outcome) -> str:
    """The tables and the resolved suite; the digest of the manifest."""
    import yaml

    from harness.engine.frames import write_cells, write_scores

    write_scores(outcome.scores, folder / "scores.parquet")
    write_cells(plan, folder / "cells.parquet")
    text = yaml.safe_dump(suite.document(), sort_keys=False, allow_unicode=True)
    write_atomic(folder / "suite.resolved.yaml", text.encode())
    return data.put_manifest(folder / "manifest.parquet")


def _audit(folder: Path, say: Listener) -> list[str]:
    """Run the format audit of a run folder; its warnings, said loudly."""
    from harness.verbs.report import audit_warnings

    found = audit_warnings(folder)
    if found:
        lines = "\n".join(f"  {text}" for text in found)
        hint = "a detector may score high here by reading the format; see the row format-only, and try --match-format"
        say(Event("warning", {"text": f"FORMAT LEAKAGE\n{lines}\n  {hint}"}))
    return found


def run_suite(request: RunRequest, *, quiet: bool = False, emit: Listener | None = None) -> RunResult:
    """Run a suite as the command line does (see ``harness run --help``).

    Raises:
        HarnessError: bad input; nothing that was computed is lost.
    """
    from harness.engine.engines import make_engine
    from harness.engine.execute import Executor, check_disk, check_weights
    from harness.engine.images import Reader
    from harness.engine.origins import origin_warnings
    from harness.engine.plan import make_plan, plan_summary
    from harness.results.digests import HexDigests
    from harness.results.store import Store
    from harness.verbs.report import check_tables
    from harness.verbs.train import record_trainings

    started = time.monotonic()
    say = emit or Progress()
    profile, root = _settle_profile(request, say)
    if root is None and request.manifest is not None:
        raise ConfigError("--manifest needs the folder that its images lie in", fix="name it with --data-root")
    suite = load_suite(
        request.suite,
        profile=profile,
        protocol=request.protocol,
        settings=request.settings,
        detectors=request.detectors,
    )
    check_tables(suite)
    settings = _settings(request, suite)
    rows = prepare_rows(suite, request.weights_root)
    _say_missing(rows, say, request.require_all)
    reading = request.dry_run and root is not None  # the demo's corpus is made beside the store, and so is the store
    store = Store(request.store, warn=lambda text: say(Event("warning", {"text": text})), read_only=reading)
    if not request.dry_run:
        require_writable(request.out / "record.json")
    data = _data(request, suite, root if root is not None else demo_root(request.store, say), rows, store, say)
    unsure = origin_warnings(rows, data.manifest, data.images)
    for text in unsure:
        say(Event("warning", {"text": text}))
    if request.batch_size == "auto":
        from harness.engine.probe import with_probed_batches

        rows = with_probed_batches(rows, settings.device, say)
    plan = make_plan(suite, rows, data.manifest, data.root, data.draws, data.cell_rows, store, settings, data.images)
    rows = [replace(row, missing=plan.untrainable.get(row.name, row.missing)) for row in rows]
    _say_missing([row for row in rows if row.name in plan.untrainable], say, request.require_all)
    summary = plan_summary(plan, store)
    say(Event("note", {"text": plan_text(summary)}))
    if request.dry_run:
        return RunResult(0, plan=summary)
    check_disk(plan, store)
    check_weights(plan)
    run_id = _run_id()
    folder = request.out / f"{suite.suite}-{suite.profile}" / run_id
    edits = _edits(request)
    record = first_record(request, suite, rows, data, settings, edits, run_id)
    workers = suite.execution.workers if request.workers is None else request.workers
    reader = Reader(data.root.resolve(), data.manifest["path"].array, HexDigests(data.images), edits)
    named = request.engine or suite.execution.engine
    with make_engine(named, plan, store, reader, say, suite.execution, workers, request.ray_address) as engine:
        # a cluster that is refused leaves no run folder
        write_atomic(folder / "record.json", to_json(record.model_dump(mode="json")))
        outcome = Executor(plan, store, reader, say, workers, engine, request.every).run(folder / "fitted")
    record.timings["engine_start_seconds"] = round(engine.start_seconds, 3)
    record.manifest_sha256 = _write_tables(folder, suite, data, plan, outcome)
    record_trainings(folder, plan, store, record.stamps)
    outcome.warnings += [*unsure, *_audit(folder, say)]
    record = finished(record, outcome, started)
    write_atomic(folder / "record.json", to_json(record.model_dump(mode="json")))
    computed = sum(outcome.computed.values())
    text = f"computed {computed:,} images, all else was stored" if computed else "computed nothing: all was stored"
    say(Event("note", {"text": f"{text} ({clock(time.monotonic() - started)})"}))
    return _publish(request, folder, record, summary, computed, say, quiet)


def _publish(
    request: RunRequest,
    folder: Path,
    record: Record,
    summary: list[dict[str, Any]],
    computed: int,
    say: Listener,
    quiet: bool,
) -> RunResult:
    from harness.verbs.report import log_folder, remake, tables_text

    remake(folder)
    if not quiet:
        print(tables_text(folder))
    ui = None
    if request.tracking_uri != "off":
        try:
            ui = log_folder(folder, request.tracking_uri)
        except HarnessError as error:
            say(Event("warning", {"text": f"not logged to MLflow: {error}\n  later: harness report {folder} --log"}))
    failed = {n: d.message for n, d in record.detectors.items() if d.status != "ok"}
    if not quiet:
        lines = [f"run folder: {folder}", f"page:       {folder / 'report.html'}"]
        lines += [f"MLflow:     {ui}"] if ui else []
        lines += [f"not done:   {name}: {message}" for name, message in failed.items()]
        lines += [f"set aside:  {e['path']} ({e['row']}): {e['why']}" for e in record.set_aside]
        print("\n".join(lines))
    return RunResult(3 if failed or record.set_aside else 0, folder, failed, record.set_aside, summary, computed, ui)


def run(suite: str | Path, **options: Any) -> RunResult:
    """Run a suite from Python: the same options as :class:`RunRequest`, prints nothing but progress.

    Raises:
        ConfigError: an option that does not exist.
        HarnessError: as :func:`run_suite`.
    """
    from dataclasses import fields

    from harness.api.registry import unknown

    known = [f.name for f in fields(RunRequest)]
    for name in options:
        if name not in known:
            raise unknown("option of run:", name, known)
    for name in ("data_root", "manifest", "out", "store", "weights_root"):
        if options.get(name) is not None:
            options[name] = Path(options[name])
    for name in ("settings", "detectors"):
        if options.get(name) is not None:
            options[name] = tuple(options[name])
    return run_suite(RunRequest(suite=str(suite), **options), quiet=True)

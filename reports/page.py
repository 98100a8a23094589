"""The report of a run as one HTML file that needs nothing else: no scripts, no links outside, figures inline."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.layouts import display_name
from harness.results.evaluate import AUDIT, MEAN
from reports.compare import NOT_COMPARABLE, Comparison
from reports.inputs import RunInputs
from reports.render import NONE, Grid, number
from reports.tables import SEEN, SEEN_NOTE, generator_order, label_of, protocol_line

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True)
class CellText:
    """A cell of a table: its number, and the interval apart so that it can stand below."""

    main: str
    interval: str = ""

    @classmethod
    def of(cls, text: str) -> CellText:
        """Split "88.01 [87.3, 88.7] †" into number with mark, and interval."""
        found = re.fullmatch(r"([-+]?[\d.]+) (\[[^\]]*\])( †)?", text)
        return cls(text) if found is None else cls(found[1] + (found[3] or ""), found[2])


def render_page(
    run: RunInputs,
    metrics: pd.DataFrame,
    grids: Sequence[Grid],
    figures: Sequence[tuple[Path, str]],
    comparison: Comparison,
) -> str:
    """The page's HTML. Every text from the run is escaped.

    Args:
        metrics: `Evaluation.metrics`.
        figures: PNG files with captions, ROC curves first.
    """
    record = run.record
    return _template().render(
        title=record.get("title") or record["suite"],
        suite=record["suite"],
        profile=record["profile"],
        run_id=record["run_id"],
        finished=record.get("finished", ""),
        stamps=record.get("stamps", []),
        verdict=comparison.verdict,
        verdict_text=_verdict_text(comparison),
        verdict_reasons=comparison.reasons,
        numbers=_numbers(comparison),
        detectors=_detectors(record, metrics),
        data=_data(run),
        warnings=[*record.get("warnings", []), *record.get("notes", [])],
        grids=[_grid(grid) for grid in grids],
        figures=_figures(figures),
        record=_record(record),
        failures=record.get("failures", []),
        raw=json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False),
    )


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _verdict_text(comparison: Comparison) -> str:
    if not comparison.rows:
        return "No published number stands beside a number of this run."
    total = len(comparison.rows)
    counts = {
        v: sum(r.verdict == v for r in comparison.rows) for v in dict.fromkeys(r.verdict for r in comparison.rows)
    }
    listed = ", ".join(f"{n} {v}" for v, n in counts.items())
    tolerance = ", ".join(f"±{t * 100:.2f}" for t in dict.fromkeys(r.tolerance for r in comparison.rows))
    text = f"{total} published numbers stand beside rows of this run: {listed} (tolerance {tolerance} points)."
    return f"{text} {SEEN_NOTE}" if any(r.seen for r in comparison.rows) else text


def _numbers(comparison: Comparison) -> list[dict[str, str]]:
    """Each published number that could be compared, in percent."""
    out = []
    for r in comparison.rows:
        if r.verdict == NOT_COMPARABLE:
            continue
        known = not math.isnan(r.difference)
        out.append({
            "row": label_of(r.row), "number": f"{r.table}: {r.column}{SEEN if r.seen else ''}",
            "published": number(r.published, "%"), "measured": number(r.measured, "%"),
            "difference": f"{r.difference * 100:+.2f}" if known else NONE,
            "interval": f"[{r.low95 * 100:+.2f}, {r.high95 * 100:+.2f}]" if known else NONE,
            "verdict": r.verdict if known else f"{r.verdict}: {r.reason}",
        })  # fmt: skip
    return out


def _detectors(record: Mapping[str, Any], metrics: pd.DataFrame) -> list[dict[str, Any]]:
    means = {
        (str(r.detector), str(r.metric)): (float(str(r.value)), bool(r.seen))
        for r in metrics[metrics["test_set"] == MEAN].itertuples(index=False)
    }

    def mean(name: str, metric: str) -> str:
        value, seen = means.get((name, metric), (float("nan"), False))
        return number(value, "%") + (SEEN if seen else "")

    out = []
    for name, entry in record["detectors"].items():
        threshold = entry.get("threshold")
        seen = ", ".join(display_name(g) for g in entry.get("seen") or ())
        outcome = " ".join(f"{entry.get('status', 'ok')}. {entry.get('message') or ''}".split()).rstrip(".")
        out.append({
            "label": label_of(name) + (" (RANDOM WEIGHTS)" if entry.get("random_weights") else ""),
            "outcome": outcome + (f"; trained on {seen}" if seen else ""),
            "weights": _weights(entry.get("weights") or {}),
            "threshold": NONE if threshold is None else f"{float(threshold):.6g}",
            "accuracy": mean(name, "accuracy"), "auc": mean(name, "auc"), "audit": False,
        })  # fmt: skip
    if (AUDIT, "auc") in means:
        what = "audit, not a detector: what file metadata alone give"
        out.append({"label": AUDIT, "outcome": what, "weights": NONE, "threshold": NONE,
                    "accuracy": mean(AUDIT, "accuracy"), "auc": mean(AUDIT, "auc"), "audit": True})  # fmt: skip
    return out


def _weights(weights: Mapping[str, Any]) -> str:
    """One short line: each slot with the start of its digest."""
    parts = []
    for slot, value in weights.items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
        digest = re.search(r"[0-9a-f]{64}", text)
        parts.append(f"{slot}: sha256 {digest[0][:12]}…" if digest else f"{slot}: {text[:80]}")
    return "; ".join(parts) or NONE


def _data(run: RunInputs) -> list[tuple[str, str]]:
    out = []
    for name in generator_order(run.test_sets):
        labels = run.cells.loc[run.cells["test_set"] == name, "label"]
        counts = f"{int((labels == 0).sum()):,} photographic + {int((labels == 1).sum()):,} generated"
        out.append((display_name(name), counts))
    if run.manifest is not None:
        splits = run.manifest["split"].astype(str).value_counts().sort_index()
        out.append(("Images by split", ", ".join(f"{name} {count:,}" for name, count in splits.items())))
    out.append(("Not decodable, left out", str(run.record.get("skipped_images", 0))))
    if run.record.get("manifest_sha256"):
        out.append(("Manifest", f"sha256 {run.record['manifest_sha256']}"))
    return out


def _record(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    environment = record.get("environment") or {}
    packages = environment.get("packages") or {}
    rest = {k: v for k, v in environment.items() if k != "packages" and v is not None}
    return [
        ("Protocol", protocol_line(record)),
        ("Edits of the input", ", ".join(f"{k} {v}" for k, v in (record.get("edits") or {}).items() if v) or "none"),
        ("Command", " ".join(map(str, record.get("command") or ())) or NONE),
        ("Bootstrap", ", ".join(f"{k} {v}" for k, v in record["bootstrap"].items())),
        ("Timings", ", ".join(f"{k} {v}" for k, v in (record.get("timings") or {}).items()) or NONE),
        ("Environment", ", ".join(f"{k} {v}" for k, v in rest.items()) or NONE),
        ("Packages", ", ".join(f"{k} {v}" for k, v in packages.items()) or NONE),
    ]


def _grid(grid: Grid) -> dict[str, Any]:
    rows = [
        ([cells[0], *(CellText.of(cell) for cell in cells[1:])], style)
        for cells, style in zip(grid.lines, grid.styles, strict=True)
    ]
    return {"title": grid.title, "stamps": grid.stamps, "header": grid.header, "rows": rows, "notes": grid.notes}


def _figures(figures: Sequence[tuple[Path, str]]) -> list[dict[str, Any]]:
    groups = {"ROC curves": [], "Scores": [], "Training": []}  # type: dict[str, list[dict[str, Any]]]
    for path, caption in figures:
        data = path.read_bytes()
        width, height = struct.unpack(">II", data[16:24])  # the PNG header's size
        image = {"data": base64.b64encode(data).decode(), "caption": caption, "width": width, "height": height}
        groups[_group(path)].append(image)
    return [{"title": title, "images": images, "wide": title != "ROC curves"} for title, images in groups.items()]


def _group(path: Path) -> str:
    if path.parts[-4:-3] == ("training",):  # training/<recipe>/figures/<name>.png
        return "Training"
    return "ROC curves" if path.name.startswith("roc-") else "Scores"

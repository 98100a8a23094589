"""``detectors list|show|check``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.contract import Chain, FixedThreshold
from harness.api.errors import HarnessError
from harness.api.registry import detector_class, make_detector, registrations

if TYPE_CHECKING:
    from harness.engine.cost import Cost


def listing(as_json: bool) -> tuple[Any, bool, str]:
    """Name, package and title; a broken plugin is listed with what is wrong."""
    rows = []
    for name, entry in registrations().items():
        try:
            title = detector_class(name).facts.title
        except HarnessError as error:
            title = f"BROKEN: {error.what}"
        rows.append({"detector": name, "package": entry.distribution, "target": entry.target, "title": title})
    width = max((len(r["detector"]) for r in rows), default=0)
    return rows, as_json, "\n".join(f"{r['detector']:<{width}}  {r['package']:<14}  {r['title']}" for r in rows)


def _chain_lines(chain: Chain) -> dict[str, str]:
    rule = chain.threshold
    said = (
        f"fixed {rule.value}"
        if isinstance(rule, FixedThreshold)
        else f"{rule.fpr:.0%} of photographs, {rule.calibration}"
    )
    return {
        "preprocess": repr(chain.preprocess),
        "transforms": ", ".join(repr(t) for t in chain.transforms) or "none",
        "extractor": f"{chain.extractor!r} -> {chain.extractor.dim} features",
        "head": repr(chain.head),
        "threshold": said,
    }


def _size_lines(cost: Cost, counted: str) -> list[str]:
    """Parameters and FLOPs for people, a line each, with the stages where there are several."""

    def line(what: str, total: int | None, parts: list[int | None], otherwise: str) -> str:
        words = ["?" if part is None else f"{part:,}" for part in parts]
        each = ", ".join(f"{stage.stage} {word}" for stage, word in zip(cost.stages, words, strict=True))
        said = otherwise if total is None else f"{total:,}"
        return f"  {what:<10} {said}" + (f" ({each})" if len(parts) > 1 and total is not None else "")

    lines = [line("parameters", cost.parameters, [stage.parameters for stage in cost.stages], "not stated")]
    lines.append(line("FLOPs", cost.flops, [s.flops for s in cost.stages], f"not counted: {cost.reason}"))
    return lines + ([f"             of {counted}"] if cost.flops is not None else [])


def show(name: str, weights_root: Path, as_json: bool, *, flops: bool = True) -> tuple[Any, bool, str]:
    """Facts, chain, parameters, FLOPs, options with defaults, and each weights file with whether it is here.

    ``flops`` builds the networks with random weights and runs each once: seconds.
    """
    from harness.engine.cost import COUNTED, cost_of

    detector = make_detector(name)
    facts, chain = detector.facts, Chain.of(detector)
    cost = cost_of(chain, flops=flops)
    files = []
    for slot, official in detector.weights_files.items():
        here = weights_root / official.name
        files.append({
            "slot": slot, "file": official.name, "where": official.where, "licence": official.licence,
            "sha256": official.sha256, "path": str(here), "here": here.is_file(),
        })  # fmt: skip
    options = {key: field.default for key, field in type(detector).Options.model_fields.items()}
    document: dict[str, Any] = {
        "detector": name, "title": facts.title, "citation": facts.citation, "code": facts.code,
        "licence": facts.licence, "published_row": facts.published_row, "notes": list(facts.notes),
        "chain": _chain_lines(chain),
        "size": {
            "parameters": cost.parameters, "flops": cost.flops, "flops_of": COUNTED,
            "flops_not_counted": cost.reason or None, "stages": [asdict(stage) for stage in cost.stages],
        },
        "options": {k: v if isinstance(v, str | int | float | bool | None) else str(v) for k, v in options.items()},
        "weights": files,
    }  # fmt: skip
    lines = [f"{name}: {facts.title}", f"  citation  {facts.citation}", f"  code      {facts.code}"]
    lines += [f"  licence   {facts.licence}", *(f"  note      {note}" for note in facts.notes), "chain"]
    lines += [f"  {key:<10} {value}" for key, value in document["chain"].items()]
    lines += ["size (transforms and extractor)", *_size_lines(cost, COUNTED)]
    lines += ["options", *([f"  {key} = {value!r}" for key, value in document["options"].items()] or ["  none"])]
    lines += ["weights"] if files else ["weights", "  none"]
    for file in files:
        state = "here" if file["here"] else f"MISSING: get it from {file['where']}"
        lines.append(f"  {file['slot']}: {file['path']} ({file['licence']}) {state}")
    return document, as_json, "\n".join(lines)


def check(names: list[str], as_json: bool) -> tuple[list[dict[str, Any]], bool, str]:
    """The contract's promises for each detector, run."""
    from harness.engine.selfcheck import check_detector

    rows, lines = [], []
    for name in names or list(registrations()):
        result = check_detector(name)
        rows.append({"detector": name, "ok": result.ok, "passed": result.passed, "faults": result.faults})
        lines.append(f"{'ok  ' if result.ok else 'FAIL'} {name}: {len(result.passed)} checks passed")
        lines += [f"     {fault}" for fault in result.faults]
    return rows, as_json, "\n".join(lines)

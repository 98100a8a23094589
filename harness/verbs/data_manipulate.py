"""``data manipulate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.api.errors import ConfigError
from harness.api.events import Event
from harness.data.manipulate.landmarks import open_landmarks
from harness.data.manipulate.offline import Counts, Offline, make_files
from harness.verbs.progress import Progress


def settings_of(numbers: str, seed: int, no_landmarks: str, on_bad: str) -> Offline:
    """What the command line asks for; `numbers` are separated by commas.

    Raises:
        ConfigError: a word that cannot be meant.
    """
    try:
        chosen = tuple(sorted(int(part) for part in numbers.split(",")))
    except ValueError:
        raise ConfigError(f"--numbers cannot be {numbers!r}", fix="for example --numbers 0,1,2,3") from None
    return Offline(chosen, seed, no_landmarks, on_bad)  # type: ignore[arg-type]  # checked there


def manipulate(
    folder: Path, out: Path, settings: Offline, *, landmarks: Path | None, workers: int, quiet: bool
) -> tuple[dict[str, Any], str, int]:
    """Document, text and exit code: 3 where faces were left out."""
    source = open_landmarks(landmarks) if landmarks is not None else None
    progress = Progress()

    def show(done: int, total: int) -> None:
        progress(Event("progress", {"stage": "manipulate", "done": done, "total": total, "unit": "faces"}))

    counts = make_files(folder, out, source, settings, workers=workers, progress=None if quiet else show)
    document = {"out": str(out), "numbers": list(settings.numbers), **counts._asdict(), "bad": list(counts.bad)}
    return document, _text(out, counts), 3 if counts.bad else 0


def _text(out: Path, counts: Counts) -> str:
    lines = [
        f"wrote {counts.made:,} files of {counts.faces:,} faces to {out} ({counts.skipped:,} were there)",
        f"without landmarks: {counts.without_landmarks:,} faces",
    ]
    if counts.fell_back:
        lines.append(f"whole face warped in place of a flip (the flip's label is wrong): {counts.fell_back:,} files")
    if counts.dropped:
        lines.append(f"not made for want of landmarks: {counts.dropped:,} files")
    if counts.bad:
        lines.append(f"left out: {len(counts.bad):,} faces")
        lines += [f"    {line}" for line in counts.bad[:20]]
    return "\n".join(lines)

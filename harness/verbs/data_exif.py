"""``data exif``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.data.exif.corpus import write_corpus
from harness.data.exif.levels import read_cuts
from harness.data.exif.vocabulary import load_vocabulary
from harness.engine.suite import suites_folder
from harness.results.files import require_writable


def shipped_vocabulary() -> Path:
    """The vocabulary that comes with the package."""
    return suites_folder() / "exif" / "blades.yaml"


def exif(
    paths: Sequence[Path], out: Path, *, levels: int, cuts: Sequence[str], vocabulary: Path | None, quiet: bool
) -> tuple[dict[str, Any], str, int]:
    """Document, text and exit code: 1 where no photograph has any of the nine tags."""
    words = load_vocabulary(vocabulary or shipped_vocabulary())
    given = read_cuts(cuts)
    require_writable(out / "exif.parquet")
    corpus = write_corpus(paths, out, words, levels=levels, cuts=given, progress=None if quiet else _progress())
    return corpus.document(), corpus.text(), 0 if len(corpus.labels) else 1


def _progress() -> Callable[[int, int], None]:
    from harness.api.events import Event
    from harness.verbs.progress import Progress

    listen = Progress()

    def show(done: int, total: int) -> None:
        listen(Event("progress", {"stage": "EXIF", "done": done, "total": total, "unit": "files"}))

    return show

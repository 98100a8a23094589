"""All that is made of a corpus' EXIF, written into one folder.

``exif.parquet`` and ``exif.csv`` (the tidy table), ``exif_tags.md|csv|tex`` (Table 8 with verdicts),
``exif_labels.json`` (the label file in the released layout), ``exif_cuts.json`` (cut points and classes),
``exif_levels.png`` (histograms) and ``exif_report.json`` (problems, unmapped values, verdicts, counts).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.exif.figure import write_figure
from harness.data.exif.jsonsafe import write_text
from harness.data.exif.labels import CATEGORICAL, LEVEL_NAMES, ORDINAL, TAGS, TagLabels, write_labels
from harness.data.exif.levels import Cuts, choose_cuts, cuts_document, dump, known, level_of
from harness.data.exif.photos import Sources
from harness.data.exif.selection import TagRow, markdown, table_8, write_tables
from harness.data.exif.table import ExifTable, build_table, write_table
from harness.data.exif.vocabulary import Vocabulary
from harness.data.problems import Problem, printable

_SHOWN = 12
"""Problems and values that the printed text lists; the report has all."""


@dataclass(frozen=True)
class Corpus:
    """What was found in a corpus and made of it.

    Attributes:
        table: the tidy table with its counts.
        rows: Table 8.
        cuts: of the four ordinal tags.
        labels: of the photographs on which at least one of the nine tags is known, each id once.
        classes: of the five categorical tags.
        problems: of the folders.
        files: what was written.
    """

    table: ExifTable
    rows: list[TagRow]
    cuts: dict[str, Cuts]
    labels: TagLabels
    classes: dict[str, tuple[str, ...]]
    problems: tuple[Problem, ...]
    files: tuple[Path, ...]

    def document(self) -> dict[str, Any]:
        """Plain data, what ``exif_report.json`` holds."""
        table = self.table
        return {
            "photographs": len(table),
            "labelled": len(self.labels),
            "problems": [
                {"kind": kind.partition(":")[0], "tag": kind.partition(":")[2] or None, "count": count,
                 "examples": [printable(e) for e in table.examples[kind]]}
                for kind, count in _ordered(table.problems)
            ],
            "folders": [p.to_json() for p in self.problems],
            "unlisted_values": {
                name: [{"means": how, "value": shown, "count": count} for (how, shown), count in _ordered(counts)]
                for name, counts in table.meanings.items() if counts
            },
            "tags": [asdict(row) for row in self.rows],
            **cuts_document(self.cuts, self.labels.levels, self.classes, len(table)),
            "known": {name: int((self.labels.tags[name] >= 0).sum()) for name in TAGS},
            "empty": self.empty(),
            "files": [p.name for p in self.files],
        }  # fmt: skip

    def empty(self) -> dict[str, list[str]]:
        """Tag → levels or classes that no photograph has."""
        found = {name: [LEVEL_NAMES[self.labels.levels][i] for i in cut.empty] for name, cut in self.cuts.items()}
        for name, classes in self.classes.items():
            there = set(self.labels.tags[name].tolist())
            found[name] = [word for i, word in enumerate(classes) if i not in there]
        return {name: words for name, words in found.items() if words}

    def text(self) -> str:
        """For people: Table 8, verdicts, levels, what was odd."""
        table = self.table
        lines = [markdown(self.rows), *self._selected(), ""]
        for name, cut in self.cuts.items():
            points = ", ".join(f"{p:.6g}" for p in cut.points) or "none"
            counts = ", ".join(f"{n:,}" for n in cut.counts)
            lines.append(f"{name}: cut points {points} ({'given' if cut.given else 'quantiles'}); photographs {counts}")
        lines += [f"no photograph: {name}: {', '.join(words)}" for name, words in self.empty().items()]
        lines += ["", f"{len(table):,} photographs, {len(self.labels):,} with labels"]
        lines += [p.text() for p in self.problems]
        lines += _some("problem", [f"{kind.replace(':', ' of ')}: {n:,}" for kind, n in _ordered(table.problems)])
        unlisted = [
            f"{name} {printable(shown)!r}: {count:,} ({how})"
            for name, counts in table.meanings.items() for (how, shown), count in _ordered(counts)
        ]  # fmt: skip
        lines += _some("value that no class lists", unlisted)
        return "\n".join([*lines, *(f"wrote {path}" for path in self.files)])

    def _selected(self) -> list[str]:
        """The verdicts, and where they differ from the nine tags that a label file has."""
        stay = [row.name for row in self.rows if row.stays]
        lines = [f"stay: {', '.join(stay) or 'none'}"]
        spare, lost = [n for n in stay if n not in TAGS], [n for n in TAGS if n not in stay]
        if spare:
            lines.append(f"stay here, but have no place in a label file: {', '.join(spare)}")
        if lost:
            lines.append(f"go here, but the label file has them where they are known: {', '.join(lost)}")
        return lines


def _ordered(counts: Mapping[Any, int]) -> list[tuple[Any, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _some(what: str, found: list[str]) -> list[str]:
    lines = [f"{what}: {line}" for line in found[:_SHOWN]]
    rest = len(found) - len(lines)
    return [*lines, f"and {rest:,} more in exif_report.json"] if rest else lines


def make_labels(
    table: ExifTable, cuts: Mapping[str, Cuts], classes: Mapping[str, Sequence[str]], levels: int
) -> TagLabels:
    """Labels of the photographs on which at least one of the nine tags is known; of those with one id the first.

    Args:
        cuts: of the ordinal tags.
        classes: of the categorical tags, in the order of their numbers.
        levels: 3 or 5.
    """
    frame = table.frame
    tags: dict[str, NDArray[np.int16]] = {name: level_of(known(frame[name]), cuts[name].points) for name in ORDINAL}
    for name in CATEGORICAL:
        number = {word: i for i, word in enumerate(classes[name])}
        tags[name] = frame[name].map(number).fillna(-1).to_numpy(dtype=np.float64).astype(np.int16)
    any_known = np.stack([values >= 0 for values in tags.values()]).any(axis=0)
    rows = np.flatnonzero(any_known)
    rows = rows[~frame["id"].iloc[rows].duplicated().to_numpy(dtype=bool)]
    ids, paths = (tuple(frame[name].iloc[rows]) for name in ("id", "path"))
    if any(PurePosixPath(p.replace("\\", "/")).stem != i for i, p in zip(ids, paths, strict=True)):
        raise AssertionError("an id is not its path's stem")
    return TagLabels(ids, paths, {name: values[rows] for name, values in tags.items()}, levels)


def write_corpus(
    paths: Sequence[Path],
    out: Path,
    vocabulary: Vocabulary,
    *,
    levels: int = 3,
    cuts: Mapping[str, Sequence[float]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Corpus:
    """Read the EXIF of folders, images and JSON files and write everything into `out`.

    Args:
        levels: of an ordinal tag, 3 or 5.
        cuts: explicit cut points of some tags; the others take quantiles of these photographs.
        progress: called with (files begun, files in all).

    Where no photograph has any of the nine tags no label file is written, and one of an earlier call is removed.

    Raises:
        DataError: nothing to read, a path that is not there, or `out` cannot be written.
        ConfigError: cut points that do not fit.
    """
    choose_cuts({name: np.empty(0) for name in ORDINAL}, levels, cuts)  # refuse bad points before reading for long
    sources = Sources(paths)
    table = build_table(
        sources, vocabulary, None if progress is None else lambda begun: progress(begun, sources.num_files)
    )
    columns = {name: known(table.frame[name]) for name in ORDINAL}
    chosen = choose_cuts(columns, levels, cuts)
    classes = vocabulary.label_classes
    labels = make_labels(table, chosen, classes, levels)
    rows = table_8(table, vocabulary.selection)
    files = [*write_table(table, out), *write_tables(rows, out)]
    if len(labels):
        files.append(write_labels(out / "exif_labels.json", labels))
    else:
        (out / "exif_labels.json").unlink(missing_ok=True)
    files.append(write_text(out / "exif_cuts.json", dump(cuts_document(chosen, levels, classes, len(table)))))
    files.append(write_figure(out / "exif_levels.png", columns, chosen, levels))
    files.append(out / "exif_report.json")
    corpus = Corpus(table, rows, chosen, labels, classes, sources.problems, tuple(files))
    write_text(files[-1], dump(corpus.document()))
    return corpus

"""Table 8 for a corpus, and which tags stay under the supplement's criteria, with a reason for each.

The criteria, in order: presence, relevance, richness, redundancy. Every rule is data of the vocabulary file; every
figure that a rule used is kept beside its verdict.

Source: supplement B. *Deviation*: the supplement gives no numbers but presence (50 %); the limits of richness are
ours (a vocabulary's `selection`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.exif.jsonsafe import write_text
from harness.data.exif.levels import known
from harness.data.exif.table import ExifTable, same_value
from harness.data.exif.tags import BY_NAME, TAGS, Kind, Tag
from harness.data.exif.vocabulary import Selection

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

NUM_SHOWN = 4
"""Examples of a row of Table 8: the most frequent values."""


@dataclass(frozen=True, slots=True)
class TagRow:
    """One tag of a corpus' Table 8.

    Attributes:
        name, title: of the tag.
        examples: most frequent values first.
        unique: distinct known values.
        count: photographs on which the tag stands, whatever its value.
        presence: `count` as a share of photographs.
        unknown: share of photographs without a known value.
        single: share of the most frequent value among known ones; 0 where none is known.
        stays: whether every criterion is met.
        criterion: "" or the first that is not: presence, relevance, richness, redundancy.
        reason: what was found, in words.
    """

    name: str
    title: str
    examples: tuple[str, ...]
    unique: int
    count: int
    presence: float
    unknown: float
    single: float
    stays: bool
    criterion: str
    reason: str


def table_8(table: ExifTable, rules: Selection) -> list[TagRow]:
    """A row a tag, in Table 8's order; tags that no photograph has are rows too.

    Raises:
        ValueError: the table has no photographs.
    """
    if not len(table):
        raise ValueError("a table without photographs")
    shares = {tag.name: table.present[tag.name] / len(table) for tag in TAGS}
    return [_row(tag, table, rules, shares) for tag in TAGS]


def _row(tag: Tag, table: ExifTable, rules: Selection, shares: dict[str, float]) -> TagRow:
    column = table.frame[tag.name].dropna()
    counts = _counts(tag, column)
    num_known = int(counts.sum())
    unknown = 1 - num_known / len(table)
    single = float(counts.iloc[0] / num_known) if num_known else 0.0
    criterion, reason = _judge(tag.name, table, rules, shares, unknown, single)
    return TagRow(
        tag.name, tag.title, tuple(str(value) for value in counts.index[:NUM_SHOWN]), len(counts),
        table.present[tag.name], shares[tag.name], unknown, single, not criterion, criterion, reason,
    )  # fmt: skip


def _counts(tag: Tag, column: pd.Series[Any]) -> pd.Series[Any]:
    """Known values as shown → photographs, the most frequent first, then by text."""
    shown = column.map(tag.show) if tag.kind is Kind.NUMBER else column.astype(str)
    return shown.value_counts().rename_axis("value").reset_index().sort_values(
        ["count", "value"], ascending=[False, True], kind="stable"
    ).set_index("value")["count"]  # fmt: skip


def _judge(
    name: str, table: ExifTable, rules: Selection, shares: dict[str, float], unknown: float, single: float
) -> tuple[str, str]:
    """The first criterion that a tag does not meet, and why; "" and what was found where it stays."""
    if shares[name] <= rules.presence:
        return "presence", f"on {shares[name]:.1%} of photographs, not more than {rules.presence:.0%}"
    if name in rules.irrelevant:
        return "relevance", f"not about image formation: {rules.irrelevant[name]}"
    if unknown > rules.unknown_max:
        return "richness", f"missing or unknown on {unknown:.1%} of photographs, more than {rules.unknown_max:.0%}"
    if single > rules.single_max:
        return "richness", f"one value on {single:.1%} of photographs that have one, more than {rules.single_max:.0%}"
    twin = rules.redundant.get(name)
    if twin is not None and shares[twin] > rules.presence:
        return "redundancy", f"says what {BY_NAME[twin].title} says{_agreement(name, twin, table)}"
    return "", f"known on {1 - unknown:.1%} of photographs; its most frequent value has {single:.1%}"


def _agreement(name: str, twin: str, table: ExifTable) -> str:
    """How often the two are equal, where each was read from a tag of its own; "" where that cannot be said."""
    frame = table.frame
    if BY_NAME[name].kind is not Kind.NUMBER or BY_NAME[twin].kind is not Kind.NUMBER:
        return ""
    own, other = known(frame[name]), known(frame["aperture_value" if twin == "aperture" else twin])
    both = ~np.isnan(own) & ~np.isnan(other)
    if f"{twin}_from" in frame and twin != "aperture":
        first = next(source.name for source in BY_NAME[twin].sources)
        both &= (frame[f"{twin}_from"] == first).fillna(False).to_numpy(dtype=bool)
    if not both.any():
        return ""
    same = sum(same_value(a, b) for a, b in zip(own[both], other[both], strict=True))
    return f": equal within 10 % on {same:,} of {int(both.sum()):,} photographs that have both"


HEAD = ("EXIF tag", "Example value", "#Unique entries", "Count", "Presence", "Unknown", "Largest", "Verdict", "Why")


def cells(row: TagRow) -> tuple[str, ...]:
    """A row of the printed table."""
    return (
        row.title, ", ".join(row.examples), f"{row.unique:,}", f"{row.count:,}", f"{row.presence:.1%}",
        f"{row.unknown:.1%}", f"{row.single:.1%}", "stays" if row.stays else "goes", row.reason,
    )  # fmt: skip


def markdown(rows: list[TagRow]) -> str:
    """The table in Markdown."""
    lines = [HEAD, tuple("---" for _ in HEAD), *(cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines) + "\n"


def tex(rows: list[TagRow]) -> str:
    """The table in LaTeX (booktabs), in the columns of the paper's Table 8; a rule below the tags that stay."""
    ordered = sorted(rows, key=lambda row: not row.stays)
    lines = [r"\begin{tabular}{llrr}", r"\toprule", " & ".join(map(_tex, HEAD[:4])) + r" \\", r"\midrule"]
    for i, row in enumerate(ordered):
        if i and not row.stays and ordered[i - 1].stays:
            lines.append(r"\midrule")
        lines.append(" & ".join(map(_tex, cells(row)[:4])) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


_TEX = {c: "\\" + c for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


def write_tables(rows: list[TagRow], folder: Path) -> list[Path]:
    """Write ``exif_tags.md``, ``.csv`` and ``.tex``.

    Raises:
        DataError: the folder cannot be written.
    """
    import pandas as pd

    records = [asdict(row) | {"examples": "; ".join(row.examples)} for row in rows]
    csv = pd.DataFrame(records).to_csv(index=False, lineterminator="\n", float_format="%.6g")
    texts = {"md": markdown(rows), "csv": csv, "tex": tex(rows)}
    return [write_text(folder / f"exif_tags.{ending}", text) for ending, text in texts.items()]

"""Tables as text: a grid of strings, and from it Markdown and LaTeX; and CSV with every value at full precision."""

from __future__ import annotations

import csv
import io
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.tables import SEEN, Cell, Column, Row, Table, label_of

if TYPE_CHECKING:
    import pandas as pd

NONE = "–"
CSV_COLUMNS = [
    "table", "detector", "status", "column", "metric", "unit", "measured", "low", "high", "published", "difference",
    "not_comparable", "n", "n_photographic", "n_generated", "abstained", "seen", "stamps",
]  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """A table as strings. `styles[i]` of line i: counts, main, sub (belongs to the line above), audit, published."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    styles: Sequence[str]
    stamps: Sequence[str]
    notes: Sequence[str]


def grid(table: Table) -> Grid:
    """The table as strings: what each row measured and, where something is published, that and the difference."""
    header = ["Detector", "", *(column.label for column in table.columns)]
    lines: list[list[str]] = []
    styles: list[str] = []
    if table.counts:
        lines.append(["photographic + generated", "images", *(table.counts.get(c.key, "") for c in table.columns)])
        styles.append("counts")
    for row in table.rows:
        for i, (kind, texts) in enumerate(_row_lines(row, table.columns)):
            lines.append(["" if i else row.label, kind, *texts])
            styles.append("sub" if i else row.status if row.status in ("audit", "published") else "main")
    return Grid(table.title, header, lines, styles, table.stamps, table.notes)


def _row_lines(row: Row, columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
    cells = [(row.cells[c.key], c) for c in columns]
    printed = [_published(cell) for cell, _ in cells]
    if row.status == "published":
        return [("published only", printed)]
    first = {"missing": "not run", "failed": "failed"}.get(row.status, "measured")
    measured = (first, [_measured(cell, c) for cell, c in cells])
    if all(text == NONE for text in printed):
        return [measured]
    return [measured, ("published", printed), ("difference", [_difference(cell, c) for cell, c in cells])]


def number(fraction: float, unit: str) -> str:
    """A fraction in the column's unit, two decimals."""
    return NONE if math.isnan(fraction) else f"{fraction * (100 if unit == '%' else 1):.2f}"


def _measured(cell: Cell, column: Column) -> str:
    if math.isnan(cell.value):
        return NONE
    text = number(cell.value, column.unit)
    if not math.isnan(cell.low):
        text += f" [{number(cell.low, column.unit)}, {number(cell.high, column.unit)}]"
    return text + (SEEN if cell.seen else "")


def _published(cell: Cell) -> str:
    return NONE if cell.beside.number is None else cell.beside.number.text


def _difference(cell: Cell, column: Column) -> str:
    if cell.beside.number is None:
        return NONE
    if cell.difference is None:
        return NONE if cell.beside.comparable else "n/c"
    return f"{cell.difference * (100 if column.unit == '%' else 1):+.2f}"


def comparison_grid(comparisons: pd.DataFrame, stamps: Sequence[str], n_compare: int) -> Grid:
    """Every row against the reference: difference of the means over generators, p and Holm's p."""
    header = ["Detector", "Against", "Metric", "Difference, points", "95 % interval", "p", "p (Holm)", "Verdict"]
    lines = []
    for r in comparisons.itertuples(index=False):
        values = [float(str(v)) for v in (r.difference, r.low, r.high, r.p, r.p_holm)]
        difference, low, high, p, p_holm = values
        known = not math.isnan(p_holm)
        metric = {"auc": "AUC"}.get(str(r.metric), str(r.metric))
        lines.append([
            label_of(str(r.detector)) + (SEEN if r.seen else ""), label_of(str(r.reference)), metric,
            f"{difference * 100:+.2f}" if known else NONE,
            f"[{low * 100:+.2f}, {high * 100:+.2f}]" if known else NONE,
            f"{p:.4f}" if known else NONE, f"{p_holm:.4f}" if known else NONE,
            _beats(difference, p_holm) if known else "not defined on every test set",
        ])  # fmt: skip
    notes = [
        f"Paired bootstrap of the mean over generators, {n_compare:,} resamples, the same images for both; two-sided "
        "p, Holm-corrected over the rows of a metric. The verdict uses 5 % after correction.",
    ]
    if any("†" in line[0] for line in lines):
        notes.append("† One of the two was trained on images of one of these generators.")
    return Grid("Against the reference", header, lines, ["main"] * len(lines), list(stamps), notes)


def _beats(difference: float, p_holm: float) -> str:
    if p_holm >= 0.05:
        return "undecided"
    return "better" if difference > 0 else "worse"


def markdown(table: Grid) -> str:
    """GitHub-flavoured Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_md(cell) for cell in cells) + " |"

    out = [f"### {_md(table.title)}", ""]
    out += [f"> **{_md(stamp)}**\n>" for stamp in table.stamps]
    if table.stamps:
        out[-1] = out[-1].removesuffix("\n>")
        out.append("")
    out += [line(table.header), "|" + "|".join("---" for _ in table.header) + "|"]
    for cells, style in zip(table.lines, table.styles, strict=True):
        bold = style == "main" and cells[0]
        out.append(line([f"**{cells[0]}**", *cells[1:]] if bold else cells))
    out += ["", *(f"- {_md(note)}" for note in table.notes), ""]
    return "\n".join(out)


def _md(text: str) -> str:
    flat = " ".join(text.split())
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("_", "\\_")


_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "[": "{[}", "]": "{]}", "–": "--", "—": "---", "†": r"\dag{}", "±": r"$\pm$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "→": r"$\rightarrow$", "−": "$-$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$",
    "’": "'", "‘": "`", "“": "``", "”": "''", "…": r"\dots{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "λ": r"$\lambda$", "π": r"$\pi$", "\u00a0": "~",
}  # fmt: skip


def tex_escape(text: str) -> str:
    """Text for LaTeX. A character without a form in plain LaTeX is decomposed to ASCII, or named by its code point."""
    out = []
    for character in " ".join(text.split()):
        if character in _TEX:
            out.append(_TEX[character])
        elif " " <= character <= "~":
            out.append(character)
        else:
            ascii_form = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
            out.append("".join(_TEX.get(c, c) for c in ascii_form) or f"(U+{ord(character):04X})")
    return "".join(out)


def latex(table: Grid) -> str:
    """A LaTeX `table*` that needs no package beyond `\\usepackage[T1]{fontenc}`; notes and stamps stand with it."""
    spec = "ll" + "r" * (len(table.header) - 2)
    out = [r"\begin{table*}", r"\centering\scriptsize\setlength{\tabcolsep}{3pt}"]
    out.append(rf"\caption{{{tex_escape(table.title)}}}")
    out += [rf"\textbf{{{tex_escape(stamp)}}}\par" for stamp in table.stamps]
    out += [rf"\begin{{tabular}}{{{spec}}}", r"\hline", " & ".join(map(tex_escape, table.header)) + r" \\", r"\hline"]
    for i, (cells, style) in enumerate(zip(table.lines, table.styles, strict=True)):
        if i and style != "sub":
            out.append(r"\hline")
        # an optional argument would start at a bracket that opens a line: escaped brackets stand in braces
        out.append(" & ".join(map(tex_escape, cells)) + r" \\")
    out += [r"\hline", r"\end{tabular}", r"\par\smallskip\raggedright"]
    out += [rf"{tex_escape(note)}\par" for note in table.notes]
    out += [r"\end{table*}", ""]
    return "\n".join(out)


def to_csv(table: Table) -> str:
    """Long form: a line a row and column, fractions at full precision, empty where there is no value."""
    handle = io.StringIO()
    writer = csv.writer(handle, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    stamps = "; ".join(table.stamps)
    for row in table.rows:
        for column in table.columns:
            cell = row.cells[column.key]
            found = cell.beside.number
            reason = cell.beside.reason if found is not None else ""
            writer.writerow([
                table.slug, row.name, row.status, column.key, column.metric, "fraction",
                *(_exact(v) for v in (cell.value, cell.low, cell.high)),
                "" if found is None else _exact(found.fraction), _exact(cell.difference), reason,
                cell.n or "", cell.n_photographic if cell.n else "", cell.n_generated if cell.n else "",
                cell.abstained if cell.n else "", str(cell.seen).lower(), stamps,
            ])  # fmt: skip
    return handle.getvalue()


def _exact(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(float(value))

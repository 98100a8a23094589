"""What is wrong with a data root: problems are collected, and shown all at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.api.errors import DataError

Severity = Literal["error", "warning"]
NUM_EXAMPLES = 5
"""Examples that a problem keeps of the files or lines it is about."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, however many files it concerns.

    Attributes:
        kind: short stable name ("missing-folder", "undecodable", "leak", ...), for machines.
        severity: "error" (a run cannot be right until it is mended) or "warning" (a run goes on and says so).
        message: what is wrong, in one sentence.
        where: the folder, list or dataset.
        fix: what to do.
        count: how many files or lines are concerned.
        examples: the first few of them; all of them where they are files that cannot be read.
    """

    kind: str
    severity: Severity
    message: str
    where: str
    fix: str
    count: int = 1
    examples: tuple[str, ...] = ()

    def text(self) -> str:
        """Lines for people: severity, message, where, examples, fix."""
        return f"{self.severity}: {self.said()}"

    def said(self) -> str:
        """The same without the severity, for a message that states it."""
        lines = [self.message, f"  where: {printable(self.where)}"]
        if len(self.examples) > NUM_EXAMPLES:
            lines += [f"    {printable(e)}" for e in self.examples]
        elif self.examples:
            more = self.count - len(self.examples)
            rest = f", and {more:,} more" if more > 0 else ""
            lines.append(f"  e.g.: {', '.join(printable(e) for e in self.examples)}{rest}")
        return "\n".join([*lines, f"  fix: {self.fix}"])

    def to_json(self) -> dict[str, Any]:
        """Plain data, safe to encode as UTF-8."""
        data = asdict(self)
        data["where"] = printable(self.where)
        data["examples"] = [printable(e) for e in self.examples]
        return data


def printable(name: str) -> str:
    """A file name with control characters and bytes that are not UTF-8 written as escapes."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def about(
    kind: str, severity: Severity, message: str, where: str, fix: str, items: Sequence[str], *, whole: bool = False
) -> list[Problem]:
    """One problem about all `items`, or none when there are none; "{n}" in the message becomes their number.

    `whole` keeps every item and not examples alone.
    """
    if not items:
        return []
    text = message.replace("{n}", f"{len(items):,}")
    return [Problem(kind, severity, text, where, fix, len(items), tuple(items if whole else items[:NUM_EXAMPLES]))]


def require(problems: Iterable[Problem], root: object) -> None:
    """Raise one `DataError` that lists every error among `problems`; warnings pass."""
    errors = [p for p in problems if p.severity == "error"]
    if errors:
        listed = "\n".join(f"- {p.said()}" for p in errors)
        what = f"the data has {len(errors)} problem{'s' if len(errors) > 1 else ''}:\n{listed}"
        raise DataError(what, root, "mend what is listed; `harness data check` shows it again with all warnings")

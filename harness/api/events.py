"""Events: what execution and training tell whoever listens (progress bars, MLflow); they know of no listener."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened.

    ``kind`` is one of ``stage_start``, ``progress``, ``stage_end``, ``train_step``, ``train_end``, ``warning``,
    ``note``; ``fields`` are JSON values (for ``progress``: stage, done, total, unit).
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that does nothing."""


def fan_out(*listeners: Listener) -> Listener:
    """One listener that passes each event to all of them, in order."""

    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return emit

"""The eleven pretext tasks: kinds, classes, and where each task's logits lie in the list of prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from harness.api.errors import ConfigError

LEVELS: dict[int, tuple[str, ...]] = {
    3: ("low", "medium", "high"),
    5: ("ultra-low", "low", "medium", "high", "ultra-high"),
}
REGIONS: tuple[str, ...] = ("mouth", "eye", "nose")


class Kind(StrEnum):
    """What a task's label is, and so which loss it has (METHOD "Losses")."""

    ORDINAL = "ordinal"  # one level of an ordered scale: ranking loss over pairs
    CATEGORICAL = "categorical"  # one class of several: focal fidelity loss
    COARSE = "coarse"  # photographic or manipulated: fidelity loss; the outer objective
    FINE = "fine"  # any subset of regions: two-term fidelity loss a region


@dataclass(frozen=True)
class Task:
    """One pretext task: its kind, its classes in the order of their prompts, and its first logit."""

    name: str
    kind: Kind
    classes: tuple[str, ...]
    start: int

    @property
    def num_classes(self) -> int:
        """How many prompts, and so logits, the task has."""
        return len(self.classes)

    @property
    def slice(self) -> slice:
        """Where the task's logits lie in `logits [B, P]` (last axis) and in the list of prompts."""
        return slice(self.start, self.start + len(self.classes))


_ORDINAL: tuple[str, ...] = ("iso", "aperture", "exposure_time", "focal_length")
_CATEGORICAL: dict[str, tuple[str, ...]] = {
    "make": (
        "Nikon", "Apple", "FUJIFILM", "Canon", "Samsung", "Sony", "Panasonic", "Nokia", "Pentax", "others",
    ),
    "metering_mode": (
        "average", "centerweighted", "others", "partial", "spot", "multi-spot", "multi-segment", "evaluative",
    ),
    "exposure_mode": (
        "auto", "auto-bracketing", "program", "manual", "aperture-priority", "easy-shooting",
        "shutter-priority",
    ),
    "white_balance": ("auto", "manual"),
    "exposure_program": (
        "landscape mode", "manual control", "normal program", "portrait mode", "shutter priority",
        "aperture priority",
    ),
}  # fmt: skip
COARSE_CLASSES: tuple[str, str] = ("photographic", "manipulated")
TASK_NAMES: tuple[str, ...] = (*_ORDINAL, *_CATEGORICAL, "face_coarse", "face_fine")


@dataclass(frozen=True)
class TaskTable:
    """The tasks of one training run in the order of λ and of the prompts; made by `task_table`."""

    tasks: tuple[Task, ...]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, name: str) -> Task:
        """The task called `name`; ConfigError with the known names otherwise."""
        return self.tasks[self.index(name)]

    @property
    def names(self) -> tuple[str, ...]:
        """Task names in the order of λ, of the loss vector and of logs."""
        return tuple(task.name for task in self.tasks)

    @property
    def num_prompts(self) -> int:
        """P: how many prompts and logits there are in all (50 with 3 levels, 58 with 5)."""
        return sum(task.num_classes for task in self.tasks)

    def index(self, name: str) -> int:
        """Position of the task called `name` in λ and in the loss vector."""
        if name not in self.names:
            raise ConfigError(f"unknown task {name!r}", fix=f"use one of: {', '.join(self.names)}")
        return self.names.index(name)


def task_table(
    levels: int = 3,
    regions: tuple[str, ...] = REGIONS,
    names: tuple[str, ...] = TASK_NAMES,
) -> TaskTable:
    """The table of the tasks called `names`, always in METHOD's order, slices laid one after another.

    Args:
        levels: classes of each ordinal task, 3 or 5 (the paper: 3).
        regions: classes of `face_fine`; `("mouth", "eye")` is the released code's choice (FIDELITY `regions`).
        names: which tasks, all eleven by default; fewer for an ablation.

    Raises:
        ConfigError: for other levels, unknown or repeated names or regions, or none at all.

    Source: METHOD "The 50 prompts and their logit slices"; AIGFD_BLO at 5f26ede.
    """
    if levels not in LEVELS:
        raise ConfigError(f"ordinal tasks have 3 or 5 levels, not {levels}", fix="set levels to 3 or 5")
    for what, chosen, known in (("region", regions, REGIONS), ("task", names, TASK_NAMES)):
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise ConfigError(f"unknown {what} {unknown[0]!r}", fix=f"use some of: {', '.join(known)}")
        if not chosen or len(set(chosen)) != len(chosen):
            raise ConfigError(f"each {what} must be named once, and at least one: {list(chosen)}")
    classes: dict[str, tuple[Kind, tuple[str, ...]]] = {
        **dict.fromkeys(_ORDINAL, (Kind.ORDINAL, LEVELS[levels])),
        **{name: (Kind.CATEGORICAL, values) for name, values in _CATEGORICAL.items()},
        "face_coarse": (Kind.COARSE, COARSE_CLASSES),
        "face_fine": (Kind.FINE, tuple(region for region in REGIONS if region in regions)),
    }
    tasks: list[Task] = []
    start = 0
    for name in TASK_NAMES:
        if name in names:
            kind, values = classes[name]
            tasks.append(Task(name, kind, values, start))
            start += len(values)
    return TaskTable(tuple(tasks))

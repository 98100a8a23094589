"""The task table: METHOD's order and slices, five levels, two regions, chosen tasks."""

from __future__ import annotations

import dataclasses

import pytest

from detectors.blades.tasks import TASK_NAMES, Kind, task_table
from harness.api.errors import ConfigError

METHOD_SLICES = {
    "iso": (0, 3), "aperture": (3, 6), "exposure_time": (6, 9), "focal_length": (9, 12), "make": (12, 22),
    "metering_mode": (22, 30), "exposure_mode": (30, 37), "white_balance": (37, 39),
    "exposure_program": (39, 45), "face_coarse": (45, 47), "face_fine": (47, 50),
}  # fmt: skip


def test_three_levels_lie_where_the_method_says() -> None:
    table = task_table()
    assert {task.name: (task.slice.start, task.slice.stop) for task in table} == METHOD_SLICES
    assert table.names == TASK_NAMES == tuple(METHOD_SLICES)
    assert (len(table), table.num_prompts) == (11, 50)


def test_five_levels_have_58_prompts_and_only_the_ordinal_tasks_grow() -> None:
    three, five = task_table(), task_table(levels=5)
    assert five.num_prompts == 58
    for old, new in zip(three, five, strict=True):
        assert new.num_classes == (5 if old.kind is Kind.ORDINAL else old.num_classes)


def test_slices_follow_one_another_for_chosen_tasks_and_regions() -> None:
    table = task_table(regions=("mouth", "eye"), names=("face_fine", "make", "face_coarse"))
    assert table.names == ("make", "face_coarse", "face_fine")
    assert [(t.slice.start, t.slice.stop) for t in table] == [(0, 10), (10, 12), (12, 14)]
    assert table["face_fine"].classes == ("mouth", "eye")


@pytest.mark.parametrize(
    "options",
    [{"levels": 4}, {"names": ("flash",)}, {"names": ()}, {"regions": ("ear",)}, {"names": ("make", "make")}],
)
def test_a_table_that_cannot_be_meant_is_an_error(options: dict) -> None:
    with pytest.raises(ConfigError):
        task_table(**options)


def test_the_table_is_immutable_and_unknown_names_list_the_known() -> None:
    table = task_table()
    with pytest.raises(dataclasses.FrozenInstanceError):
        table["iso"].start = 3  # type: ignore[misc]
    with pytest.raises(ConfigError, match="face_coarse"):
        table["flash"]

"""Processes that train together notice when they no longer hold the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed

from harness.api.world import World


def _compare(rank: int, meeting: str, out: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    world, same = World.here(), [torch.arange(3.0), torch.ones((), dtype=torch.int64)]
    other = [torch.arange(3.0), torch.nextafter(torch.ones(()), torch.tensor(float(2 - 2 * rank)))]
    (Path(out) / str(rank)).write_text(f"{world.alike(same)} {world.alike(other)} {world.alike([])}")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_a_difference_in_the_last_bit_of_one_number_is_noticed_by_all(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_compare, (str(tmp_path / "meeting"), str(tmp_path)), nprocs=2)
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["True False True"] * 2


def test_alone_everything_is_the_same() -> None:
    assert World().alike([torch.ones(2)])

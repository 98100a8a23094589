"""Protocols are named sets of switches; what nobody knows is refused with a suggestion."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from harness.api.errors import ConfigError
from harness.api.protocol import NAMES, Protocol


def test_every_name_gives_a_protocol_and_all_differ() -> None:
    made = [Protocol.named(name) for name in NAMES]
    assert len({m.model_dump_json() for m in made}) == len(NAMES) == 3


def test_paper_is_the_default() -> None:
    assert Protocol.named("paper") == Protocol()


def test_released_and_clean_differ_from_the_paper_where_they_say_so() -> None:
    assert Protocol.named("released").gmm_fit_order == "shuffled_2024"
    assert Protocol.named("released").hypergradient == "finite_difference"
    assert Protocol.named("clean").threshold == "held_out"
    assert Protocol.named("paper").threshold == "in_sample"


def test_a_switch_on_top_wins() -> None:
    assert Protocol.named("clean", threshold="in_sample").threshold == "in_sample"


def test_unknown_names_switches_and_values_are_refused_with_a_fix() -> None:
    with pytest.raises(ConfigError, match=r"'papper'[\s\S]*paper, released, clean"):
        Protocol.named("papper")
    with pytest.raises(ConfigError, match=r"'treshold'[\s\S]*did you mean 'threshold'"):
        Protocol.named("paper", treshold="held_out")
    with pytest.raises(ConfigError, match=r"'threshold'[\s\S]*in_sample"):
        Protocol.named("paper", threshold="sometimes")


def test_a_protocol_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Protocol().threshold = "held_out"  # type: ignore[misc]

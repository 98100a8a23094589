"""Checkpoints in the authors' format with weights by golden/encoder_rule.md, made once a session."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins"))

RuleState = Callable[..., dict[str, Tensor]]


def _rule_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rule_weights", Path(__file__).with_name("rule_weights.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Several test processes share few cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def oc_state(golden_dir: Path) -> dict[str, Tensor]:
    """All 472 tensors of OC.pth, by the rule; do not change them."""
    return _rule_module().rule_state(golden_dir, "CLIP_EXIF_Net")


@pytest.fixture(scope="session")
def bc_state(golden_dir: Path) -> dict[str, Tensor]:
    """BC.pth's image tower and head, by the rule (its text tower takes part in nothing and is left out)."""
    rule = _rule_module().rule_state
    return {**rule(golden_dir, "BC_MLP", only=".visual."), **rule(golden_dir, "BC_MLP", only="fc1."),
            **rule(golden_dir, "BC_MLP", only="fc2.")}  # fmt: skip

"""The embedded corpus: simulated photographs and real small neural generators, made from a seed in seconds.

`build_demo` writes a data root in the released layout. Nothing here imports torch before a picture is generated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.data.demo.corpus import build_demo

__all__ = ["build_demo"]


def __getattr__(name: str) -> object:
    if name == "build_demo":
        from harness.data.demo.corpus import build_demo

        return build_demo
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

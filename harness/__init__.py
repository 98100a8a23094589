"""blades-bench: which published numbers on AI-generated-face detection hold, on which images, by how much.

Importing this package imports neither torch nor any other heavy library; ``load_suite``, ``run`` and
``load_detector`` do when they are used.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_detector", "load_fitted", "load_suite", "run", "train"]

_LAZY = {
    "load_suite": ("harness.engine.suite", "load_suite"),
    "run": ("harness.verbs.run", "run"),
    "train": ("harness.verbs.train", "train"),
    "load_detector": ("harness.engine.handle", "load_detector"),
    "load_fitted": ("harness.engine.handle", "load_fitted"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    import importlib

    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)

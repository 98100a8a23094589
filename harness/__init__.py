"""blades-bench: which published numbers on AI-generated-face detection hold, on which images, by how much."""

from __future__ import annotations

__version__ = "0.1.0"

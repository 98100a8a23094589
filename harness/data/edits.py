"""Edits made to every image before any detector's preprocessing: part of every key, printed with every table."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from harness.api.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILTER = "bicubic"
"""Pillow's filter for the common size: antialiased when shrinking, smooth when enlarging."""

SUBSAMPLING = "4:2:0"
"""Chroma subsampling of the common JPEG setting."""


class MatchFormat(BaseModel):
    """One size and one JPEG setting for all images, so that neither can tell the classes apart.

    Attributes:
        size: side of the square, in pixels; aspect ratio ignored. Smaller images are enlarged.
        quality: libjpeg's quality, 1..100; baseline, 4:2:0, standard Huffman tables.

    What an image went through before (another JPEG setting, another size) leaves traces in its pixels that this
    does not remove: it equalises what the file says, not what the pixels remember.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=8, le=8192)
    quality: int = Field(ge=1, le=100)

    @classmethod
    def parse(cls, text: str) -> MatchFormat:
        """From "SIZE:QUALITY", as in ``--match-format 256:90``.

        Raises:
            ConfigError: anything else.
        """
        match = re.fullmatch(r"\s*(\d{1,5}):(\d{1,3})\s*", text, re.ASCII)
        if match:
            size, quality = int(match[1]), int(match[2])
            if 8 <= size <= 8192 and 1 <= quality <= 100:
                return cls(size=size, quality=quality)
        raise ConfigError(
            f"{text!r} is no size and quality", "--match-format", "write SIZE:QUALITY, 8..8192 and 1..100, as in 256:90"
        )


class InputEdits(BaseModel):
    """The edits of a run, in the order in which they are made: rotation when decoding, then the common format.

    Attributes:
        rotate: apply EXIF orientation (done by `decode(rotate=...)`; the released code ignores it).
        match_format: None leaves size and compression as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rotate: bool = False
    match_format: MatchFormat | None = None

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pixels [h, w, 3] uint8 after the edits, from decoded (and, if asked for, rotated) pixels [H, W, 3]."""
        if self.match_format is None:
            return pixels
        import numpy as np
        from PIL import Image

        side, quality = self.match_format.size, self.match_format.quality
        image = Image.fromarray(pixels)
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling[FILTER.upper()])
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling=SUBSAMPLING, optimize=False, progressive=False)
        with Image.open(buffer, formats=("JPEG",)) as again:
            return np.array(again)

    def identity(self) -> dict[str, Any]:
        """Plain data that changes whenever an edit would change a pixel; for keys and records."""
        match = self.match_format
        common = None
        if match is not None:
            common = {"size": match.size, "quality": match.quality, "filter": FILTER, "subsampling": SUBSAMPLING}
        return {"rotate": self.rotate, "match_format": common}

"""The contact sheet of `docs/images/manipulations.png`: ``python -m harness.data.manipulate.sheet OUT.png``."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from harness.data.demo.corpus import take_photograph
from harness.data.exif.jsonsafe import write_bytes
from harness.data.manipulate.face import MANIPULATIONS, WORK_SIZE, at_work_size, brought_back, manipulate_face
from harness.data.manipulate.regions import NAMES, blend_mask, region_box

SEED = 2024
SIZE = 128
FACES = (1, 2, 5, 8)
_GAP, _HEAD = 6, 18


def _masks(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The face with its blend masks over it: mouth red, eye green, nose blue."""
    face = at_work_size(image, WORK_SIZE).astype(np.float64) / 2
    points = landmarks * (WORK_SIZE / image.shape[0])
    for channel, name in enumerate(NAMES):
        box = region_box(name, points, WORK_SIZE, WORK_SIZE)
        if box is not None:
            face[..., channel] += 127 * blend_mask(name, box, WORK_SIZE, WORK_SIZE)
    return brought_back(face.astype(np.uint8), (image.shape[0], image.shape[1]))


def _row(index: int) -> list[np.ndarray]:
    """A demo photograph, its manipulations, its masks; all `[SIZE, SIZE, 3]` uint8."""
    taken = take_photograph(SEED, index, SIZE)
    row = [taken.image]
    for made in MANIPULATIONS:
        rng = np.random.default_rng([SEED, index, made.number])
        result = manipulate_face(taken.image, made.number, taken.landmarks, rng)
        assert result is not None  # nothing is dropped
        row.append(result.pixels)
    return [*row, _masks(taken.image, taken.landmarks)]


def contact_sheet() -> np.ndarray:
    """Rows: demo photographs; columns: original, each manipulation, masks. `[H, W, 3]` uint8."""
    heads = ["photograph", *(f"{m.number} {m.name}" for m in MANIPULATIONS), "masks"]
    step = SIZE + _GAP
    sheet = Image.new("RGB", (len(heads) * step + _GAP, len(FACES) * step + _HEAD + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(heads):
        draw.text((_GAP + column * step, 4), text, fill="black")
    for row, index in enumerate(FACES):
        for column, pixels in enumerate(_row(index)):
            sheet.paste(Image.fromarray(pixels), (_GAP + column * step, _HEAD + row * step))
    return np.asarray(sheet)


def main() -> None:
    """Write the sheet to the path that is the first argument."""
    buffer = io.BytesIO()
    Image.fromarray(contact_sheet()).save(buffer, "PNG", optimize=True)
    write_bytes(Path(sys.argv[1]), buffer.getvalue())


if __name__ == "__main__":
    main()

"""A contact sheet of the demo corpus: photographs and each generator's pictures side by side.

    python -m harness.data.demo.sheet --out docs/images/demo_corpus.png

The pictures are those of the corpus with the default seed, through its JPEG encoder.
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from harness.data.demo.corpus import encode, take_photograph
from harness.data.demo.generators import GENERATORS, generate

_GAP, _HEAD = 12, 18


def _stored(image: np.ndarray) -> np.ndarray:
    """The pixels that a reader of the corpus sees."""
    with Image.open(BytesIO(encode(image))) as stored:
        return np.asarray(stored)


def contact_sheet(rows: int = 4, columns: int = 2, *, seed: int = 2024, size: int = 128, first: int = 0) -> Image.Image:
    """A block of `rows` x `columns` pictures each for photographs and generators, from number `first` on."""
    names = ("photographs", *GENERATORS)
    width = len(names) * columns * size + (len(names) - 1) * _GAP
    sheet = Image.new("RGB", (width, _HEAD + rows * size), "white")
    draw = ImageDraw.Draw(sheet)
    for block, name in enumerate(names):
        left = block * (columns * size + _GAP)
        draw.text((left + 2, 3), name, fill="black")
        for index in range(rows * columns):
            number = first + index
            made = (
                take_photograph(seed, number, size).image
                if name == "photographs"
                else generate(name, number, seed=seed, size=size)
            )
            place = (left + index % columns * size, _HEAD + index // columns * size)
            sheet.paste(Image.fromarray(_stored(made)), place)
    return sheet


def main(arguments: list[str] | None = None) -> None:
    """Command line: writes the sheet as PNG."""
    parser = argparse.ArgumentParser(prog="python -m harness.data.demo.sheet", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--columns", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="number of the first picture of each kind")
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(options.rows, options.columns, first=options.first).save(options.out, optimize=True)


if __name__ == "__main__":
    main()

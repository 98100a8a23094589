"""Square centres of a data root's photographs at one size: `python squares.py ROOT OUT --size 128`.

OUT has the photographs of `celeba-face/` as PNG (Lanczos) and its lists with the new names, so that `harness train
faces_small --data-root OUT` trains on them. Images that are already there are not made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path, PurePosixPath

from PIL import Image


def square(source: Path, target: Path, size: int) -> None:
    """The largest centred square of an image, at `size` pixels."""
    with Image.open(source, formats=("JPEG", "PNG", "WEBP")) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        small = image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS, box=box)
    target.parent.mkdir(parents=True, exist_ok=True)
    small.save(target, "PNG")


def main() -> None:
    parser = argparse.ArgumentParser(description="square centres of photographs")
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=128)
    asked = parser.parse_args()
    folder = asked.root / "celeba-face"
    made = 0
    for source in sorted(folder.rglob("*")):
        if source.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            target = (asked.out / source.relative_to(asked.root)).with_suffix(".png")
            if not target.exists():
                square(source, target, asked.size)
                made += 1
    for name in ("train.txt", "test.txt"):
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        renamed = [str(PurePosixPath(line.strip()).with_suffix(".png")) for line in lines if line.strip()]
        (asked.out / "celeba-face" / name).write_text("\n".join(renamed) + "\n", encoding="utf-8")
    print(f"{made} photographs written to {asked.out}")


if __name__ == "__main__":
    main()

"""Reading EXIF: photographs a second of processor time, against Pillow's bare reading of the same tags.

Expectation: at least half of the bare speed; Pillow converts every tag of a file, maker notes among them, and ours
reads the values of 21. JSON of the older layout needs no parser of EXIF: several times as many.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from harness.data.exif.photos import Sources
from harness.data.exif.table import build_table
from harness.data.exif.vocabulary import load_vocabulary

ROOT = Path(__file__).resolve().parents[2]
PAIRS, NUM_JSON = 7, 2000
PHOTO = {
    "EXIF": {
        "ISO Speed Ratings": "200", "Aperture Value": "F2.8", "Exposure Time": "1/60 sec", "Focal Length": "18.0 mm",
        "Make": "NIKON CORPORATION", "Metering Mode": "Multi-segment", "Exposure Mode": "Auto exposure",
        "White Balance Mode": "Auto white balance", "Exposure Program": "Program normal",
    }
}  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def bare(files: list[Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in files:
            with Image.open(file) as image:
                dict(image.getexif().get_ifd(0x8769))


def test_bench_reading_exif(benchmark: Callable, shared_data: Path, tmp_path: Path) -> None:
    vocabulary = load_vocabulary(ROOT / "suites" / "exif" / "blades.yaml")
    folder = shared_data / "exif"
    files = sorted(folder.iterdir())
    many = tmp_path / "many.json"
    many.write_text(json.dumps({str(i): PHOTO for i in range(NUM_JSON)}))
    build_table(Sources([folder]), vocabulary)
    bare(files)
    pairs = [
        (seconds(lambda: bare(files)), seconds(lambda: build_table(Sources([folder]), vocabulary)))
        for _ in range(PAIRS)
    ]
    share = statistics.median(theirs / ours for theirs, ours in pairs)
    ours = statistics.median(pair[1] for pair in pairs)
    text = seconds(lambda: build_table(Sources([many]), vocabulary))
    print(
        f"\n{platform.machine()} {platform.processor()}: {len(files) / ours:,.0f} camera files a second of processor "
        f"time, {share:.2f} of the bare reading; JSON {NUM_JSON / text:,.0f}"
    )
    benchmark.pedantic(lambda: build_table(Sources([folder]), vocabulary), rounds=3)

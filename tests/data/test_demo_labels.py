"""Labels of the demo corpus: the true EXIF, cut by training photographs alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from harness.data.demo.labels import write_demo_labels
from harness.data.exif.labels import read_labels
from harness.data.exif.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary(Path(__file__).resolve().parents[2] / "suites" / "exif" / "blades.yaml")


def corpus(root: Path) -> Path:
    """Nine photographs, six of them for training; the tested ones have far higher ISO."""
    folder = root / "celeba-face"
    folder.mkdir(parents=True)
    isos = [100, 200, 400, 800, 1600, 3200, 90_000, 95_000, 99_000]
    exif = {f"{i:06d}": {"EXIF": {"ISO Speed Ratings": str(iso), "Make": "Canon"}} for i, iso in enumerate(isos)}
    (folder / "exif.json").write_text(json.dumps(exif))
    (folder / "train.txt").write_text("".join(f"celeba-face/imgs/{i:06d}.jpg\n" for i in range(6)))
    return root


def test_levels_are_thirds_of_the_training_photographs(tmp_path: Path) -> None:
    labels = read_labels(write_demo_labels(corpus(tmp_path), VOCABULARY))
    assert labels.ids == tuple(f"{i:06d}" for i in range(9))
    assert labels.tags["iso"].tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 2]
    assert set(labels.tags["make"].tolist()) == {3}
    assert set(labels.tags["aperture"].tolist()) == {-1}


def test_a_label_file_that_is_there_is_kept(tmp_path: Path) -> None:
    path = write_demo_labels(corpus(tmp_path), VOCABULARY)
    before = path.stat().st_mtime_ns
    assert write_demo_labels(tmp_path, VOCABULARY) == path
    assert path.stat().st_mtime_ns == before
    assert np.isin(read_labels(path).tags["iso"], (0, 1, 2)).all()

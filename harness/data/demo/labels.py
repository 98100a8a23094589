"""The label file of a demo corpus: levels and classes of its photographs' true EXIF."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from harness.data.exif.corpus import make_labels
from harness.data.exif.labels import ORDINAL, write_labels
from harness.data.exif.levels import choose_cuts, known
from harness.data.exif.photos import Sources
from harness.data.exif.table import build_table
from harness.data.exif.vocabulary import Vocabulary
from harness.data.training.sidecars import LABELS


def write_demo_labels(root: Path, vocabulary: Vocabulary, levels: int = 3) -> Path:
    """Writes `celeba-face/exif_labels.json` of a demo corpus and gives its path; one that is there is kept.

    Levels are cut at quantiles of the photographs that `train.txt` lists, so that no test photograph decides them.
    """
    folder = root / "celeba-face"
    path = folder / LABELS
    if path.is_file():
        return path
    table = build_table(Sources([folder / "exif.json"]), vocabulary)
    listed = {PurePosixPath(line).stem for line in (folder / "train.txt").read_text("utf-8").split()}
    train = table.frame["id"].isin(listed).to_numpy()
    columns = {name: np.where(train, known(table.frame[name]), np.nan) for name in ORDINAL}
    return write_labels(path, make_labels(table, choose_cuts(columns, levels), vocabulary.label_classes, levels))

"""A small training folder in the released layout, made of noise."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

AUTHORS = "/data/zoumian/SSL_training_data/FDF/data/fdf/images/128"
LABELS = "fdf_ccby2_exif_ordinal_categorical.json"


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def noise(seed: int, side: int = 128) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


@pytest.fixture
def fdf_root(tmp_path: Path) -> Path:
    """Twelve faces 100..111 of six photographs; face 103 has no box, 104 no landmarks, 105 no stored faces; item
    999 of the label file has no image, image 500 no item."""
    root = tmp_path / "SSL_training_data"
    data = root / "FDF" / "data"
    items, metainfo, names = {}, {}, {}
    for face in range(100, 112):
        save(data / "fdf" / "images" / "128" / f"{face}.png", noise(face))
        items[f"{face}"] = {
            "path": f"{AUTHORS}/{face}.png",
            "EXIF_ordinal": {"ISO": 1 + face % 3, "Aperture": 2, "Focal Length": 3},
            "EXIF_categorical": {"Make": {"cls_label": face % 10}},
        }
        metainfo[str(face)] = {} if face == 103 else {"bounding_box": [0.25, 0.25, 0.75, 0.8]}
        names[f"{face}.png"] = f"photo{face // 2}"
        if face != 104:
            points = np.random.default_rng(face).uniform(60, 160, (2, 68, 2)).astype(np.float32)
            (data / "fdf" / "landmarks").mkdir(exist_ok=True)
            np.save(data / "fdf" / "landmarks" / f"{face}.npy", points)
        for number in range(0 if face == 105 else 4):
            save(data / "face_dataaug_neg" / f"{face}_{number}.png", noise(1000 * face + number))
    items["999"] = {"path": f"{AUTHORS}/999.png", "EXIF_ordinal": {}, "EXIF_categorical": {}}
    save(data / "fdf" / "images" / "128" / "500.png", noise(500))
    (root / LABELS).write_text(json.dumps(items))
    (data / "fdf" / "fdf_metainfo.json").write_text(json.dumps(metainfo))
    (data / "id_vs_fdfName.pkl").write_bytes(pickle.dumps(names))
    return root

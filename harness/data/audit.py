"""The format audit: could file metadata alone (format, size, JPEG quality) tell the classes apart?

No detector: a warning about the data. Where its AUC is high, a detector's AUC on the same images means little.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.data.edits import InputEdits

NUM_FOLDS = 5
_METADATA = ["format", "width", "height", "jpeg_quality"]
AUDITED = ["sha256", "label", "generator", "group", *_METADATA]
"""Columns of a manifest that the audit reads."""


def metadata(rows: pd.DataFrame, edits: InputEdits | None = None) -> pd.DataFrame:
    """What a file's header states of each row: format, width, height, aspect (width / height), jpeg_quality.

    Args:
        rows: rows of a manifest.
        edits: with a common format, the metadata are those of the images after it (all the same).
    """
    data = rows[_METADATA].copy()
    if edits is not None and edits.match_format is not None:
        match = edits.match_format
        data = data.assign(format="JPEG", width=match.size, height=match.size, jpeg_quality=match.quality)
    data["aspect"] = data["width"] / data["height"].clip(lower=1)
    return data


def format_audit_scores(
    table: pd.DataFrame, cells: pd.DataFrame, seed: int = 2024, *, edits: InputEdits | None = None
) -> pd.DataFrame:
    """Probability that each image of each test set is generated, judged by metadata alone (`audit.parquet`).

    Args:
        table: a manifest with header facts.
        cells: which images serve which test set (`draw_cells`).
        seed: of the folds and the trees.
        edits: see `metadata`.

    Returns:
        Columns test_set, sha256, label, generator, score (float64), a row a row of `cells`, in its order. Scores
        are out of fold: boosted trees on the test set itself, 5 folds stratified by class, no group in two folds.
        0.5 for all where metadata are constant or a class has fewer than two groups.
    """
    roles = table[AUDITED].drop_duplicates(["sha256", "label", "generator"])
    joined = cells.merge(roles, on=["sha256", "label", "generator"], how="left", validate="many_to_one")
    if joined["group"].isna().any():
        raise ValueError("cells name images that are not in the manifest")
    scores = np.full(len(joined), 0.5)
    for name, part in joined.groupby("test_set", sort=False):
        places = joined.index.get_indexer(part.index)
        scores[places] = _out_of_fold(part, metadata(part, edits), _seed_of(seed, str(name)))
    audit = joined[["test_set", "sha256", "label", "generator"]].copy()
    audit["score"] = scores
    return audit.astype({"label": "int8"}).reset_index(drop=True)


def _seed_of(seed: int, test_set: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:audit:{test_set}".encode()).digest()[:4], "big")


def _out_of_fold(rows: pd.DataFrame, data: pd.DataFrame, seed: int) -> np.ndarray:
    """[N] out-of-fold probabilities for one test set."""
    label = rows["label"].to_numpy()
    groups = pd.factorize(rows["group"])[0]
    fewest = min(len(np.unique(groups[label == c])) for c in (0, 1))
    columns = data.assign(format=pd.factorize(data["format"], sort=True)[0]).to_numpy(dtype=np.float64)
    if fewest < 2 or (columns == columns[0]).all():
        return np.full(len(rows), 0.5)
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(min(NUM_FOLDS, fewest), shuffle=True, random_state=seed)
    scores = np.full(len(rows), 0.5)
    for train, test in folds.split(columns, label, groups):
        if len(np.unique(label[train])) < 2:
            continue
        model = HistGradientBoostingClassifier(
            max_iter=60,
            min_samples_leaf=int(np.clip(len(train) // 20, 1, 20)),
            early_stopping=False,
            random_state=seed,
        )
        scores[test] = model.fit(columns[train], label[train]).predict_proba(columns[test])[:, 1]
    return scores


@dataclass(frozen=True, slots=True)
class Separation:
    """How well metadata alone tell one test set's classes apart.

    Attributes:
        test_set: the generator.
        auc: of the audit's scores; low, high: its 95 % interval (Hanley and McNeil's standard error).
        warns: whether `low` is above one half: metadata carry the label.
        message: one plain sentence.
    """

    test_set: str
    auc: float
    low: float
    high: float
    warns: bool
    message: str


def separations(audit: pd.DataFrame) -> list[Separation]:
    """The audit's AUC of each test set, with a plain warning where metadata separate the classes."""
    found = []
    for name, part in audit.groupby("test_set", sort=False):
        generated = part.loc[part["label"] == 1, "score"].to_numpy()
        photographic = part.loc[part["label"] == 0, "score"].to_numpy()
        if not len(generated) or not len(photographic):
            continue
        auc, error = _auc(generated, photographic)
        low, high = max(auc - 1.96 * error, 0.0), min(auc + 1.96 * error, 1.0)
        warns = low > 0.5
        text = f"file metadata alone (format, size, JPEG quality) tell {name} from photographs with AUC {auc:.3f}"
        message = text if warns else f"{name}: no sign that file metadata separate the classes (AUC {auc:.3f})"
        found.append(Separation(str(name), auc, low, high, warns, message))
    return found


def _auc(generated: np.ndarray, photographic: np.ndarray) -> tuple[float, float]:
    """AUC (ties count one half) and its standard error (Hanley and McNeil 1982)."""
    ordered = np.sort(photographic)
    below = np.searchsorted(ordered, generated, side="left")
    ties = np.searchsorted(ordered, generated, side="right") - below
    m, n = len(generated), len(photographic)
    auc = float((below + 0.5 * ties).sum() / (m * n))
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (m - 1) * (q1 - auc**2) + (n - 1) * (q2 - auc**2)) / (m * n)
    return auc, float(np.sqrt(max(variance, 0.0)))


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """Formats, sizes and JPEG qualities of each class and generator, for people.

    Returns:
        A row a dataset's photographs and a row a generator: label, name, images, formats, sizes, most_common_size,
        jpeg_quality, bytes_per_pixel. Counts and shares are of files; sizes are width x height.
    """
    keys = table["generator"].where(table["label"] == 1, table["dataset"])
    named = table.assign(name=keys)
    rows = []
    for _, part in named.groupby(["label", "name"], sort=True):
        size = part["width"].astype("str") + "x" + part["height"].astype("str")
        quality = part.loc[part["jpeg_quality"] >= 0, "jpeg_quality"]
        pixels = part["width"].astype("int64") * part["height"]
        rows.append(
            {
                "label": int(part["label"].iloc[0]),
                "name": part["name"].iloc[0],
                "images": len(part),
                "formats": _shares(part["format"]),
                "sizes": f"{size.iloc[pixels.argmin()]} .. {size.iloc[pixels.argmax()]}",
                "most_common_size": _shares(size, most=1),
                "jpeg_quality": "-" if quality.empty else f"{quality.min()} / {quality.median():.0f} / {quality.max()}",
                "bytes_per_pixel": float((part["bytes"] / pixels.clip(lower=1)).median()),
            }
        )
    columns = ["label", "name", "images", "formats", "sizes", "most_common_size", "jpeg_quality", "bytes_per_pixel"]
    return pd.DataFrame(rows, columns=columns)


def _shares(values: pd.Series, most: int = 3) -> str:
    counts = values.value_counts()
    shown = [f"{name or 'unknown'} {n / len(values):.0%}" for name, n in counts.iloc[:most].items()]
    return ", ".join(shown) + (", ..." if most > 1 and len(counts) > most else "")

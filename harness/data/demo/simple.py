"""How far simple numbers alone tell the demo's generated pictures from its photographs.

    python -m harness.data.demo.simple runs/demo-corpus

A corpus in which one number separates the classes says little about a detector, so this is measured and documented.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from harness.data.demo.corpus import PHOTOGRAPHS
from harness.data.demo.generators import GENERATORS

_LUMA = np.array([0.299, 0.587, 0.114])


def fine_energy(image: np.ndarray) -> float:
    """Energy above the highest half of frequencies: the mean square of what 2x2 means leave of luma, in grey levels."""
    luma = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2].astype(np.float64) @ _LUMA
    small = luma.reshape(luma.shape[0] // 2, 2, luma.shape[1] // 2, 2).mean((1, 3))
    return float(((luma - small.repeat(2, 0).repeat(2, 1)) ** 2).mean())


def spectrum(image: np.ndarray, bands: int = 32) -> np.ndarray:
    """Logarithm of luma's power in `bands` rings of equal width up to the Nyquist frequency, `[bands]` float64."""
    luma = image.astype(np.float64) @ _LUMA
    window = np.outer(*(np.hanning(side) for side in luma.shape))
    power = np.abs(np.fft.rfft2((luma - luma.mean()) * window)) ** 2
    y, x = np.fft.fftfreq(luma.shape[0])[:, None], np.fft.rfftfreq(luma.shape[1])[None]
    ring = np.minimum((np.hypot(x, y) * 2 * bands).astype(int), bands)
    total, count = (np.bincount(ring.ravel(), w, bands + 1)[:bands] for w in (power.ravel(), np.ones(power.size)))
    return np.log(total / count + 1e-3)


def one_number_auc(photographs: np.ndarray, generated: np.ndarray) -> float:
    """AUC of one number per picture, whichever way it points: 0.5 to 1."""
    from sklearn.metrics import roc_auc_score

    labels = np.repeat([0, 1], [len(photographs), len(generated)])
    auc = float(roc_auc_score(labels, np.concatenate([photographs, generated])))
    return max(auc, 1 - auc)


def regression_auc(photographs: np.ndarray, generated: np.ndarray) -> float:
    """AUC of a logistic regression on standardised features `[N, D]`, out of fold (five folds)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = np.repeat([0, 1], [len(photographs), len(generated)])
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    folds = StratifiedKFold(5, shuffle=True, random_state=2024)
    both = np.concatenate([photographs, generated])
    found = cross_val_predict(model, both, labels, cv=folds, method="decision_function")
    return float(roc_auc_score(labels, found))


def _read(folder: Path, of: Callable[[np.ndarray], object]) -> np.ndarray:
    found = []
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            found.append(of(np.asarray(image.convert("RGB"))))
    return np.array(found)


def separability(root: Path) -> dict[str, dict[str, float]]:
    """Per generator of a demo corpus: AUC of file size, of fine energy, and of a regression on the spectrum."""
    folders = {PHOTOGRAPHS: root / PHOTOGRAPHS / "imgs"} | {name: root / name for name in GENERATORS}
    sizes = {n: np.array([p.stat().st_size for p in sorted(f.glob("*.jpg"))]) for n, f in folders.items()}
    energy = {n: _read(f, fine_energy) for n, f in folders.items()}
    spectra = {n: _read(f, spectrum) for n, f in folders.items()}
    return {
        name: {
            "file size": one_number_auc(sizes[PHOTOGRAPHS], sizes[name]),
            "fine energy": one_number_auc(energy[PHOTOGRAPHS], energy[name]),
            "spectrum": regression_auc(spectra[PHOTOGRAPHS], spectra[name]),
        }
        for name in GENERATORS
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line: prints the table of a demo corpus."""
    parser = argparse.ArgumentParser(prog="python -m harness.data.demo.simple", description=__doc__)
    parser.add_argument("root", type=Path, help="a demo corpus (`harness data demo --out ROOT`)")
    table = separability(parser.parse_args(arguments).root)
    columns = list(next(iter(table.values())))
    print(f"{'AUC':12}" + "".join(f"{column:>14}" for column in columns))
    for name, row in table.items():
        print(f"{name:12}" + "".join(f"{row[column]:14.3f}" for column in columns))


if __name__ == "__main__":
    main()

"""The two-layer perceptron as a head: loaded from a checkpoint, or trained on features of both classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harness.api.contract import GENERATED, PHOTOGRAPHIC, FitData, FittedHead, Head, Weights
from harness.api.errors import ProtocolError, WeightsError
from harness.api.heads import check_dim, in_blocks

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FittedMlp(FittedHead):
    """D → H, ReLU, → 2; score = softmax[1] in float64 (METHOD "BC").

    Attributes:
        fc1_weight `[H, D]`, fc1_bias `[H]`, fc2_weight `[2, H]`, fc2_bias `[2]`: float32, as in the checkpoint.
        fit: JSON facts of the training; empty for a loaded head.
    """

    fc1_weight: np.ndarray
    fc1_bias: np.ndarray
    fc2_weight: np.ndarray
    fc2_bias: np.ndarray
    fit: Mapping[str, Any]

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Logits `[N, 2]` float64 (photographic, generated) of features `[N, D]`."""
        first, second = self.fc1_weight.astype(np.float64).T, self.fc2_weight.astype(np.float64).T
        check_dim(features, len(first), "the perceptron")

        def block(rows: np.ndarray) -> np.ndarray:
            return np.maximum(rows @ first + self.fc1_bias, 0) @ second + self.fc2_bias

        return in_blocks(features, block)

    def score(self, features: np.ndarray) -> np.ndarray:
        """softmax[1] `[N]` float64, written as 1 / (1 + exp(l0 − l1))."""
        logits = self.logits(features)
        return 1 / (1 + np.exp(np.clip(logits[:, 0] - logits[:, 1], -700, 700)))

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Four float32 arrays under the checkpoint's names; the facts of the training."""
        arrays = {
            "fc1.weight": self.fc1_weight, "fc1.bias": self.fc1_bias,
            "fc2.weight": self.fc2_weight, "fc2.bias": self.fc2_bias,
        }  # fmt: skip
        return arrays, {"fit": dict(self.fit)}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> FittedMlp:
        """The head that `state` described."""
        return cls.of(arrays, dict(meta["fit"]))

    @classmethod
    def of(cls, named: Mapping[str, np.ndarray], fit: Mapping[str, Any]) -> FittedMlp:
        """The head from arrays under the checkpoint's names."""
        one, two, three, four = (np.asarray(named[name], dtype=np.float32) for name in MLP_NAMES)
        return cls(one, two, three, four, fit)


MLP_NAMES = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


def mlp_shapes(dim: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the perceptron's four tensors by their checkpoint names."""
    return dict(zip(MLP_NAMES, ((hidden, dim), (hidden,), (2, hidden), (2,)), strict=True))


def random_mlp(dim: int, hidden: int, seed: int) -> dict[str, Tensor]:
    """The four tensors drawn as torch's Linear draws them, uniform in ±1/√(fan-in), from `seed` alone."""
    import torch

    draws = torch.Generator().manual_seed(seed)
    fan_in = {"fc1": dim, "fc2": hidden}
    return {
        name: (2 * torch.rand(shape, generator=draws) - 1) / fan_in[name[:3]] ** 0.5
        for name, shape in mlp_shapes(dim, hidden).items()
    }


@dataclass(frozen=True)
class LoadedMlp(Head):
    """The perceptron from a checkpoint's `fc1.*` and `fc2.*` (BC.pth of the authors); nothing is fitted.

    Attributes:
        dim, hidden: D and H that the file must have.
    """

    dim: int = 768
    hidden: int = 1536

    slots = ("weights",)

    @property
    def fitted_class(self) -> type[FittedHead]:
        """FittedMlp."""
        return FittedMlp

    def fit(self, data: FitData | None, weights: Weights) -> FittedMlp:
        """The head in the file; with stated random weights, a random one.

        Raises:
            WeightsError: a tensor of the head is missing, misshaped or not finite.
        """
        source = weights["weights"]
        shapes = mlp_shapes(self.dim, self.hidden)
        if source.kind == "random":
            found = random_mlp(self.dim, self.hidden, source.seed)
        else:
            found = {name: value for name, value in source.tensors().items() if name in shapes}
        where = source.path or source.label
        if not found:
            raise WeightsError(
                "holds no binary head (fc1.*, fc2.*)", where,
                "give BC.pth, or train the head: option head=fit and the generators to train on",
            )  # fmt: skip
        for name, shape in shapes.items():
            if name not in found:
                raise WeightsError(f"the binary head lacks {name}", where, "use an intact BC.pth")
            if tuple(found[name].shape) != shape:
                raise WeightsError(
                    f"{name} is {list(found[name].shape)}, expected {list(shape)}", where,
                    "set the options encoder and hidden to the sizes of this file",
                )  # fmt: skip
        arrays = {name: found[name].detach().float().numpy() for name in MLP_NAMES}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise WeightsError("the binary head holds values that are not finite", where, "use an intact BC.pth")
        return FittedMlp.of(arrays, {})


class Samples(NamedTuple):
    """What the perceptron is trained on: features `[M, D]` float32, target `[M]` int64 (1 = generated), weight in the
    loss `[M]` float32, and which `[M]` bool are held out."""

    features: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    held: np.ndarray


@dataclass(frozen=True)
class TrainedMlp(Head):
    """The perceptron trained on photographs against images of the named generators and pseudo-outliers.

    Pseudo-outliers are the share `pseudo_share` of the photographs that the upstream mixture finds least likely; they
    are trained as generated (METHOD "BC"). With 0 the upstream is not asked.

    Attributes:
        generators: whose `train` images are in the fit set; their columns count as seen.
        upstream: the mixture that ranks the photographs.
        pseudo_share: 0.05, the share that OC's own threshold rejects.
        pseudo_keep: pseudo-outliers stay among the photographs, too; by default they change sides.
        pseudo_weight: what a pseudo-outlier weighs in the loss, over a photograph. Weighed up as generated images are
            it draws more unseen photographs to the wrong side (12 % against 7 % in a trial with 400 photographs and
            100 generated).
        hidden: H.
        epochs, batch_size, lr, weight_decay: AdamW with constant rate over shuffled batches.
        balanced: photographs have half of the loss and generated images the other, however many there are; before
            pseudo-outliers are told apart.
        hold_out: share of the fit set's photographs, and of its generated images, that is not trained on but chooses
            the epoch: the one of the least loss on them. 0: the last epoch.
        patience: with `hold_out`: training ends after so many epochs without a lesser loss.
        seed: of the initial weights, of the order of the batches and of what is held out.

    *Deviation*: the paper's recipe is published nowhere (FIDELITY A7); all of the above are our choices.
    """

    generators: tuple[str, ...] = ()
    upstream: Head | None = None
    pseudo_share: float = 0.05
    pseudo_keep: bool = False
    pseudo_weight: float = 1.0
    hidden: int = 1536
    epochs: int = 50
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-3
    balanced: bool = True
    hold_out: float = 0.0
    patience: int = 5
    seed: int = 2024

    fit_on = "both"

    @property
    def fitted_class(self) -> type[FittedHead]:
        """FittedMlp."""
        return FittedMlp

    def pseudo_outliers(self, data: FitData) -> np.ndarray:
        """Which images `[N] bool` of the fit set are photographs that count as generated.

        The int(pseudo_share · photographs) of highest upstream score; ties by position.

        Raises:
            ProtocolError: pseudo-outliers are asked for and there is no upstream head.
        """
        rows = np.flatnonzero(data.labels == PHOTOGRAPHIC)
        count = int(self.pseudo_share * len(rows))
        chosen = np.zeros(len(data.labels), dtype=bool)
        if count == 0:
            return chosen
        if data.upstream is None:
            raise ProtocolError("pseudo-outliers need an upstream mixture", fix="name one, or set pseudo_share to 0")
        order = np.argsort(-data.upstream.score(data.features[rows]), kind="stable")
        chosen[rows[order[:count]]] = True
        return chosen

    def fit(self, data: FitData | None, weights: Weights) -> FittedMlp:
        """The trained head; the same bits for the same data, options and machine, whatever ran before.

        Raises:
            ProtocolError: a class has no image to train on, or training gave values that are not finite.
        """
        assert data is not None
        pseudo = self.pseudo_outliers(data)
        samples = self._samples(data, pseudo)
        generated = int((data.labels == GENERATED).sum())
        photographs = int((samples.target == PHOTOGRAPHIC).sum())
        if not photographs or not generated:
            raise ProtocolError(
                f"the binary head needs both classes, got {photographs} photographs and {generated} generated images",
                fix="name generators that have images in the `train` split",
            )
        arrays, facts = self._train(samples)
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ProtocolError("training the binary head diverged", fix=f"lower lr (now {self.lr})")
        return FittedMlp.of(arrays, {
            "photographic": photographs, "generated": generated, "pseudo_outliers": int(pseudo.sum()),
            "generators": list(self.generators), **facts,
        })  # fmt: skip

    def _samples(self, data: FitData, pseudo: np.ndarray) -> Samples:
        """The fit set with its pseudo-outliers on the generated side."""
        target, weight, held = data.labels.astype(np.int64), self._weights(data.labels), self._held(data.labels)
        if not self.pseudo_keep:
            target = np.where(pseudo, GENERATED, target)
            weight = np.where(pseudo, weight * np.float32(self.pseudo_weight), weight)
            return Samples(data.features, target, weight, held)
        count = int(pseudo.sum())
        return Samples(
            np.concatenate([data.features, data.features[pseudo]]),
            np.concatenate([target, np.full(count, GENERATED, np.int64)]),
            np.concatenate([weight, weight[pseudo] * np.float32(self.pseudo_weight)]),
            np.concatenate([held, held[pseudo]]),  # an image is held out on both sides, or on none
        )

    def _weights(self, labels: np.ndarray) -> np.ndarray:
        if not self.balanced or len(np.unique(labels)) < 2:
            return np.ones(len(labels), dtype=np.float32)
        share = len(labels) / (2 * np.bincount(labels, minlength=2))
        return share[labels].astype(np.float32)

    def _held(self, labels: np.ndarray) -> np.ndarray:
        """Which images `[N] bool` choose the epoch: int(hold_out · n) of each class, drawn."""
        held, draws = np.zeros(len(labels), dtype=bool), np.random.default_rng(self.seed)
        for label in (PHOTOGRAPHIC, GENERATED) if self.hold_out else ():
            rows = np.flatnonzero(labels == label)
            count = int(self.hold_out * len(rows))
            if count == 0 and len(rows):
                what = f"hold_out {self.hold_out} of {len(rows)} images of a class is none"
                raise ProtocolError(what, fix="raise hold_out, give more images, or set it to 0")
            held[draws.permutation(rows)[:count]] = True
        return held

    def _train(self, samples: Samples) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The four arrays of the chosen epoch, and what is to be known of the training."""
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums over a batch are split by thread, and so rounded by thread count
        try:
            return self._epochs(samples)
        finally:
            torch.set_num_threads(threads)

    def _epochs(self, samples: Samples) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        import torch

        trained, held = _tensors(samples, ~samples.held), _tensors(samples, samples.held)
        named = random_mlp(samples.features.shape[1], self.hidden, self.seed)
        params = [named[name].requires_grad_() for name in MLP_NAMES]
        optimiser = torch.optim.AdamW(params, lr=self.lr, weight_decay=self.weight_decay)
        draws = torch.Generator().manual_seed(self.seed)
        best: dict[str, np.ndarray] = {}
        facts: dict[str, Any] = {}
        for epoch in range(1, self.epochs + 1):
            total = 0.0
            for rows in torch.randperm(len(trained[0]), generator=draws).split(self.batch_size):
                loss = _loss(params, *(part[rows] for part in trained))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                total += float(loss.detach()) * len(rows)
            here: dict[str, Any] = {"epoch": epoch, "final_loss": total / len(trained[0])}
            if len(held[0]):
                with torch.no_grad():
                    here["held_out_loss"] = float(_loss(params, *held))
            if not best or "held_out_loss" not in here or here["held_out_loss"] < facts["held_out_loss"]:
                facts, best = here, {name: named[name].detach().numpy().copy() for name in MLP_NAMES}
            elif epoch - facts["epoch"] >= self.patience:
                break
        return best, {"held_out": len(held[0]), "epochs": epoch, **facts}


def _tensors(samples: Samples, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Features, target and weight of some samples."""
    import torch

    features = np.ascontiguousarray(samples.features[rows], dtype=np.float32)
    target, weight = samples.target[rows], samples.weight[rows].astype(np.float32)
    return torch.from_numpy(features), torch.from_numpy(target), torch.from_numpy(weight)


def _loss(params: Sequence[Tensor], x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Weighted cross-entropy of the perceptron, mean over the samples."""
    import torch
    from torch.nn import functional as F

    logits = F.linear(torch.relu(F.linear(x, params[0], params[1])), params[2], params[3])
    return (F.cross_entropy(logits, y, reduction="none") * weight).mean()

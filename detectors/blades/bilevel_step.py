"""Bi-level training of the BLADES encoder: the task weights λ learn from the face task on another batch.

The step that `harness.api.trainer` drives when a recipe says `step: bilevel`. Data, encoder, losses and evaluation
are those of joint training (`detectors.blades.joint`); the mathematics is `detectors.blades.bilevel`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from detectors.blades.audit import audit_difference
from detectors.blades.bilevel import BilevelResult, NotFinite, Params, bilevel_update
from detectors.blades.config import EncoderConfig
from detectors.blades.joint import BladesJointStep, JointBatch, JointSettings
from detectors.blades.losses import task_loss
from detectors.blades.passes import Modes, NetworkPasses, blocks_of, checkpointed, kernels
from detectors.blades.prompt_tree import prompt_tree
from detectors.blades.running_statistics import RunningStatistics
from detectors.blades.tasks import task_table
from harness.api.errors import ConfigError, DataError
from harness.api.protocol import Protocol
from harness.api.training import Place, TrainingError, TrainingImages, Update, stream

PRIMARY = "face_coarse"  # ℓ_1, the outer objective (METHOD "Bi-level step")


class BilevelSettings(JointSettings):
    """The `settings` of a recipe whose step is bilevel: those of joint training, and these.

    Attributes:
        lambda_lr: β, the rate of λ's Adam (defaults else). 0 leaves λ where it starts: joint training.
        lambda_init: λ at the start, for all tasks or by task (1 where not named).
        hypergradient_audit: every that many steps, the first included, compare the difference with the exact
            product (`detectors.blades.audit`); 0 never. Costs eight forwards each time, most of a step.
        precision: `fp32`; `tf32`: CUDA's matrix units in float32 layers; `bf16`: forwards under autocast, parameters
            and losses in float32. The passes of the difference stay in float32: it would vanish in bf16's rounding.
        channels_last: memory layout of the image tower; faster, the same numbers to rounding.
        compile: forwards through `torch.compile` (not the forward-mode pass, which has no compiled form).
        checkpointing: activations inside blocks are computed again when needed: less memory, two or three forwards
            more, the same numbers. `outer`: in the pass at θ′ alone, when the graph at θ is held beside: one forward
            more.
        lagged: θ is updated with the λ from before the step: saves a backward, and the graph is freed early. Not
            what the paper says (eq. 14c takes the new λ), though λ moves by 3e-4 a step at most.
    """

    lambda_lr: float = Field(default=3e-4, ge=0)
    lambda_init: float | dict[str, float] = 1.0
    hypergradient_audit: int = Field(default=0, ge=0)
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    checkpointing: bool | Literal["outer"] = False
    lagged: bool = False


class BilevelBatch(NamedTuple):
    """What one step sees: B_tr for the task losses, B_val for the outer loss."""

    inner: JointBatch
    outer: JointBatch


class BladesBilevelStep(BladesJointStep):
    """Joint training whose λ follow the hypergradient of the coarse face loss on a second batch.

    λ is a vector of its own with its own Adam: unconstrained, one a task, updated before θ in every step. The second
    batch comes from `outer`, or as released from `train` in another shuffled pass (FIDELITY `outer_batch`), with
    manipulations of its own draw.

    Args:
        config, settings, images, protocol: as in `BladesJointStep`; settings are `BilevelSettings`, and of the
            protocol `outer_batch`, `hypergradient`, `virtual_weight_decay`, `outer_lr_scale` and `bn_updates` are
            read too.

    Raises:
        ConfigError: as `BladesJointStep`; fixed `weights`; no coarse face task.
        DataError: as `BladesJointStep`; fewer than two photographs in `outer`, if that is what the protocol wants.

    *Deviation*: where the protocol wants four updates of running statistics with the exact product, all four are by
    the statistics at θ: there are no passes at θ ± εv.
    """

    settings: BilevelSettings
    settings_type: ClassVar[type[JointSettings]] = BilevelSettings

    def __init__(
        self, config: EncoderConfig, settings: Mapping[str, Any], images: TrainingImages, protocol: Protocol
    ) -> None:
        super().__init__(config, settings, images, protocol)
        if self.settings.weights:
            raise ConfigError("λ is learnt in a bi-level recipe", where="settings.weights", fix="say lambda_init")
        if self.settings.compile and self.settings.checkpointing:
            fix = "say checkpointing: false or compile: false"
            raise ConfigError("a compiled network cannot recompute its blocks", "settings.checkpointing", fix)
        if PRIMARY not in self.table.names:
            raise ConfigError(f"the outer loss is {PRIMARY}'s", where="settings.tasks", fix=f"add {PRIMARY}")
        self.initial = self._initial_weights()
        self.outer_split = "outer" if protocol.outer_batch == "heldout" else "train"
        if len(self._rows[self.outer_split]) < 2:
            raise DataError(
                f"bi-level training needs photographs in `{self.outer_split}`; "
                f"there are {len(self._rows[self.outer_split])}",
                fix="give an `outer` split, or set protocol.outer_batch: train (as released)",
            )
        self.outer_task = task_table(self.settings.levels, names=(PRIMARY,))[PRIMARY]

    def _initial_weights(self) -> Tensor:
        given = self.settings.lambda_init
        by_task = given if isinstance(given, dict) else dict.fromkeys(self.table.names, given)
        spare = [name for name in by_task if name not in self.table.names]
        if spare:
            raise ConfigError(f"lambda_init of a task that is not trained: {spare[0]!r}", where="settings.lambda_init")
        return torch.tensor([by_task.get(name, 1.0) for name in self.table.names])

    def start(self, seed: int, device: str) -> None:
        """The encoder of that seed; λ at its start with a fresh Adam.

        Raises:
            ConfigError: tf32 without CUDA.
        """
        cuda = torch.device(device).type == "cuda"
        if self.settings.precision == "tf32" and not cuda:
            raise ConfigError("tf32 is a mode of CUDA devices", where="settings.precision", fix="use fp32 or bf16")
        super().start(seed, device)
        if not self.settings.channels_last:
            self.encoder = self.encoder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for layer in self.encoder.image.modules():
            if isinstance(layer, nn.ReLU):  # nothing needs its input: BatchNorm and the sum before it keep their own
                layer.inplace = True
        self.weight_vector = self.initial.to(device).clone().requires_grad_()
        self.weight_optimizer = torch.optim.Adam([self.weight_vector], lr=self.settings.lambda_lr)
        self.statistics = RunningStatistics(self.encoder)
        rows = self.tokens.cpu().numpy()
        self.tree = prompt_tree(rows).to(device)
        self.outer_tree = prompt_tree(rows[self.table[PRIMARY].slice]).to(device)
        self.modes = Modes(
            precision=self.settings.precision,
            compiled=torch.compile(self.encoder) if self.settings.compile else None,
            keep=self.protocol.hypergradient == "exact" and self.settings.checkpointing is not True,
            collect_all=self.protocol.bn_updates > 1, recompute_outer=self.settings.checkpointing == "outer",
        )  # fmt: skip
        if self.settings.checkpointing is True:
            for block in blocks_of(self.encoder):
                checkpointed(block)

    def batch(self, epoch: int, index: int, batch_size: int, seed: int) -> BilevelBatch:  # type: ignore[override]
        """Batch `index` of an epoch with its outer batch, which is drawn from a seed of its own."""
        other = int(stream(seed, "outer").integers(2**62))
        return BilevelBatch(
            self._drawn_batch("train", epoch, index, batch_size, seed),
            self._drawn_batch(self.outer_split, epoch, index, batch_size, other),
        )

    def names(self, batch: JointBatch | BilevelBatch) -> tuple[str, ...]:
        """Digests of the inner batch's photographs; a manipulated one has its photograph's."""
        return batch.inner.names if isinstance(batch, BilevelBatch) else batch.names

    def losses(self, batch: JointBatch | BilevelBatch) -> dict[str, Tensor]:
        """The loss of each task on the inner batch, as in joint training."""
        return super().losses(batch.inner if isinstance(batch, BilevelBatch) else batch)

    def weights(self) -> Mapping[str, float]:
        """λ of each task as it stands."""
        return dict(zip(self.table.names, self.weight_vector.tolist(), strict=True))

    def update(self, batch: BilevelBatch, optimizer: torch.optim.Optimizer, place: Place) -> Update:
        """One bi-level step (`bilevel.bilevel_update`).

        The history gets `lambda` (after the update), `outer_loss`, `hypergradient` by task, and `audit` when due.

        Raises:
            TrainingError: a loss or gradient is not finite: names the step, the tasks that are not and the images.
                Parameters, λ, both optimisers and running statistics are as they were.
        """
        self._training_mode()
        parameters = {name: p for name, p in self.encoder.named_parameters() if p.requires_grad}
        passes = self._passes(batch)
        audit: dict[str, Any] = {}

        def look(v: Params, product: Tensor) -> None:
            # in another precision the product is not what the difference, always in float32, is to be compared with
            alike = self.protocol.hypergradient == "exact" and self.settings.precision == "fp32"
            exact = product if alike else None
            theta = {name: p.detach() for name, p in parameters.items()}
            audit["audit"] = audit_difference(passes.losses_anywhere, theta, v, exact).fields(self.table.names)

        due = self.settings.hypergradient_audit and (place.step - 1) % self.settings.hypergradient_audit == 0
        try:
            with kernels(self.modes):
                result = bilevel_update(
                    passes, parameters, self.weight_vector, optimizer, self.weight_optimizer,
                    lr=place.lr, factor=place.base_lr if self.protocol.outer_lr_scale == "constant" else place.lr,
                    weight_decay=self.protocol.virtual_weight_decay, method=self.protocol.hypergradient,
                    lagged=self.settings.lagged, inspect=look if due else None,
                    **({} if self.world is None else {"add_up": self.world.sum_}),
                )  # fmt: skip
        except NotFinite as error:
            raise self._stopped(error, batch, place) from None
        self.statistics.commit(passes.updates(self.protocol.bn_updates))
        return self._told(result, audit)

    def _passes(self, batch: BilevelBatch) -> NetworkPasses:
        """The passes of one update: task losses of the inner batch, the coarse loss of the outer one.

        The outer loss asks for two of the prompts, and no other has a part in it.
        """
        layout = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        inner, outer = (part.inputs.to(self.device, memory_format=layout) for part in batch)
        labels = {name: self._whole(value) for name, value in batch.outer.labels.items()}
        return NetworkPasses(
            self.encoder, self.statistics, self.modes,
            inner=((inner, self.tree), lambda logits: self.loss_vector(logits, batch.inner)),
            outer=((outer, self.outer_tree), lambda logits: task_loss(self.outer_task, self._gathered(logits), labels)),
        )  # fmt: skip

    def _told(self, result: BilevelResult, audit: dict[str, Any]) -> Update:
        names = self.table.names
        after = self.weight_vector.tolist()
        used = result.weights if self.settings.lagged else after
        more = {
            "lambda": dict(zip(names, after, strict=True)),
            "outer_loss": result.outer,
            "hypergradient": dict(zip(names, result.hypergradient, strict=True)),
            **audit,
        }
        total = math.fsum(w * loss for w, loss in zip(used, result.losses, strict=True))
        return Update(total, dict(zip(names, result.losses, strict=True)), more)

    def _stopped(self, error: NotFinite, batch: BilevelBatch, place: Place) -> TrainingError:
        names = self.table.names if len(error.values) == len(self.table.names) else (PRIMARY,) * len(error.values)
        bad = [f"{n} = {v}" for n, v in zip(names, error.values, strict=True) if not math.isfinite(v)]
        outer = str(error).startswith("outer")
        what = ": ".join([str(error), ", ".join(bad)]) if bad else str(error)
        return place.stop(what, (batch.outer if outer else batch.inner).names)

    def training_state(self) -> dict[str, Tensor]:
        """λ and the state of its Adam, as copies on the CPU."""
        state = self.weight_optimizer.state.get(self.weight_vector, {})
        named = {"lambda": self.weight_vector, **{f"lambda.{key}": value for key, value in state.items()}}
        return {name: value.detach().cpu().clone() for name, value in named.items()}

    def load_training_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Bring back λ and its Adam, after `start`.

        Raises:
            ConfigError: tensors of another step, or of other tasks.
        """
        moments = {name.removeprefix("lambda."): t for name, t in tensors.items() if name.startswith("lambda.")}
        spare = set(tensors) - {"lambda", *(f"lambda.{key}" for key in moments)}
        size = self.weight_vector.shape
        shapes = {"lambda": size, "step": torch.Size([]), "exp_avg": size, "exp_avg_sq": size}
        whole = {"lambda": tensors.get("lambda"), **moments}
        if spare or set(whole) not in ({"lambda"}, set(shapes)) or any(
            t is None or t.shape != shapes[name] for name, t in whole.items()
        ):  # fmt: skip
            raise ConfigError(
                f"not the training state of this step: {', '.join(sorted(tensors)) or 'nothing'}",
                fix="resume from a checkpoint of the same recipe",
            )
        with torch.no_grad():
            self.weight_vector.copy_(tensors["lambda"])
        self.weight_optimizer.state.clear()
        if moments:
            # Adam keeps its step count on the CPU, its moments beside the parameter.
            device = {"step": "cpu"}
            self.weight_optimizer.state[self.weight_vector] = {
                name: t.detach().clone().to(device.get(name, self.device)) for name, t in moments.items()
            }

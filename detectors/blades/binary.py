"""BLADES-BC: a two-layer perceptron on the same frozen features, loaded or trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from detectors.blades.config import EncoderConfig
from detectors.blades.one_class import CITATION, CODE, BladesDetector, BladesOptions
from harness.api.contract import Facts, FixedThreshold, Head, ThresholdRule, WeightsFile
from harness.api.mlp import LoadedMlp, TrainedMlp


class BinaryOptions(BladesOptions):
    """Options of BLADES-BC. All but `head` and `hidden` are for `head: fit` alone.

    Attributes:
        head: `load` it from the checkpoint (the authors' BC.pth), or `fit` it on features.
        generators: whose `train` images the head is fitted on; their columns count as seen.
        hidden: width of the hidden layer.
        pseudo_share: share of the photographs, the least likely under OC's mixture (`components`, `seed`), trained as
            generated.
        pseudo_keep: they stay among the photographs, too.
        pseudo_weight: what one weighs in the loss, over a photograph.
        epochs, head_batch_size, lr, weight_decay, balanced, head_seed: training of the head (`TrainedMlp`); a suite's
            `batch_size` is another thing, that of the features.
        hold_out: share of the fit set that chooses the epoch in place of being trained on; 0: the last epoch.
        patience: with `hold_out`: epochs without a lesser loss before training ends.
    """

    head: Literal["load", "fit"] = "load"
    generators: tuple[str, ...] = ()
    hidden: int = Field(default=1536, ge=1)
    pseudo_share: float = Field(default=0.05, ge=0, lt=1)
    pseudo_keep: bool = False
    pseudo_weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    epochs: int = Field(default=50, ge=1)
    head_batch_size: int = Field(default=256, ge=1)
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=1e-3, ge=0, allow_inf_nan=False)
    balanced: bool = True
    hold_out: float = Field(default=0.0, ge=0, lt=1)
    patience: int = Field(default=5, ge=1)
    head_seed: int = Field(default=2024, ge=0)

    @model_validator(mode="after")
    def _options_belong_together(self) -> BinaryOptions:
        if (self.head == "fit") != bool(self.generators):
            raise ValueError("head=fit needs generators to train on, and head=load takes none")
        if len(set(self.generators)) < len(self.generators):
            raise ValueError(f"generators names one twice: {', '.join(self.generators)}")
        spare = [] if self.head == "fit" else self._changed(*FIT_ONLY)
        if spare:
            raise ValueError(f"{spare[0]} is an option of head=fit; a loaded head is not trained")
        if not self.pseudo_share and (idle := self._changed("pseudo_keep", "pseudo_weight")):
            raise ValueError(f"{idle[0]} does nothing with pseudo_share=0")
        if not self.hold_out and self._changed("patience"):
            raise ValueError("patience does nothing without hold_out")
        return self

    def _changed(self, *names: str) -> list[str]:
        """Of these options, those that are not at their defaults."""
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]


FIT_ONLY = (
    "pseudo_share", "pseudo_keep", "pseudo_weight", "epochs", "head_batch_size", "lr", "weight_decay", "balanced",
    "hold_out", "patience", "head_seed",
)  # fmt: skip


class BladesBC(BladesDetector):
    """BLADES-BC (METHOD "Detection")."""

    name = "blades-bc"
    facts = Facts(
        title="BLADES-BC",
        citation=CITATION,
        code=CODE,
        licence="Apache-2.0 (code); weights without a stated licence; training data FDF CC BY-NC-SA 2.0",
        published_row="BLADES-BC",
        notes=(
            "the authors publish neither the images nor the recipe that their head was trained on",
            "its image tower is stored apart from OC.pth's: features are shared only where the files are the same",
        ),
    )
    Options = BinaryOptions
    weights_files: ClassVar = {
        "weights": WeightsFile(
            name="blades/BC.pth",
            where="https://pan.baidu.com/s/1ti2IjDKX5W-KPax47Mqgtw?pwd=tmrk (BC-MLP in the authors' README)",
            licence="not stated; code Apache-2.0",
        )
    }
    options: BinaryOptions

    def head(self) -> Head:
        """The perceptron; score = softmax[1]."""
        options = self.options
        if options.head == "load":
            return LoadedMlp(EncoderConfig.named(options.encoder).feature_dim, options.hidden)
        return TrainedMlp(
            generators=options.generators,
            upstream=self.mixture() if options.pseudo_share else None,
            pseudo_share=options.pseudo_share,
            pseudo_keep=options.pseudo_keep,
            pseudo_weight=options.pseudo_weight,
            hidden=options.hidden,
            epochs=options.epochs,
            batch_size=options.head_batch_size,
            lr=options.lr,
            weight_decay=options.weight_decay,
            balanced=options.balanced,
            hold_out=options.hold_out,
            patience=options.patience,
            seed=options.head_seed,
        )

    def threshold(self) -> ThresholdRule:
        """0.5, as released."""
        return FixedThreshold(0.5)

    def warnings(self, fit_images: int) -> Sequence[str]:
        """Says that a fitted head is not the authors'."""
        if self.options.head == "load":
            return ()
        return (
            f"head fitted on {fit_images} images, generated ones of {', '.join(self.options.generators)}; "
            "the authors' own recipe is not published",
        )

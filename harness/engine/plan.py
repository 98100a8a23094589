"""The plan: every stage with its key, what each needs, what the store has, what is to do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.api.contract import Extractor, Head, Preprocess, QuantileThreshold, Transform
from harness.api.errors import DataError
from harness.api.images import ImageFacts
from harness.api.weights import ResolvedWeights
from harness.data.edits import InputEdits
from harness.engine.keys import Numerics, canonical, digest_of, set_digest, stage_identity, stage_key
from harness.engine.recipes import RecipeWork, recipe_work
from harness.engine.rows import PreparedRow
from harness.engine.source import source_digest
from harness.engine.training_data import Sources
from harness.results.digests import NONE, Picked, digests_array, distinct_places, hex_digests
from harness.results.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from harness.data.splits import Draws
    from harness.engine.suite import Suite


@dataclass(frozen=True)
class Settings:
    """What a run is made with besides the suite: device, intra-op threads, batch size, and edits of the input."""

    device: str = "cpu"
    threads: int = 1
    batch_size: int | None = None
    edits: Mapping[str, Any] = field(default_factory=dict)
    weights_root: Path = Path("pretrained")


@dataclass
class ItemStage:
    """A transform or extractor over images. ``needed`` grows while rows are planned; ``source`` is the transform
    whose maps it reads (None: images through ``preprocess``). What is needed and missing are rows of the manifest, each
    image once, in the order of their digests."""

    key: str
    kind: str
    stage: Transform | Extractor
    description: Mapping[str, Any]
    preprocess: Preprocess
    weights: Mapping[str, ResolvedWeights]
    source: ItemStage | None
    micro_batch: int
    rows: list[str] = field(default_factory=list)
    needed: Picked = NONE
    missing: Picked = NONE

    @property
    def bytes_each(self) -> int:
        """Stored bytes an image (0: unknown)."""
        if isinstance(self.stage, Extractor):
            return 4 * self.stage.dim + 64
        return self.stage.map_bytes and self.stage.map_bytes + 64


@dataclass
class HeadWork:
    """A head to fit or load, with the manifest rows it is fitted on (in fit order)."""

    key: str
    head: Head
    description: Mapping[str, Any]
    upstream: HeadWork | None
    fit_rows: np.ndarray
    weights: Mapping[str, ResolvedWeights]


@dataclass
class RowPlan:
    """A runnable row: its stages, head, threshold and calibration images (manifest rows)."""

    row: PreparedRow
    items: np.ndarray
    stages: list[ItemStage]
    head: HeadWork
    threshold_key: str
    calibration_rows: np.ndarray

    @property
    def extractor(self) -> ItemStage:
        """The stage whose results are the features."""
        return self.stages[-1]


@dataclass
class Plan:
    """Everything a run will do.

    Attributes:
        manifest: the table of images; of its columns, `PLANNED` are used.
        images: digests ``[N] S32`` of its rows.
        draws: the test sets; ``cell_rows`` are the manifest rows that any of them names.
        untrainable: rows that are not run because the images of their recipe are not there or cannot be read; why.
    """

    manifest: pd.DataFrame
    images: np.ndarray
    root: Path
    draws: Draws
    cell_rows: np.ndarray
    rows: list[RowPlan]
    stages: dict[str, ItemStage]
    recipes: dict[str, RecipeWork]
    settings: Settings
    untrainable: dict[str, str] = field(default_factory=dict)

    @property
    def cells(self) -> pd.DataFrame:
        """A row an image and test set, as `cells.parquet` has it."""
        return self.draws.frame(self.manifest)

    def sha256(self, rows: np.ndarray) -> list[str]:
        """Of the images of manifest rows."""
        return hex_digests(self.images[rows])


PLANNED = ("path", "label", "generator", "dataset", "split", "order")
"""Columns of a manifest that planning and execution read, besides the digests (trainings of a suite read more)."""


def item_digests(images: np.ndarray, manifest: pd.DataFrame, root: Path, preprocess: Preprocess) -> np.ndarray:
    """Digest ``[len(manifest)] S32`` of what each image's result depends on: that of the image (``images``, in
    manifest order), joined with the sidecar's where the preprocess reads one."""
    if type(preprocess).sidecar is Preprocess.sidecar:
        return images
    items = images.copy()
    paths = manifest["path"].to_numpy()
    for row in range(len(paths)):
        sidecar = preprocess.sidecar(root / paths[row])
        if sidecar is not None and sidecar.is_file():
            side = hashlib.sha256(sidecar.read_bytes()).digest()
            items[row] = hashlib.sha256(images[row].ljust(32, b"\0") + side).digest()
    return items


def fit_rows(manifest: pd.DataFrame, dataset: str, count: int) -> np.ndarray:
    """Manifest rows of the first ``count`` `train` photographs of a dataset, in list order.

    Raises:
        DataError: there are none.
    """
    mask = (manifest["label"] == 0) & (manifest["split"] == "train") & (manifest["dataset"] == dataset)
    rows = np.flatnonzero(mask.to_numpy())
    if len(rows) == 0:
        raise DataError(f"dataset {dataset!r} has no `train` photographs", fix="see `harness data check`")
    order = np.argsort(manifest["order"].to_numpy()[rows], kind="stable")
    return rows[order][:count]


def _with_generators(
    manifest: pd.DataFrame, images: np.ndarray, photographs: np.ndarray, generators: Sequence[str]
) -> np.ndarray:
    if not generators:
        return photographs
    mask = (manifest["label"] == 1) & (manifest["split"] == "train") & manifest["generator"].isin(list(generators))
    rows = np.flatnonzero(mask.to_numpy())
    present = set(manifest["generator"].iloc[rows])
    absent = [g for g in generators if g not in present]
    if absent:
        raise DataError(f"no `train` images of generator {absent[0]!r} to fit on", fix="name a generator that is there")
    order = np.lexsort((images[rows], manifest["generator"].iloc[rows].to_numpy(object)))
    return np.concatenate([photographs, rows[order]])


class _Planner:
    def __init__(
        self,
        suite: Suite,
        manifest: pd.DataFrame,
        images: np.ndarray,
        root: Path,
        draws: Draws,
        cell_rows: np.ndarray,
        settings: Settings,
    ) -> None:
        self.suite, self.manifest, self.root, self.settings = suite, manifest, root, settings
        self.images = images
        self.plan = Plan(manifest, images, root, draws, cell_rows, [], {}, {}, settings)
        photographs = np.flatnonzero(manifest["label"].to_numpy() == 0)[:1]
        self.dataset = suite.fit.dataset or "".join(manifest["dataset"].iloc[photographs])
        self.heads: dict[str, HeadWork] = {}
        self.sets: dict[bytes, Picked] = {}
        self.items: dict[str, np.ndarray] = {}
        self.sources = Sources(manifest, root, self.dataset, suite.fit.count, settings.edits)

    def identities(self, row: PreparedRow) -> dict[str, ResolvedWeights] | None:
        """Weights of the slots, trained ones by their recipe's key; None (said in the plan) where a recipe's images are
        not there or cannot be read: that is about this row alone."""
        try:
            sources = {slot: self.sources.of(recipe) for slot, recipe in row.recipes.items()}
        except DataError as error:
            said = [error.what, *([f"({error.where})"] if error.where else [])]
            names = ", ".join(recipe.recipe for recipe in row.recipes.values())
            text = f"recipe {names} cannot be trained here: {' '.join(said)}"
            self.plan.untrainable[row.name] = text if error.fix is None else f"{text}; {error.fix}"
            return None
        weights, how = dict(row.weights), self.settings
        for slot, recipe in row.recipes.items():
            work = recipe_work(recipe, sources[slot], how.edits, how.threads, how.device, how.weights_root)
            self.plan.recipes.setdefault(work.key, work)
            weights[slot] = ResolvedWeights("recipe", f"recipe:{work.key}", label=f"recipe {recipe.recipe}")
        return weights

    def numerics(self, row: PreparedRow, stage: Transform | Extractor) -> Numerics:
        batch = self.settings.batch_size or row.batch_size or stage.micro_batch
        if stage.micro_batch == 1:
            batch = 1
        return Numerics.here(self.settings.device, batch, self.settings.threads)

    def stages(self, row: PreparedRow, weights: Mapping[str, ResolvedWeights]) -> list[ItemStage]:
        chain, source = row.chain, None
        out: list[ItemStage] = []
        links: tuple[Transform | Extractor, ...] = (*chain.transforms, chain.extractor)
        identities = {slot: w.identity for slot, w in weights.items()}
        first = digest_of([stage_identity(chain.preprocess, identities), source_digest(ImageFacts)])
        for stage in links:
            kind = "features" if stage is chain.extractor else "maps"
            numerics = self.numerics(row, stage)
            inputs = [first if source is None else source.key]
            key, description = stage_key(
                kind, stage_identity(stage, identities), inputs=inputs, numerics=numerics, edits=self.settings.edits
            )
            mine = {slot: weights[slot] for slot in stage.slots}
            new = ItemStage(
                key, kind, stage, description, chain.preprocess, mine, source, numerics.micro_batch
            )  # fmt: skip
            source = self.plan.stages.setdefault(key, new)
            source.rows.append(row.name)
            out.append(source)
        return out

    def head(self, head: Head, row: PreparedRow, extractor: ItemStage, items: np.ndarray, weights: Any) -> HeadWork:
        upstream = None if head.upstream is None else self.head(head.upstream, row, extractor, items, weights)
        rows = np.empty(0, np.int64)
        if head.fit_on != "nothing":
            rows = fit_rows(self.manifest, self.dataset, self.suite.fit.count)
            rows = _with_generators(self.manifest, self.images, rows, head.generators if head.fit_on == "both" else ())
            rows = rows[head.fit_order(len(rows))]
        labels = self.manifest["label"].to_numpy()[rows]
        names = self.manifest["generator"].iloc[rows]
        identities = {slot: w.identity for slot, w in weights.items()}
        inputs = [extractor.key if len(rows) else "-", set_digest(items[rows], labels, [str(n) for n in names])]
        key, description = stage_key(
            "head",
            stage_identity(_without_upstream(head), identities),
            inputs=[*inputs, upstream.key if upstream else "-"],
            numerics=Numerics.here("cpu", 0, self.settings.threads),
        )
        mine = {slot: weights[slot] for slot in head.slots}
        return self.heads.setdefault(key, HeadWork(key, head, description, upstream, rows, mine))

    def calibration(self, row: PreparedRow, head: HeadWork) -> np.ndarray:
        rule = row.chain.threshold
        if not isinstance(rule, QuantileThreshold):
            return np.empty(0, np.int64)
        if rule.calibration == "in_sample":
            if len(head.fit_rows):
                rows = head.fit_rows
                return rows[self.manifest["label"].to_numpy()[rows] == 0]
            return fit_rows(self.manifest, self.dataset, self.suite.fit.count)
        mask = (self.manifest["label"] == 0) & (self.manifest["split"] == "select")
        rows = np.flatnonzero((mask & (self.manifest["dataset"] == self.dataset)).to_numpy())
        if len(rows) == 0:
            raise DataError(f"dataset {self.dataset!r} has no `select` photographs for held-out calibration")
        return rows[np.argsort(self.manifest["order"].to_numpy()[rows], kind="stable")]

    def items_of(self, preprocess: Preprocess, identities: Mapping[str, str]) -> np.ndarray:
        """:func:`item_digests`, one array a preprocess."""
        key = digest_of(stage_identity(preprocess, identities))
        if key not in self.items:
            self.items[key] = item_digests(self.images, self.manifest, self.root, preprocess)
        return self.items[key]

    def needed(self, items: np.ndarray, touched: np.ndarray) -> Picked:
        """The distinct items of the rows of a mask; those who look at the same rows of the same items share it."""
        key = hashlib.sha256(id(items).to_bytes(8, "big") + np.packbits(touched).tobytes()).digest()
        if key not in self.sets:
            self.sets[key] = Picked(items, distinct_places(items, touched))
        return self.sets[key]

    def add(self, row: PreparedRow) -> None:
        weights = self.identities(row)
        if weights is None:
            return
        all_rows = self.plan.cell_rows
        items = self.items_of(row.chain.preprocess, {slot: w.identity for slot, w in weights.items()})
        stages = self.stages(row, weights)
        head = self.head(row.chain.head, row, stages[-1], items, weights)
        calibration = self.calibration(row, head)
        threshold_key, _ = stage_key(
            "threshold",
            stage_identity(row.chain.threshold, {}),
            inputs=[
                head.key,
                stages[-1].key,
                set_digest(items[calibration], np.zeros(len(calibration)), []),
            ],
            numerics=None,
        )
        touched = np.zeros(len(items), bool)
        touched[all_rows] = touched[calibration] = True
        above: HeadWork | None = head
        while above is not None:
            touched[above.fit_rows] = True
            above = above.upstream
        needed = self.needed(items, touched)
        for stage in stages:
            both = touched.copy()
            both[stage.needed.rows] = True
            stage.needed = needed if (both == touched).all() else self.needed(items, both)
        self.plan.rows.append(RowPlan(row, items, stages, head, threshold_key, calibration))


def _without_upstream(head: Head) -> Head:
    """The head's own identity leaves its upstream out: that enters the key as an input."""
    names = getattr(head, "__dataclass_fields__", {})
    return replace(head, upstream=None) if "upstream" in names else head  # type: ignore[type-var]


def make_plan(
    suite: Suite,
    prepared: Sequence[PreparedRow],
    manifest: pd.DataFrame,
    root: Path,
    draws: Draws,
    cell_rows: np.ndarray,
    store: Store,
    settings: Settings,
    images: np.ndarray | None = None,
) -> Plan:
    """The plan of all rows whose weights are there or can be trained, with what is missing in the store.

    ``images`` are the digests ``[N] S32`` of the manifest's rows; None: those of its column `sha256`.

    Raises:
        DataError: a fit set or calibration set is empty.
    """
    known = digests_array(manifest["sha256"]) if images is None else images
    planner = _Planner(suite, manifest, known, root, draws, cell_rows, settings)
    for row in prepared:
        if row.missing is None:
            planner.add(row)
    for stage in planner.plan.stages.values():
        stage.missing = stage.needed.where(~store.items(stage.key).stored(stage.needed))
    return planner.plan


def plan_summary(plan: Plan, store: Store) -> list[dict[str, Any]]:
    """What ``--dry-run`` prints, a dictionary a stage: stored, to do, hours (None: never measured here), GB."""
    out: list[dict[str, Any]] = []
    for work in plan.recipes.values():
        done = store.entry("recipes", work.key) is not None
        out.append({
            "stage": f"train {work.recipe.recipe}", "key": work.key, "rows": [], "stored": int(done),
            "to_do": int(not done), "hours": None, "gigabytes": 0.0,
        })  # fmt: skip
    for stage in plan.stages.values():
        rate = (store.entry("rates", stage.key) or {}).get("images_per_second")
        out.append({
            "stage": stage.kind,
            "key": stage.key,
            "rows": stage.rows,
            "stored": len(stage.needed) - len(stage.missing),
            "to_do": len(stage.missing),
            "hours": len(stage.missing) / rate / 3600 if rate else (0.0 if len(stage.missing) == 0 else None),
            "gigabytes": len(stage.missing) * stage.bytes_each / 1e9,
        })  # fmt: skip
    return out


def edits_key(edits: InputEdits) -> dict[str, Any]:
    """Edits as they enter keys: nothing when none is made, else what is done and the source that does it."""
    if edits == InputEdits():
        return {}
    return {**canonical(edits.identity()), "source": source_digest(InputEdits)}

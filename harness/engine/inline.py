"""Runs the item stages of a plan in this process: one micro-batch size, padded, so that no row depends on its batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness.api.contract import Extractor, Transform
from harness.api.errors import PluginError, StoreError
from harness.api.events import Event, Listener
from harness.engine.images import Reader, ahead
from harness.engine.plan import ItemStage
from harness.results.digests import Digests, Picked
from harness.results.store import Store

if TYPE_CHECKING:
    from torch import Tensor

FLUSH_SECONDS = 5.0
FLUSH_ROWS = 4096
ROWS_AT_ONCE = 4
"""Rows that CPU kernels take together: a matrix with one column (a network's logit) is multiplied by four rows at a
time, and rows left over are summed in another order, so that the last bit of 10 rows depends on their places (seen
for every batch size that is no multiple of 4, and for none that is)."""


NOTHING = np.empty(0, "S32")
"""No images."""


class LostError(StoreError):
    """Stored results turned out to be damaged when they were read; computing them again mends it."""


def pin_numerics(threads: int) -> None:
    """Fix what else would move the bits of a forward: intra-op threads (in the numerics class), and on a GPU full
    float32 instead of TF32 and cuDNN's repeatable kernels chosen without timing."""
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


class _Writer:
    """Collects rows and stores them every so many seconds, so that a killed run loses only those."""

    def __init__(self, store: Store, stage: ItemStage, seconds: float) -> None:
        self.items, self.seconds = store.items(stage.key), seconds
        self.digests: list[bytes] = []
        self.values: list[np.ndarray] = []
        self.since = time.monotonic()

    def add(self, digest: bytes, value: np.ndarray) -> None:
        if self.values and self.values[0].shape != value.shape:
            self.flush()
        self.digests.append(digest)
        self.values.append(value)
        if len(self.values) >= FLUSH_ROWS or time.monotonic() - self.since >= self.seconds:
            self.flush()

    def flush(self) -> None:
        if self.values:
            self.items.put(np.array(self.digests, dtype="S32"), np.stack(self.values))
        self.digests, self.values, self.since = [], [], time.monotonic()


Row = tuple[bytes, "Tensor | None"]


def _from_images(
    stage: ItemStage, items: Digests, rows: Sequence[int] | np.ndarray, reader: Reader, workers: int
) -> Iterator[Row]:
    window = 2 * max(stage.micro_batch, workers)
    jobs = range(len(rows))
    for job, tensor in ahead(jobs, lambda i: reader.tensor(rows[i], stage.preprocess), workers, window):
        yield items[job], tensor


def _from_maps(source: ItemStage, items: Digests, store: Store, chunk: int) -> Iterator[Row]:
    import torch

    for start in range(0, len(items), chunk):
        part = items[start : start + chunk]
        values, found = store.items(source.key).get(part)
        if not found.all():
            raise LostError("stored maps are gone (a damaged segment was set aside)", where=source.key, fix="run again")
        for digest, value in zip(part, values, strict=True):
            # a map that is all NaN stands for an abstention upstream
            array = np.asarray(value)
            abstains = array.dtype.kind == "f" and bool(np.isnan(array).all())
            yield digest, None if abstains else torch.from_numpy(array.copy())


def batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Lists of up to ``size`` rows whose tensors have one shape; abstentions ride along without counting."""
    batch: list[Row] = []
    count = 0
    shape = None
    for row in rows:
        tensor = row[1]
        if tensor is not None:
            if count == size or (shape is not None and tensor.shape != shape):
                yield batch
                batch, count = [], 0
            shape = tensor.shape
            count += 1
        batch.append(row)
    if batch:
        yield batch


def forward(
    run: Callable[[Tensor], Tensor], batch: list[Row], stage: Transform | Extractor, size: int, device: str
) -> list[np.ndarray | None]:
    """Results of a batch, padded with zeros to one size; None for abstentions.

    The size is the micro-batch, rounded up to a multiple of ``ROWS_AT_ONCE`` unless it is 1.

    Raises:
        PluginError: the stage gave a result of another shape than it states.
    """
    import torch

    tensors = [t for _, t in batch if t is not None]
    out: list[np.ndarray | None] = [None] * len(batch)
    if not tensors:
        return out
    size = size if size == 1 else size + -size % ROWS_AT_ONCE
    padded = torch.zeros((size, *tensors[0].shape), dtype=tensors[0].dtype)
    torch.stack(tensors, out=padded[: len(tensors)])
    with torch.no_grad():
        result = run(padded.to(device))
    right = result.shape[:1] == (size,) if isinstance(stage, Transform) else result.shape == (size, stage.dim)
    if not right:
        stated = f"[{size}, ...]" if isinstance(stage, Transform) else f"[{size}, {stage.dim}]"
        raise PluginError(f"{type(stage).__name__} states results {stated} and gave {list(result.shape)}")
    values = iter(result[: len(tensors)].detach().cpu().numpy())
    return [None if t is None else next(values) for _, t in batch]


def _nothing(stage: ItemStage) -> np.ndarray:
    """What is stored for an image on which the detector abstains."""
    shape = (stage.stage.dim,) if isinstance(stage.stage, Extractor) else (1,)
    return np.full(shape, np.nan, np.float32)


def missing_of(stage: ItemStage, store: Store, without: np.ndarray = NOTHING) -> Picked:
    """Images that a stage needs and the store lacks, less those ``without`` which it must do."""
    missing = stage.needed.where(~store.items(stage.key).stored(stage.needed))
    return missing if len(without) == 0 else missing.where(~np.isin(missing[:], without))


def label_of(stage: ItemStage) -> str:
    """A stage's name for people."""
    return f"{stage.kind} for {', '.join(dict.fromkeys(stage.rows))}"


def compute(
    stage: ItemStage, run: Callable[[Tensor], Tensor], items: Digests, rows: Sequence[int] | np.ndarray, reader: Reader,
    store: Store, *, device: str, workers: int, flush_seconds: float = FLUSH_SECONDS,
    told: Callable[[int], None] = lambda done: None,
) -> int:  # fmt: skip
    """Compute and store the results of some images; how many.

    Args:
        run: what ``stage.stage.load`` gave.
        items: digests ``[N] S32`` of the images.
        rows: their rows in the reader; not looked at where the stage reads maps.
        workers: threads that read ahead.
        flush_seconds: results are stored after so many seconds at the latest, and when this ends in whatever way.
        told: is given the number done after each micro-batch.

    Raises:
        DataError, StoreError, LostError: as reading and storing.
    """
    if stage.source is None:
        source = _from_images(stage, items, rows, reader, workers)
    else:
        source = _from_maps(stage.source, items, store, 4 * stage.micro_batch)
    writer, done = _Writer(store, stage, flush_seconds), 0
    try:
        for batch in batches(source, stage.micro_batch):
            results = forward(run, batch, stage.stage, stage.micro_batch, device)
            for (digest, _), value in zip(batch, results, strict=True):
                writer.add(digest, _nothing(stage) if value is None else value)
            done += len(batch)
            told(done)
    finally:
        writer.flush()
    return done


def keep_rate(stage: ItemStage, store: Store, images: int, seconds: float) -> None:
    """Store how fast one process did a stage, if it did enough to tell; what ``--dry-run`` reckons hours with."""
    if images >= 4 * stage.micro_batch:
        store.put_entry("rates", stage.key, {"images_per_second": images / seconds, "images": images})


def run_stage(
    stage: ItemStage, reader: Reader, store: Store, *, device: str, threads: int, workers: int, emit: Listener
) -> int:
    """Compute what the store lacks of a stage; number of images computed. Every few seconds what is done is stored, so
    an interrupted run goes on where it stopped.

    Raises:
        DataError, WeightsError, StoreError: as the stage's parts; what was stored before stays.
    """
    missing = missing_of(stage, store)
    if len(missing) == 0:
        return 0
    store.items(stage.key).describe(stage.description)
    pin_numerics(threads)
    label, total = label_of(stage), len(missing)
    emit(Event("stage_start", {"stage": label, "total": total, "stored": len(stage.needed) - total}))
    run = stage.stage.load(stage.weights, device)
    started = time.monotonic()

    def told(done: int) -> None:
        emit(Event("progress", {"stage": label, "done": done, "total": total, "unit": "images"}))

    done = compute(stage, run, missing, missing.rows, reader, store, device=device, workers=workers, told=told)
    seconds = time.monotonic() - started
    keep_rate(stage, store, done, seconds)
    emit(Event("stage_end", {"stage": label, "done": done, "seconds": seconds}))
    return done

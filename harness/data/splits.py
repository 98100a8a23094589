"""Splits and draws by hash: a new image moves no other image's split and no other draw."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.api.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Keys = Callable[[NDArray[np.intp]], Iterable[str]]

Split = Literal["train", "outer", "select", "report"]
SPLITS: tuple[Split, ...] = get_args(Split)


class SplitRule(BaseModel):
    """How images are divided; shares are of images, by hash of (seed, group).

    Attributes:
        seed: of the hash; apart from the draw's, so that another draw of test sets moves no fit set.
        train_lines: lines of the training list that are `train` (the paper's fit set); `outer` and `select` are
            drawn, half each, from the lines after them.
        outer, select: shares of the whole training list where it has fewer lines, and of a dataset without lists.
        report: share of a dataset without lists that is tested; what remains is `train`.
        seen_train, seen_select: shares of a seen generator's images; what remains is `report`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 2024
    train_lines: int = Field(default=25_000, gt=0)
    outer: float = Field(default=0.1, ge=0, lt=1)
    select: float = Field(default=0.1, ge=0, lt=1)
    report: float = Field(default=0.3, gt=0, lt=1)
    seen_train: float = Field(default=0.4, gt=0, lt=1)
    seen_select: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _leaves_room(self) -> SplitRule:
        if self.outer + self.select + self.report >= 1:
            raise ValueError("outer + select + report leave no share for train")
        if self.seen_train + self.seen_select >= 1:
            raise ValueError("seen_train + seen_select leave no share for report")
        return self


def _digests(keys: Iterable[str], prefix: str) -> Iterator[bytes]:
    """sha256(prefix + key), joined, of some thousands of keys at a time."""
    start, sha256, left = prefix.encode(), hashlib.sha256, iter(keys)
    while part := b"".join([sha256(start + key.encode()).digest() for key in islice(left, 65_536)]):
        yield part


def hash_share(groups: Iterable[str], seed: int) -> NDArray[np.float64]:
    """[N] a number in [0, 1) for each group: the first 53 bits of sha256(f"{seed}:split:{group}")."""
    first = [np.frombuffer(part, ">u8")[::4].astype(np.uint64) for part in _digests(groups, f"{seed}:split:")]
    words = np.concatenate([np.empty(0, np.uint64), *first])
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_order(keys: Iterable[str], seed: int) -> NDArray[np.intp]:
    """[N] positions of `keys` (image sha256) by ascending sha256(f"{seed}:{key}")."""
    parts = [np.frombuffer(part, ">u8").reshape(-1, 4) for part in _digests(keys, f"{seed}:")]
    first = np.concatenate([np.empty(0, np.uint64), *(part[:, 0].astype(np.uint64) for part in parts)])
    order = np.argsort(first, kind="stable")
    ranked = first[order]
    ties = np.isin(ranked, ranked[1:][ranked[1:] == ranked[:-1]])  # a key that is there twice, or chance
    if ties.any():
        words = np.concatenate(parts).astype(np.uint64)
        some = np.sort(order[ties])
        order[ties] = some[np.lexsort(words[some].T[::-1])]
    return order


def _by_shares(groups: Sequence[str], seed: int, shares: Sequence[tuple[Split, float]], rest: Split) -> list[Split]:
    bounds = np.cumsum([share for _, share in shares])
    places = np.searchsorted(bounds, hash_share(groups, seed), side="right")
    names: list[Split] = [*(name for name, _ in shares), rest]
    return [names[i] for i in places]


def split_train_list(groups: Sequence[str], rule: SplitRule, seed: int) -> list[Split]:
    """Split of each line of a training list, in list order (FIDELITY, `outer` and `select`).

    `train` is the first `rule.train_lines`; the lines after them are `outer` or `select` by hash, half each. With
    fewer lines, `rule.outer` and `rule.select` of all of them, by hash, and `train` is what remains.
    """
    if len(groups) >= rule.train_lines:
        head: list[Split] = ["train"] * rule.train_lines
        return head + _by_shares(groups[rule.train_lines :], seed, [("outer", 0.5)], "select")
    return _by_shares(groups, seed, [("outer", rule.outer), ("select", rule.select)], "train")


def split_without_lists(groups: Sequence[str], rule: SplitRule, seed: int) -> list[Split]:
    """Split of each photograph of a dataset that has no lists: all four, by hash of the group."""
    return _by_shares(groups, seed, [("outer", rule.outer), ("select", rule.select), ("report", rule.report)], "train")


def split_seen_generator(groups: Sequence[str], rule: SplitRule, seed: int) -> list[Split]:
    """Split of each image of a generator that a detector is trained on: `train`, `select`, `report`, by hash."""
    return _by_shares(groups, seed, [("train", rule.seen_train), ("select", rule.seen_select)], "report")


def draw_test_set(table: pd.DataFrame, generator: str, *, n: int, seed: int = 2024) -> pd.DataFrame:
    """The manifest's rows of one test set: k generated images, then k photographs, each in draw order.

    Args:
        table: a manifest; only its `report` rows are looked at.
        generator: canonical name.
        n: most images of a class; k = min(n, generated there are, photographs there are).
        seed: the draw's; order is by ascending sha256(f"{seed}:{image sha256}"), so that a smaller n gives a
            subset and an added image moves no other.

    *Deviation* from the released code, which samples from `os.listdir` order (FIDELITY `test_draw`).

    Raises:
        DataError: no `report` images of that generator, or no photographs of its dataset.
    """
    return table.iloc[draw(table, [generator], n=n, seed=seed).rows[0]]


@dataclass(frozen=True)
class Draws:
    """Which images serve which test set, as rows of a manifest.

    Attributes:
        names: the test sets.
        rows: `[k]` positions in the manifest of each one's images, in draw order.
    """

    names: tuple[str, ...]
    rows: tuple[NDArray[np.signedinteger[Any]], ...]

    def __len__(self) -> int:
        """Rows of all test sets."""
        return sum(map(len, self.rows))

    def counts(self) -> dict[str, int]:
        """Images of each test set."""
        return {name: len(rows) for name, rows in zip(self.names, self.rows, strict=True)}

    def frame(self, table: pd.DataFrame) -> pd.DataFrame:
        """As `draw_cells`, of the manifest that was drawn from."""
        import pandas as pd

        cells = table[["sha256", "label", "generator"]].iloc[np.concatenate([np.empty(0, np.int32), *self.rows])]
        names = np.repeat(np.array(self.names, dtype=object), [len(rows) for rows in self.rows])
        cells = cells.reset_index(drop=True)
        cells.insert(0, "test_set", pd.Series(names, dtype="str"))
        return cells


def draw_cells(
    table: pd.DataFrame, generators: Iterable[str] | None = None, *, n: int, seed: int = 2024
) -> pd.DataFrame:
    """Which images serve which test set (`cells.parquet`): a row an image and test set.

    Args:
        table: a manifest.
        generators: the test sets, in this order; all of the manifest's, sorted, when None.
        n, seed: as for `draw_test_set`, whose draws these are.

    Returns:
        Columns test_set, sha256, label, generator ("" for photographs).
    """
    return draw(table, generators, n=n, seed=seed).frame(table)


def draw(
    table: pd.DataFrame, generators: Iterable[str] | None = None, *, n: int, seed: int = 2024, keys: Keys | None = None
) -> Draws:
    """The test sets of `draw_cells` as rows of the manifest; the photographs of a dataset are put in order once.

    Args:
        keys: gives the sha256 of rows of the manifest, where the table has no such column.
    """
    here, made = (table["split"] == "report").to_numpy(), (table["label"] == 1).to_numpy()
    names = list(generators) if generators is not None else sorted(map(str, table["generator"][here & made].unique()))
    key = keys or partial(_sha256, table)
    photographs = _places(table["dataset"], here & ~made)
    generated = _places(table["generator"], here & made)
    ordered: dict[str, NDArray[np.intp]] = {}
    kind: type[np.signedinteger[Any]] = np.int32 if len(table) < 2**31 else np.int64  # half the memory
    draws: list[NDArray[np.signedinteger[Any]]] = []
    for name in names:
        rows = generated.get(name)
        if rows is None:
            raise DataError(f"no `report` images of generator {name!r}", fix="see `harness data check`")
        dataset = str(table["dataset"].iloc[rows[0]])
        if dataset not in photographs:
            raise DataError(
                f"no `report` photographs of dataset {dataset!r}, which {name!r} is tested against",
                fix="add a test list; see `harness data check`",
            )
        if dataset not in ordered:
            ordered[dataset] = photographs[dataset][draw_order(key(photographs[dataset]), seed)]
        k = min(n, len(rows), len(ordered[dataset]))
        draws.append(np.concatenate([rows[draw_order(key(rows), seed)][:k], ordered[dataset][:k]]).astype(kind))
    return Draws(tuple(names), tuple(draws))


def _sha256(table: pd.DataFrame, rows: NDArray[np.intp]) -> Iterator[str]:
    for start in range(0, len(rows), 65_536):  # a column of millions is never millions of Python words at once
        yield from table["sha256"].iloc[rows[start : start + 65_536]].tolist()


def _places(column: pd.Series, mask: NDArray[np.bool_]) -> dict[str, NDArray[np.intp]]:
    """Value -> positions that hold it, of those in the mask, in ascending order."""
    import pandas as pd

    rows = np.flatnonzero(mask)
    codes, names = pd.factorize(column.iloc[rows])
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    return {str(name): rows[order[a:b]] for name, a, b in zip(names, bounds, bounds[1:], strict=False)}

"""Tables of a run as Parquet: one file, or above a stated number of rows a partitioned dataset of the same name.

A dataset is a folder that pandas, pyarrow and others read as one table::

    scores.parquet/detector=blades-oc/part-00000.parquet     where the table has a column to be divided by
    manifest.parquet/part-00000.parquet                      where it has none

The number of a part is its place in the table, over all folders, so that a table read here has the order in which it
was written, whichever form it has. A table is written and read piece by piece, in memory that does not grow with it.
Equal tables give equal bytes with one version of pyarrow.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote

import numpy as np

from harness.api.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MOST_ROWS = 10_000_000
"""Rows of a table that is one file."""
PART_ROWS = 2**20
"""Rows of a part of a dataset, and of a row group of a file (the number that pyarrow takes by itself)."""
PIECE_ROWS = 2**17
"""Rows of a piece in memory, where a table is made or read piece by piece."""
_DIVIDED = b"divided_by"


def write_table(
    frames: Iterable[pd.DataFrame], path: Path, *, rows: int, by: str | None = None, most_rows: int = MOST_ROWS,
    part_rows: int = PART_ROWS,
) -> Path:  # fmt: skip
    """Write a table, given piece by piece, in place of what is there; the path.

    Args:
        frames: at least one, all with the same columns.
        path: of the file or dataset, which is there whole or not at all.
        rows: of the whole table.
        by: a column of words; a dataset is divided by its values, of which each part has one.
        most_rows: above it the table is a dataset.

    Raises:
        StoreError: it cannot be written; nothing partial is left.
    """
    with _placed(path) as temporary:
        if rows > most_rows:
            _write_dataset(frames, temporary, by, part_rows)
        else:
            _write_file(_groups(frames, part_rows), temporary)
    return path


def copy_table(source: Path, path: Path) -> Path:
    """Copy a table, in the form it has, in place of what is there; the path. Of a dataset, its parts and nothing else.

    Raises:
        StoreError: it cannot be read or written; nothing partial is left.
    """
    with _placed(path) as temporary:
        for file in table_files(source):
            copied = temporary / file.relative_to(source) if source.is_dir() else temporary
            copied.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as read, copied.open("wb") as write:
                shutil.copyfileobj(read, write, 2**20)
                write.flush()
                os.fsync(write.fileno())
    return path


@contextlib.contextmanager
def _placed(path: Path) -> Iterator[Path]:
    """A path to write a table to; it is put in place when all of it is there."""
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _put(temporary, path)
    except OSError as error:
        fix = (
            "free some space; what was computed before is kept"
            if error.errno in (28, 27, 122)
            else "check the folder's permissions"
        )
        raise StoreError(f"cannot write {path.name}: {error.strerror or error}", where=path.parent, fix=fix) from error
    finally:
        _remove(temporary)


def _groups(frames: Iterable[pd.DataFrame], most: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``most`` rows, the last of fewer."""
    import pyarrow as pa

    waiting: list[pa.Table] = []
    schema = None
    for frame in frames:
        piece = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
        schema = piece.schema
        while piece.num_rows and sum(t.num_rows for t in waiting) + piece.num_rows >= most:
            take = most - sum(t.num_rows for t in waiting)
            yield pa.concat_tables([*waiting, piece.slice(0, take)])
            waiting, piece = [], piece.slice(take)
        if piece.num_rows:
            waiting.append(piece)
    if waiting:
        yield pa.concat_tables(waiting)
    elif schema is not None:
        yield schema.empty_table()


def _write_file(groups: Iterator[pa.Table], path: Path) -> None:
    import pyarrow.parquet as pq

    first = next(groups)
    with path.open("wb") as file:
        with pq.ParquetWriter(file, first.schema, compression="snappy") as writer:
            writer.write_table(first)
            for group in groups:
                if group.num_rows:
                    writer.write_table(group)
        file.flush()
        os.fsync(file.fileno())


def _write_dataset(frames: Iterable[pd.DataFrame], folder: Path, by: str | None, part_rows: int) -> None:
    folder.mkdir()
    number = 0
    for value, run in _runs(frames, by):
        where = folder if by is None else folder / f"{by}={quote(value, safe=' ')}"
        where.mkdir(exist_ok=True)
        for group in _groups(run, part_rows):
            if by is not None:
                place = group.schema.names.index(by)
                told = {_DIVIDED: json.dumps([by, place]).encode()}
                group = group.drop_columns([by])
                group = group.replace_schema_metadata({**(group.schema.metadata or {}), **told})
            _write_file(iter([group]), where / f"part-{number:05d}.parquet")
            number += 1


def _runs(frames: Iterable[pd.DataFrame], by: str | None) -> Iterator[tuple[str, Iterable[pd.DataFrame]]]:
    """Each run of rows that share a value, as the frames it is made of (to be gone through before the next run)."""

    def pieces() -> Iterator[tuple[str, pd.DataFrame]]:
        for frame in frames:
            if by is None:
                yield "", frame
                continue
            values = frame[by].to_numpy(object)
            cuts = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(frame)]
            yield from ((str(values[a]), frame.iloc[a:b]) for a, b in pairwise(cuts) if a < b)

    for value, run in groupby(pieces(), key=lambda piece: piece[0]):
        yield value, (frame for _, frame in run)


def _put(temporary: Path, path: Path) -> None:
    """Put what was written in its place. Only a dataset that stands there is away for a moment."""
    if path.is_dir():
        old = path.with_name(f".tmp-{uuid.uuid4().hex}")
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old)
    elif temporary.is_dir():
        path.unlink(missing_ok=True)
        temporary.rename(path)
    else:
        temporary.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def is_table(path: Path) -> bool:
    """Whether a table is there, in either form."""
    return path.is_file() or (path.is_dir() and any(path.rglob("part-*.parquet")))


def table_files(path: Path) -> list[Path]:
    """The files of a table: itself, or the parts in the table's order."""
    return sorted(path.rglob("part-*.parquet"), key=lambda p: p.name) if path.is_dir() else [path]


def table_rows(path: Path) -> int:
    """Number of rows; errors as of :func:`table_parts`."""
    import pyarrow.parquet as pq

    return sum(int(pq.read_metadata(file).num_rows) for file in table_files(path))


def table_columns(path: Path) -> list[str]:
    """Names of the columns, in no stated order; errors as of :func:`table_parts`."""
    import pyarrow.parquet as pq

    first = next(iter(_sources(path)), None)
    if first is None:
        raise ValueError("the folder holds no part of a table")
    return [*pq.read_schema(first.path).names, *([first.column] if first.column else [])]


class _Source(NamedTuple):
    """A file of a table, and the column that its folder states for all its rows ("": none), with its place."""

    path: Path
    column: str = ""
    value: str = ""
    place: int = 0

    def states(self, column: str) -> bool:
        """Whether the folder states this column."""
        return bool(self.column) and self.column == column


def _sources(path: Path) -> list[_Source]:
    import pyarrow.parquet as pq

    if not path.is_dir():
        return [_Source(path)]
    found = []
    for file in table_files(path):
        told = (pq.read_schema(file).metadata or {}).get(_DIVIDED)
        name, place = json.loads(told) if told is not None else ("", 0)
        found.append(_Source(file, name, unquote(file.parent.name.partition("=")[2]) if name else "", place))
    return found


def table_parts(
    path: Path, columns: Sequence[str] | None = None, only: tuple[str, Collection[str]] | None = None
) -> Iterator[pd.DataFrame]:
    """A table piece by piece, in order; at least one piece, which may have no row.

    Args:
        columns: which, in this order; all when None.
        only: a column and the values of it that are wanted; parts of a dataset with other values are not read.

    Raises:
        OSError, ValueError: it is not there, or damaged (pyarrow's errors are ValueErrors), or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sources = _sources(path)
    if not sources:
        raise ValueError("the folder holds no part of a table")
    some = False
    for source in sources:
        if only is not None and source.states(only[0]) and source.value not in only[1]:
            continue
        with pq.ParquetFile(source.path) as file:
            wanted = _wanted(file.schema_arrow, source, columns, only)
            for batch in file.iter_batches(PIECE_ROWS, columns=wanted):
                some = True
                yield _framed(pa.Table.from_batches([batch]), source, columns, only)
    if not some:
        schema = pq.read_schema(sources[0].path)
        nothing = schema.empty_table().select(_wanted(schema, sources[0], columns, only))
        yield _framed(nothing, sources[0], columns, only)


def _wanted(
    schema: pa.Schema, source: _Source, columns: Sequence[str] | None, only: tuple[str, Collection[str]] | None
) -> list[str]:
    """Columns to be read from a file."""
    if columns is None:
        return list(schema.names)
    asked = dict.fromkeys([*columns, *([] if only is None else [only[0]])])
    wanted = [name for name in asked if not source.states(name)]
    lacking = [name for name in wanted if name not in schema.names]
    if lacking:
        raise ValueError(f"column {lacking[0]!r} is missing")
    return wanted


def _framed(
    table: pa.Table, source: _Source, columns: Sequence[str] | None, only: tuple[str, Collection[str]] | None
) -> pd.DataFrame:
    import pandas as pd

    frame: pd.DataFrame = table.to_pandas()
    if source.column:
        words = pd.Series([source.value] * len(frame), dtype="str", index=frame.index)
        frame.insert(min(source.place, frame.shape[1]), source.column, words)
    if only is not None:
        frame = frame[frame[only[0]].isin(list(only[1]))].reset_index(drop=True)
    return frame if columns is None else frame[list(columns)]


def read_table(
    path: Path, columns: Sequence[str] | None = None, only: tuple[str, Collection[str]] | None = None
) -> pd.DataFrame:
    """A table, or the columns and rows of it that are wanted; arguments and errors as of :func:`table_parts`."""
    import pandas as pd

    parts = list(table_parts(path, columns, only))
    return parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)

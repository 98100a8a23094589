"""The released `id_vs_fdfName.pkl` (face name -> photograph), read without running it.

A pickle is a program. This file needs fifteen of its instructions, those that build one dictionary of strings; they
are interpreted here, and any other is refused before anything is made of it.
"""

from __future__ import annotations

import io
import pickletools
from pathlib import Path
from typing import Any

from harness.api.errors import DataError

MAX_BYTES = 512 * 2**20
_TEXT = frozenset(
    {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "SHORT_BINSTRING", "BINSTRING", "STRING"}
)
_PUT = frozenset({"MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"})
_GET = frozenset({"GET", "BINGET", "LONG_BINGET"})
_SILENT = frozenset({"PROTO", "FRAME"})
_MARK = object()


class _Refused(Exception):
    pass


class _Reader:
    """The stack machine of the few instructions that are allowed; `result` is the one dictionary."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.result: dict[str, str] | None = None

    def _marked(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise _Refused("an end without a beginning")

    def _new(self) -> None:
        if self.result is not None:
            raise _Refused("a second dictionary")
        self.result = {}
        self.stack.append(self.result)

    def _fill(self, items: list[Any]) -> None:
        if not self.stack or self.stack[-1] is not self.result or self.result is None:
            raise _Refused("items of no dictionary")
        if len(items) % 2 or not all(isinstance(item, str) for item in items):
            raise _Refused("a key or value that is no string")
        self.result.update(zip(items[::2], items[1::2], strict=True))

    def do(self, name: str, argument: Any) -> None:
        """One instruction."""
        if name in _TEXT:
            self.stack.append(argument)
        elif name in _PUT:
            if not self.stack:
                raise _Refused("nothing to remember")
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = self.stack[-1]
        elif name in _GET:
            if int(argument) not in self.memo:
                raise _Refused("a reference to nothing")
            self.stack.append(self.memo[int(argument)])
        elif name == "MARK":
            self.stack.append(_MARK)
        elif name == "EMPTY_DICT":
            self._new()
        elif name == "DICT":
            items = self._marked()
            self._new()
            self._fill(items)
        elif name == "SETITEM":
            items, self.stack[-2:] = self.stack[-2:], []
            self._fill(items)
        elif name == "SETITEMS":
            self._fill(self._marked())
        elif name == "STOP":
            if self.result is None or len(self.stack) != 1 or self.stack[0] is not self.result:
                raise _Refused("something other than one dictionary")
        elif name not in _SILENT:
            raise _Refused(f"the instruction {name}")


def read_id_map(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, str]:
    """Face name -> photo id of a pickled dictionary of strings; nothing in the file is executed.

    Raises:
        DataError: the file is too large, cut off, or holds anything but one plain dictionary str -> str.
    """
    fix = "replace it by the released file, or leave it out (faces are then split one by one)"
    if path.stat().st_size > max_bytes:
        raise DataError(f"the map of face names is larger than {max_bytes:,} bytes", path, fix)
    reader, position = _Reader(), 0
    try:
        for opcode, argument, place in pickletools.genops(io.BytesIO(path.read_bytes())):
            position = place or 0
            reader.do(opcode.name, argument)
    except _Refused as error:
        what = f"the map of face names holds {error} (byte {position}); only a dictionary of strings is read"
        raise DataError(what, path, fix) from None
    except (ValueError, IndexError, UnicodeError, OverflowError) as error:
        raise DataError(f"the map of face names cannot be read: {error}"[:300], path, fix) from None
    assert reader.result is not None  # STOP was seen: genops raises ValueError otherwise
    return reader.result

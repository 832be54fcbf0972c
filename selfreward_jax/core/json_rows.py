"""JSON that people bring, row by row: JSONL and arrays, refused where it could mean two things."""

import io
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from selfreward_jax.core.errors import UserError, shorten
from selfreward_jax.core.rows import check_characters
from selfreward_jax.core.texts import BOM, MOST_BYTES, read_pieces

_INT64, _UINT64 = -(2**63), 2**64


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without its nulls, which stand for what is absent."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the field {shorten(twice)} comes twice")
    return {name: value for name, value in pairs if value is not None} if None in made.values() else made


def _int(text: str) -> int:
    if len(text) > 20 or not _INT64 <= int(text) < _UINT64:
        raise ValueError(f"the number {shorten(text, 24)} does not fit into 64 bits; write it as text")
    return int(text)


def _float(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"the number {shorten(text, 24)} is larger than any float")
    return value


def _constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON; write null where there is no value")


# Nulls go while objects are made: to walk through every row after that takes as long as to read it.
DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_int, parse_float=_float, parse_constant=_constant)


def row_of(line: str) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
      ValueError, RecursionError: it is none, or one that can be read in several ways.
    """
    return checked(DECODER.decode(line.removeprefix(BOM)), line)


def checked(row: Any, text: str) -> dict[str, Any]:
    """A row that was read from `text`. Raises `ValueError` if it is no object, or holds half a character."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    if "\\u" in text and "\\ud" in text.lower():
        check_characters(row)
    return row


_SPACE = re.compile(r"[ \t\r\n]*")
_NEAR_THE_END = 16  # characters; a literal or an escape that is cut off begins no farther from the end


class ArrayReader:
    """The items of a JSON array, from a window on the file that holds little more than an item.

    Attributes:
      item, line: where the last item stands, from 1.
    """

    def __init__(self, path: epath.Path, file: io.BufferedReader):
        self.path, self.item, self.line = path, 0, 1
        self._text, self._at = "", 0
        self._column = 0  # of the window's first character in its line
        self._pieces = read_pieces(path, file)

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        """Each item, and its text. Raises `UserError` for what is no array, with its line and column."""
        self._take("[")
        empty = self._next() == "]"
        while not empty:
            self._next()
            self.item += 1
            value, end = self._value()
            yield value, self._text[self._at : end]
            self._move(end)
            if self._next() == "]":
                break
            self._take(",")
        self._move(self._at + 1)
        if self._next():
            raise self._error("something follows the array", self._at)

    def _move(self, at: int) -> None:
        self.line += self._text.count("\n", self._at, at)
        self._at = at

    def _more(self) -> bool:
        """Lets the window grow to twice its size, less what was read; False at the end of the file."""
        if len(self._text) - self._at > MOST_BYTES:
            where = f"{self.path}:{self.line}: item {self.item}"
            raise UserError(f"{where}: longer than {MOST_BYTES >> 20} MiB, which is no row.")
        self._column = self._column_of(self._at)
        pieces = [self._text[self._at :]]
        self._at, size = 0, len(pieces[0])
        wanted = max(2 * size, 1)
        while size < wanted and (piece := next(self._pieces, "")):
            pieces.append(piece)
            size += len(piece)
        self._text = "".join(pieces)
        return len(pieces) > 1

    def _column_of(self, at: int) -> int:
        """Characters before a place in its line."""
        start = self._text.rfind("\n", 0, at)
        return at - start - 1 if start >= 0 else self._column + at

    def _next(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            self._move(_SPACE.match(self._text, self._at).end())  # type: ignore[union-attr]  it matches nothing, too
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _take(self, wanted: str) -> None:
        if self._next() != wanted:
            raise self._error(f"expected {wanted!r}", self._at)
        self._move(self._at + 1)

    def _value(self) -> tuple[Any, int]:
        """The value that begins here, and its end. What the window cuts off is read on and tried again."""
        again = True
        while True:
            try:
                return DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - _NEAR_THE_END or error.msg.startswith("Unterminated string")
                wrong = self._error(error.msg, error.pos)
                if not (cut and self._more()):
                    raise wrong from None
            except (ValueError, RecursionError) as error:
                if not (again and self._more()):  # a number may be cut off, too
                    what = "nested too deeply" if isinstance(error, RecursionError) else error
                    raise UserError(f"{self.path}:{self.line}: item {self.item}: {what}.") from None
                again = False

    def _error(self, what: str, at: int) -> UserError:
        line = self.line + self._text.count("\n", self._at, at)
        return UserError(f"{self.path}:{line}: not valid JSON ({what} at column {self._column_of(at) + 1}).")

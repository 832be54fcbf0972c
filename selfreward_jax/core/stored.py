"""JSON that the program wrote itself, read back: whatever a disk, a newer version or a person has made of it."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from etils import epath

from selfreward_jax.core.errors import UserError, first_line, shorten, shown
from selfreward_jax.core.paths import reading

T = TypeVar("T")
NO_FIELDS: Mapping[str, type] = {}
WORDS = {dict: "an object", list: "an array", str: "text", int: "a whole number"}

# Where no such number can be, the parser of the standard library reads numbers by itself, and in half the time.
_LONG_NUMBER = re.compile(r"\d{20}")
_MOST_DIGITS = 20  # of 64 bits


def loads(text: str) -> Any:
    """A JSON value.

    Raises:
      ValueError: it is none, is nested beyond all use, or has a whole number of more than 64 bits, which nothing that
        computes could take.
    """
    try:
        return json.loads(text, parse_int=_int if _LONG_NUMBER.search(text) else None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _int(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"the number {shorten(text, 24)} does not fit into 64 bits")
    return int(text)


def read_json(
    path: epath.Path, kind: type[T] = dict, mend: str = "restore it", needs: Mapping[str, type] = NO_FIELDS
) -> T:
    """A file's JSON value.

    Args:
      needs: fields of an object that must be there, and of which type.
      mend: what to do about a damaged one.

    Raises:
      UserError: it can't be read, or is no JSON value of this kind.
    """
    with reading(path):
        data = path.read_bytes()
    try:
        value = loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; {mend}.") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({first_line(error)}); {mend}.") from None
    if not isinstance(value, kind):
        raise UserError(f"{path}: expected {WORDS.get(kind, kind.__name__)}, found {type(value).__name__}; {mend}.")
    fields: Any = value
    for name, wanted in needs.items():
        if not isinstance(found := fields.get(name), wanted):
            raise UserError(f"{path}: {name} must be {WORDS.get(wanted, wanted.__name__)}, not {shown(found)}; {mend}.")
    return value


@contextlib.contextmanager
def as_written(path: object, mend: str = "restore it") -> Iterator[None]:
    """Around whatever takes values out of what the program wrote to a file.

    Raises:
      UserError: one is missing there, or of another type than was written.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        why = f"the field {error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"{path}: not as it was written ({why}); {mend}.") from None

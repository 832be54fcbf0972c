"""The one exception that users see as one line: what is wrong, where, and how to mend it."""

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator

MOST = 900  # characters of a message; what is longer quotes a file at length


class UserError(Exception):
    """Input that can't be used. The command line prints it as one line and exits with status 2.

    Messages quote files of strangers, so that what isn't printable in them, such as a terminal's control sequences, is
    written out as an escape.
    """

    def __init__(self, message: str = ""):
        super().__init__(one_line(message) if len(message) <= MOST else f"{one_line(message[:MOST])}...")


def one_line(text: str) -> str:
    """A text as a terminal may show it: one line of printable characters."""
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    return character if character.isprintable() else " " if character.isspace() else ascii(character)[1:-1]


class ReadOnly(UserError):
    """A place that may not be written, where what is there already may be enough."""


@contextlib.contextmanager
def about(field: str) -> Iterator[None]:
    """Names the field or flag that wrong input was given for."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{field}: {error}") from None


@contextlib.contextmanager
def in_one_line(lead: str, change: Callable[[str], str] = str) -> Iterator[None]:
    """Says as a `UserError` what a library raises that is written in another language, panics of Rust among it.

    Args:
      lead: what can't be done.
      change: of the library's own words.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # which is no Exception
            raise
        raise UserError(f"{lead} ({change(first_line(error))}).") from None


def did_you_mean(word: str, known: Iterable[str], lead: str = " Did you mean ") -> str:
    """` Did you mean X or Y?` for the known words nearest to `word`, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"{lead}{' or '.join(near)}?" if near else ""


def first_line(error: BaseException) -> str:
    """What another library's exception says first, without a full stop; its kind, if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")


def shorten(text: str, most: int = 60) -> str:
    """A text on one line, quoted, for messages."""
    line = " ".join(text.split())
    return repr(line if len(line) <= most else f"{line[:most].rstrip()}...")

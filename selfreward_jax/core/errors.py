"""The one exception that users see as one line: what is wrong, where, and how to mend it."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """Input that can't be used. The command line prints it as one line and exits with status 2."""


class ReadOnly(UserError):
    """A place that may not be written, where what is there already may be enough."""


@contextlib.contextmanager
def about(field: str) -> Iterator[None]:
    """Names the field or flag that wrong input was given for."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{field}: {error}") from None


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

"""The one exception that users see as one line: what is wrong, where, and how to mend it."""

import contextlib
import difflib
import traceback
from collections.abc import Callable, Iterable, Iterator

from selfreward_jax.core.interrupt import Interrupted

MOST_CHARACTERS = 800  # of a message; a path or a value of megabytes would bury what is wrong with it


class UserError(Exception):
    """Input that can't be used. The command line prints it as one line and exits with status 2.

    Its text is one line that can be printed, whatever stands in the paths and values that it tells of.
    """

    def __init__(self, message: object = ""):
        super().__init__(one_line(message))


class ReadOnly(UserError):
    """A place that may not be written, where what is there already may be enough."""


def one_line(message: object) -> str:
    """A text on one line, what can't be printed as escapes, the middle of a very long one left out."""
    line = " ".join(part.strip() for part in str(message).splitlines() if part.strip())
    if len(line) > MOST_CHARACTERS:
        line = f"{line[: MOST_CHARACTERS // 2]} ... {line[-MOST_CHARACTERS // 2 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


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


@contextlib.contextmanager
def foreign_code(where: str, but: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Around Python that a user wrote, which may raise whatever it likes.

    Args:
      but: these are let through.

    Raises:
      UserError: it did, or it wanted to end the program; with the place in its file.
    """
    try:
        yield
    except (KeyboardInterrupt, Interrupted, UserError, *but):
        raise
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if isinstance(error, SyntaxError) else f" at {frame.filename}:{frame.lineno}"
        raise UserError(f"{where}: {type(error).__name__}: {shown(error, str)}{place}") from None


def did_you_mean(word: str, known: Iterable[str], lead: str = " Did you mean ") -> str:
    """` Did you mean X or Y?` for the known words nearest to `word`, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"{lead}{' or '.join(near)}?" if near else ""


def first_line(error: BaseException) -> str:
    """What another library's exception says first, without a full stop; its kind, if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")


def shown(value: object, write: Callable[[object], str] = repr) -> str:
    """A value for messages, shortened; its type, where it can't be written down (a number of 5,000 digits)."""
    try:
        line = " ".join(write(value).split())
        return one_line(line if len(line) <= 120 else f"{line[:120].rstrip()}...")
    except Exception:
        return f"a value of type {type(value).__name__}"


def shorten(text: str, most: int = 60) -> str:
    """A text on one line, quoted, for messages."""
    line = " ".join(text.split())
    return repr(line if len(line) <= most else f"{line[:most].rstrip()}...")

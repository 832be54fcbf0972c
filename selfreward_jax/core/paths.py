"""What people type as a path: one reading of it for input, output, models and templates."""

import contextlib
import fnmatch
import os
from collections.abc import Iterator
from pathlib import PurePath

from etils import epath

from selfreward_jax.core.errors import UserError, first_line


def is_local(path: epath.PathLike) -> bool:
    return "://" not in str(path)


def matching(folder: epath.PathLike, pattern: str) -> list[epath.Path]:
    """What lies in a folder under names like `*.gguf` or `*/a.txt`, sorted, but for what is hidden.

    As `glob`, but the folder's own name is no pattern, whatever characters are in it.
    """
    folder, (first, _, rest) = epath.Path(folder), pattern.partition("/")
    there = folder.iterdir() if folder.is_dir() else ()
    found = sorted(path for path in there if path.name[0] != "." and fnmatch.fnmatchcase(path.name, first))
    return [below for path in found for below in matching(path, rest)] if rest else found


def local_path(path: epath.PathLike) -> epath.Path:
    """A path as it will be found from any folder, `~` being the home folder; one on an object store stays as it is.

    A link keeps its own name, since a file's name says what it holds.

    Raises:
      UserError: nothing is named; `~NAME` of a user whom the machine doesn't know; a kind of address that isn't read.
    """
    if not os.fspath(path):
        raise UserError("a path is empty; name a file or folder, or give . for the folder where you are.")
    if "\0" in os.fspath(path):
        raise UserError(f"{path}: a path can't hold the character NUL.")
    if not is_local(path):
        return _elsewhere(path)
    text = os.path.expanduser(os.fspath(path))
    if text.startswith("~"):
        raise UserError(f"{text}: there is no such user's home folder here; a file of this name is ./{text}.")
    # Through a link, `..` leads elsewhere than the text says.
    return epath.Path(os.path.realpath(text) if ".." in PurePath(text).parts else os.path.abspath(text))


def _elsewhere(path: epath.PathLike) -> epath.Path:
    scheme, _, rest = os.fspath(path).partition("://")
    if scheme == "file":
        raise UserError(f"{path}: give the path itself, without file://: {rest or 'nothing follows it'}.")
    try:
        made = epath.Path(path)
        import fsspec  # which has to know how to reach it; found out here, where it can be said in a line

        fsspec.get_filesystem_class(scheme)
    except (KeyError, ValueError):
        mend = "download it and give its path, or for one of the Hugging Face hub its name, org/name"
        raise UserError(f"{path}: addresses of this kind aren't read; {mend}.") from None
    except ImportError as error:
        package = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}.get(scheme, error.name or str(error))
        raise UserError(f"{path}: {scheme}:// paths need {package}; pip install {package}.") from None
    return made


def check_file(path: epath.PathLike) -> None:
    """Raises `UserError` for what is there but no file: a device or a pipe may have no end, nor a second reading."""
    if is_local(path) and os.path.exists(path) and not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "a device, pipe or socket; save what it gives as a file"
        raise UserError(f"{path}: not a file, but {what}.")


@contextlib.contextmanager
def reading(path: epath.PathLike) -> Iterator[None]:
    """Around whatever reads a file that is there.

    Raises:
      UserError: it is no file, or the system refuses.
    """
    check_file(path)
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or first_line(error)}).") from None

"""What people type as a path: one reading of it for input, output, models and templates."""

import fnmatch
import os
from pathlib import PurePath

from etils import epath

from selfreward_jax.core.errors import UserError


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
    if not is_local(path):
        try:
            return epath.Path(path)
        except KeyError:
            mend = "download it and give its path, or for one of the Hugging Face hub its name, org/name"
            raise UserError(f"{path}: addresses of this kind aren't read; {mend}.") from None
    text = os.path.expanduser(os.fspath(path))
    if text.startswith("~"):
        raise UserError(f"{text}: there is no such user's home folder here; a file of this name is ./{text}.")
    # Through a link, `..` leads elsewhere than the text says.
    return epath.Path(os.path.realpath(text) if ".." in PurePath(text).parts else os.path.abspath(text))

"""What people type as a path: one reading of it for input, output, models and templates."""

import os
from pathlib import PurePath

from etils import epath

from selfreward_jax.core.errors import UserError


def is_local(path: epath.PathLike) -> bool:
    return "://" not in str(path)


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

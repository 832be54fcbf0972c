"""What people type as a path: one reading of it for input, output, models and templates."""

from etils import epath

from selfreward_jax.core.errors import UserError


def is_local(path: epath.PathLike) -> bool:
    return "://" not in str(path)


def local_path(path: epath.PathLike) -> epath.Path:
    """A path as it will be found from any folder, `~` being the home folder; one on an object store stays as it is.

    A link keeps its own name, since a file's name says what it holds.

    Raises:
      UserError: `~NAME` of a user whom the machine doesn't know.
    """
    path = epath.Path(path)
    if not is_local(path):
        return path
    try:
        path = path.expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no such user's home folder here.") from None
    return path.resolve() if ".." in path.parts else path.absolute()

"""Templates that come with the package, and a user's own."""

from importlib import resources

from etils import epath

from selfreward_jax.core.errors import UserError


def packaged(name: str) -> str:
    return (resources.files("selfreward_jax") / "templates" / name).read_text()


def read_text(path: str, field: str) -> str:
    """A user's file.

    Raises:
      UserError: no such file, or nothing in it; `field` is named.
    """
    source = epath.Path(path)
    if not source.exists() or source.is_dir():
        raise UserError(f"{field}: {path}: no such file.")
    text = source.read_text()
    if not text.strip():
        raise UserError(f"{field}: {path}: the file is empty.")
    return text

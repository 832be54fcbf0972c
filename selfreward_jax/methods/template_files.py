"""Template files: the package's and a user's own, read alike, and filled in."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources

from etils import epath

from selfreward_jax.core.errors import UserError


def packaged(name: str) -> str:
    return (resources.files("selfreward_jax") / "templates" / name).read_text(encoding="utf-8")


def read_text(path: str, field: str) -> str:
    """A user's file, without a byte order mark and with plain line ends.

    Raises:
      UserError: no such file, nothing in it, or another encoding than UTF-8; `field` is named.
    """
    where = f"{field}={path}" if field.startswith("--") else f"{field}: {path}"
    source = epath.Path(path).expanduser()
    if not source.exists() or source.is_dir():
        raise UserError(f"{where}: no such file.")
    data = source.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{where}:{line}: not UTF-8 at byte {error.start} of the file; save it as UTF-8.") from None
    if not text.strip():
        raise UserError(f"{where}: the file is empty.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_placeholders(text: str, names: Sequence[str], what: str, where: str) -> None:
    """Raises `UserError` unless a template has each `{{name}}` once, perhaps with blanks around the name."""
    for name in names:
        if (found := len(re.findall(rf"\{{\{{\s*{name}\s*\}}\}}", text))) != 1:
            raise UserError(
                f"{where}: {what} template must contain {{{{{name}}}}} exactly once; it does so {found} times."
            )


def fill(text: str, values: Mapping[str, str]) -> str:
    """The template with its placeholders replaced, all at once, so that one inside a value stays text."""
    names = "|".join(values)
    return re.sub(rf"\{{\{{\s*({names})\s*\}}\}}", lambda match: values[match[1]], text)

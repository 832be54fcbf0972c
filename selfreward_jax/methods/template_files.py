"""Templates of questions: the package's own, and how one is checked and filled in."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources

from selfreward_jax.core.errors import UserError


def packaged(name: str) -> str:
    return (resources.files("selfreward_jax") / "templates" / name).read_text(encoding="utf-8")


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

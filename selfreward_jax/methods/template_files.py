"""Templates of questions: the package's own, and how one is checked and filled in."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.tokens import ZERO_WIDTH_SPACE


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


def tags_of(text: str) -> re.Pattern[str]:
    """A pattern of a template's own tags, also as an imitation writes them: `< / ANSWER >`."""
    names = "|".join(sorted(set(re.findall(r"</?(\w+)>", text)))) or r"(?!)"
    return re.compile(rf"[<＜]\s*+[/／]?+\s*+(?:{names})\b[^<>＜＞]{{0,40}}+[>＞]", re.IGNORECASE)


def broken(text: str, places: Iterable[int]) -> str:
    """The text with a zero-width space at each place, so that a reader hardly sees what a programme no longer reads."""
    cuts = [0, *sorted(set(places)), len(text)]
    return ZERO_WIDTH_SPACE.join(text[start:end] for start, end in itertools.pairwise(cuts))


def begins(pattern: re.Pattern[str], text: str) -> list[int]:
    """Behind the first character of each match: where it is to be broken."""
    return [match.start() + 1 for match in pattern.finditer(text)]

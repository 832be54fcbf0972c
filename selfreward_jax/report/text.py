"""Text of models and people, made safe to look at. That it is not HTML is the template's and the browser's part."""

from selfreward_jax.core.terminal import visible as visible


def shorten(text: str, most: int) -> str:
    """One line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"

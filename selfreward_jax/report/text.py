"""Text of models and people, made safe to look at. That it is not HTML is the template's and the browser's part."""

import re

_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_CONTROLS |= {code: f"[U+{code:04X}]" for code in range(0x80, 0xA0)}
# Marks that turn the direction of what follows, so that a text reads otherwise than it is stored.
_BIDI = {code: f"[U+{code:04X}]" for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
# Carriage returns before a line's end are no news.
_NEWLINE = re.compile(r"\r\n")


def visible(text: str) -> str:
    """The text with control and direction characters shown by name instead of obeyed."""
    return _NEWLINE.sub("\n", text).translate(_CONTROLS | _BIDI)


def shorten(text: str, most: int) -> str:
    """One line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"

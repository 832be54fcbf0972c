"""What is printed: text of models, rows and paths shows its control characters and is never obeyed by a terminal."""

import sys
from typing import TextIO

_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_CONTROLS |= {code: f"[U+{code:04X}]" for code in range(0x80, 0xA0)}
# Marks that turn the direction of what follows, so that a text reads otherwise than it is stored.
_BIDI = {code: f"[U+{code:04X}]" for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_HALVES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")  # of a character: no terminal and no file can be given one
_SHOWN = str.maketrans(_CONTROLS | _BIDI | _HALVES)


def visible(text: str) -> str:
    """The text with control and direction characters shown by name instead of obeyed; newlines and tabs stay.

    Each character by itself, so that a sequence that comes in two pieces is none either.
    """
    return text.replace("\r\n", "\n").translate(_SHOWN)


def tell(said: object, file: TextIO | None = None) -> None:
    """Prints a text, to standard output unless to `file`."""
    print(visible(str(said)), file=file or sys.stdout)

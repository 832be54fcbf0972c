"""Whether what a judge writes at some place are its own words: no quotation, and nothing that it says others say.

Marks pair up by their shape: one that opens stands before a word and not behind one, one that closes the other way
round. So an inch, an apostrophe or a mark whose partner lies out of sight quotes nothing, and whatever is wholly quoted
before a place or behind it says nothing about that place.
"""

import re

_LINE = 1_000  # characters before a place and behind it that are looked at
_KINDS = ('"“”„', "'‘’‚", "«»", "`")  # of marks that pair up, however their languages order them
MARKS = tuple("".join(_KINDS[:3]))
_MARK = re.compile(r"(?<![\\`])(?:[\"“”„'‘’‚«»]|`(?!`))")  # none of JSON within a text, no fence
_MARKUP = re.compile(r"<[^<>\n]{0,40}>|\\[\w\[(]{1,10}|[\s*_`#|(\[{•–$\"“”„'‘’‚«»-]")

_OTHERS = r"it|he|she|they|answers?|response|reply|assistant|text|author|writer|user|student|candidate|model|(?-i:[AB])"
_SAY = (
    r"says?|said|saying|claim(?:s|ed|ing)?|state[sd]?|stating|writes?|wrote|writing|reads?|end(?:s|ed|ing)|puts"
    r"|clos(?:es|ed|ing)|conclud(?:es|ed|ing)|finish(?:es|ed|ing)|includes?|contains?|begins?|adds?|gives?|gave"
    r"|cit(?:es|ed|ing)|assert(?:s|ed)?|declare[sd]?|tells?"
)
_WORDS = (  # that may follow without naming anything else that is said of the answer
    r"with|in|by|on|at|as|of|so|to|for|me|us|here|there|also|again|about|this|that|these|those|the|its|his|her|their|an?"
    r"|own|very|last|final|first|next|closing|follow(?:s|ing)|exactly|itself|(?:him|her)self|themselves|text|quote|words?"
    r"|lines?|sentences?|statements?|phrase|paragraph|parts?|end|note|total|scores?|rating|mark|verdict|grade"
)
_SAID = (
    rf"(?:\b(?:{_OTHERS})\b[^:.!?;\n]{{0,40}}?\b(?:{_SAY})"
    rf"|\b(?:reject|quot)\w*(?:\s(?:the|this|its)\s(?:{_OTHERS})(?:['’]s)?)?"
    r"|(?:\A\W*(?:the\s)?|(?<!on )(?:\bthe|['’]s|\b(?:its|his|her|their))\s)(?:very\s)?(?:own|last|closing)"
    r"\s(?:words?|lines?|sentence|statement))\b"
    rf"(?:[\s*_]++(?:{_WORDS})\b)*+[\s*_]*+"
)
_SAYS = re.compile(_SAID, re.IGNORECASE)
_LABEL_WORDS = r"(?:\b(?:my|the|final|overall|total|verdict|rating|mark|score|is)\b[\s*_:\[]*+)*+\Z"
_LABEL = re.compile(_LABEL_WORDS, re.IGNORECASE)  # it ends where a verdict or a mark begins
# On its line; marks with words in them tell themselves where they close.
_SAID_BEFORE = re.compile(rf"{_SAID}:[\s*_]*+(?:[\"“”„'‘’‚«»]?\[?{_LABEL_WORDS}|(?![`\"“”„'‘’‚«»]))", re.IGNORECASE)
_LEADS_IN = re.compile(rf"{_SAID}[:,]?[\s*_]*+\Z", re.IGNORECASE)  # at the end of the line above


def says(text: str) -> bool:
    """Whether a text names what somebody says: `The answer claims`."""
    return _SAYS.search(text) is not None


def unclosed(text: str) -> bool:
    """Whether a quotation that begins in the text goes on behind it; an apostrophe opens none."""
    return any(_pairs(text, 0, len(text))[1])


def _pairs(
    text: str, start: int, end: int, skipped: tuple[int, ...] = ()
) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Where quotations open and close; and, for each kind of mark, where those open that don't close."""
    closed: list[tuple[int, int]] = []
    opened: list[list[int]] = [[] for _ in _KINDS]
    for found in _MARK.finditer(text, start, end):
        at, mark = found.start(), found[0]
        if at in skipped:
            continue
        kind = next(n for n, marks in enumerate(_KINDS) if mark in marks)
        before, after = text[at - 1 : at] or " ", text[at + 1 : at + 2]
        closes = not (before.isspace() and mark != "»") and not after.isalnum()
        opens = not before.isalnum() and not (after.isspace() and mark != "«") and (not after or after not in ".,;:!?)")
        if closes and opened[kind]:
            closed.append((opened[kind].pop(), at))
        elif opens and not (kind == 1 and after.isdigit()):  # the '90s
            opened[kind].append(at)
    return closed, opened


def in_quotation(text: str, at: int, key: bool = False, last: bool = False) -> bool:
    """Whether what begins at a place is quoted: in marks, in a block quote, or behind words such as `It says:`.

    Args:
      key: a name in quotation marks of its own begins there, such as a field of JSON; these marks quote nothing.
      last: nor do marks around the whole last line, if nobody is said to say it.
    """
    start, end = max(at - _LINE, 0), at + _LINE
    above, _, line = text[start:at].rpartition("\n")
    if line.lstrip(" \t*_").startswith(">") or _SAID_BEFORE.search(line):
        return True
    lines = [part for part in (part.strip(" \t*_") for part in above.split("\n")) if part]
    if lines and lines[-1].startswith("```"):
        lines.pop()
    before = lines[-1] if lines else ""
    own_line = not _MARKUP.sub("", _LABEL.sub("", line))
    if (own_line or (before.endswith(":") and not line.lstrip(" \t*_").startswith(MARKS))) and _LEADS_IN.search(before):
        return True
    skipped: tuple[int, ...] = ()
    if key:
        behind = _MARK.search(text, at, end)
        skipped = (at - 1, behind.start() if behind else at - 1)
    begins = at - len(line)
    for opens, closes in _pairs(text, start, end, skipped)[0]:
        if not opens < at <= closes:
            continue
        whole = opens >= begins and not _MARKUP.sub("", text[begins:opens])
        if whole and text[opens] == "`":
            continue
        alone = whole and last and before and not text[closes + 1 :].strip("* \t\r\n_.`”’»" + '"')
        if not alone or _LEADS_IN.search(before.rstrip(".")):
            return True
    return False

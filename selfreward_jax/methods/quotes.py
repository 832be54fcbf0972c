"""Whether what a judge writes at some place are its own words: no quotation, and nothing that it says others say."""

import re

_LINE = 1_000  # characters before a place that are looked at
MARKS = tuple("\"'“”‘’«»")
_SAYS = re.compile(
    r"\b(?:says?|said|saying|claim(?:s|ed|ing)?|states?|stat(?:ed|ing)|writes?|wrote|writing|reads?|ends?|end(?:ed|ing)"
    r"|closes?|clos(?:ed|ing)|concludes|adds|contains?|begins?|quot\w*|cit(?:es?|ed|ing)|asserts?|declares?|reject\w*"
    r"|itself|tells? (?:me|us))\b",
    re.IGNORECASE,
)
_SAYS_SO = re.compile(rf"{_SAYS.pattern}[^:]{{0,40}}:", re.IGNORECASE)
_PAIRS = ("“”", "«»")
_SINGLE_OPENS, _SINGLE_CLOSES = re.compile(r"(?<!\w)'(?!\s)"), re.compile(r"(?<=\S)'(?!\w)")
_MARKUP = re.compile(r"<[^<>\n]{0,40}>|\\[\w\[(]{1,10}|[\s*_`#|(\[{•–$\"'“‘«-]")


def says(text: str) -> bool:
    """Whether a text names what somebody says: `The answer claims`."""
    return _SAYS.search(text) is not None


def unclosed(text: str) -> bool:
    """Whether a quotation that begins in the text goes on behind it; an apostrophe opens none."""
    if text.count('"') % 2 or any(text.count(one) > text.count(other) for one, other in (*_PAIRS, "‘’")):
        return True
    return len(_SINGLE_OPENS.findall(text)) > len(_SINGLE_CLOSES.findall(text))


def in_quotation(text: str, at: int, key: bool = False) -> bool:
    """Whether what begins at a place is quoted: in marks, in a block quote, or behind words such as `It says:`.

    A quotation of several lines is known by its last line, whose marks don't pair up.

    Args:
      key: a name in quotation marks of its own begins there, such as a field of JSON; these marks quote nothing.
    """
    above, _, line = text[max(at - _LINE, 0) : at].rpartition("\n")
    whole = line + text[at : at + _LINE].partition("\n")[0]
    if whole.count('"') % 2 or any(whole.count(one) < whole.count(other) for one, other in _PAIRS):
        return True
    if line.lstrip(" \t*_").startswith(">") or unclosed(line[:-1] if key and line[-1:] in MARKS else line):
        return True
    behind_others = bool(_MARKUP.sub("", line))
    if behind_others and (line.count("`") % 2 or (":" in line and _SAYS_SO.search(line))):
        return True
    lines = [part for part in (part.strip(" \t*_") for part in above.split("\n")) if part]
    fenced = bool(lines) and lines[-1].startswith("```")
    before = lines[-2] if fenced and len(lines) > 1 else lines[-1] if lines else ""
    marked = not key and not behind_others and (fenced or "`" in line)
    return before.endswith(":") and (says(before) or marked)

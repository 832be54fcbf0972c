"""How judges write scores, and what they mean by it: a number is read right or not at all.

Read is what `FORMS` of `tests/methods/test_score_forms.py` lists: `Score: 4`, `**Final score:** 4.0`, `Score = four`,
`Score (out of 5): 4/5 points`, `Score: 1 + 1 + 1 = 3`, `"score": 4`, and a text that closes with `\\boxed{4}`. Not read
are ranges, alternatives, limits, percentages, fractions, decimal commas, sums that don't add up, other scales than the
judge was asked for, and scores of something else (`Relevance score: 1`): their number isn't what the judge means, or
can't be told.
"""

import collections
import dataclasses
import math
import re
import unicodedata

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclasses.dataclass(frozen=True)
class Scale:
    """From the lowest to the highest score that a judge is asked for."""

    low: float = 0.0
    high: float = 5.0

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def to_five(self, number: float) -> float:
        """A score of this scale as one from 0 to 5, by a straight line."""
        return number if self == FIVE else 5.0 * (number - self.low) / (self.high - self.low)


FIVE = Scale()  # the paper's, to which every other is brought


@dataclasses.dataclass(frozen=True)
class Found:
    """The score that counts.

    Attributes:
      number: on the judge's own scale.
      reasons_end: where the text before it ends, markup left out.
    """

    number: float
    reasons_end: int


# ---------------------------------------------------------------------------------------------------------------------
# Forms, over a text whose markup is blanked. Blanks are matched possessively, so that every text takes linear time.

_H = r"[^\S\n]*+"  # blanks within a line
_S = r"\s*+"
_WORD = "|".join(WORDS)
_N = rf"(?:\d{{1,9}}+(?:\.\d{{1,9}}+)?+|{_WORD})(?!\w|[.,]\d)"  # no part of a longer number or word
_UNIT = rf"(?:{_S}(?:points?|pts?|marks?|stars?)\b)?+"
_TOP = (
    rf"(?:/|(?:out\s++)?of\b|max(?:imum)?\b(?:\s++of\b)?:?){_S}(?:(?:a|the)\s++)?+"
    rf"(?:possible\s++|(?:maximum|total)\s++(?:of\s++)?)?+(?P<top>{_N})"
)
_RANGE = rf"(?:(?:from|between)\s++)?+(?P<low>{_N}){_S}(?:-|to\b|and\b){_S}(?P<high>{_N})"
_ON_A_SCALE = rf"on\s++a\s++scale\s++(?:of|from)\s++(?:(?P<low>{_N}){_S}(?:-|to\b){_S})?+(?P<high>{_N})"

_LABEL = re.compile(
    rf"<score>|(?:(?P<part>(?<=\w)score|scores)|score)\b{_H}[\"'”’»]?+{_H}"
    rf"(?:[(\[]?+{_H}(?:{_TOP}|{_RANGE}){_UNIT}{_H}[)\]]?+|(?P<other>\([^()\n]{{0,40}}\)))?+{_H}[\"'”’»]?+{_H}[:=]",
    re.IGNORECASE,
)
# What may stand before it in its line or clause: then it is the answer's score, and no other's.
_OWN = re.compile(
    rf"(?:\n{_H}\(?+|[^\w\s\"'“”‘’«»(/&.\-]|(?<!\w)[.\-]|[.\-](?=\s)){_H}[\"'“‘«]?+{_H}"
    r"(?P<words>(?:(?:final|total|overall|cumulative|my|the|this|its|so|thus|therefore|hence|and|evaluation|answer"
    r"|response|awarded|assigned|given)[^\S\n]++)*+)\Z",
    re.IGNORECASE,
)
_BEFORE, _AFTER = 80, 200  # characters that are looked at around a label
_MOST_LABELS = 100
_BOXED = re.compile(r"\\f?box(?:ed)?\s?\{")

_OPENERS = r"(?:[(\[{\"'“‘]|<(?=[^<>\n]{1,40}>)|\s)*+"
_VALUE = re.compile(rf"(?P<gap>{_S}){_OPENERS}(?P<n>{_N}){_UNIT}", re.IGNORECASE)
_TERM = re.compile(rf"{_H}(?P<sign>[+-]){_H}(?P<n>{_N}){_UNIT}", re.IGNORECASE)
_RESULT = re.compile(rf"{_H}[)\]]?+{_H}={_H}(?P<n>{_N}){_UNIT}", re.IGNORECASE)
_MOST_TERMS = 20
_SCALE = re.compile(rf"{_H}[)\]]?+{_S}[(\[]?+{_S}(?:{_TOP}|{_ON_A_SCALE}){_UNIT}[)\]]?+{_UNIT}", re.IGNORECASE)
_CLOSERS = re.compile(rf"(?:{_H}[)\]}}>\"'”’»])*+")

# What shows the form instead of filling it in: `n`, all of the scale, a slot such as `<points>`, or nothing.
_FORM = re.compile(
    rf"{_S}[(\"'“]*+{_H}(?:\Z|(?:[nx#?]|\.\.\.|…)(?![\w/])|(?:a\s++number\s++)?+{_RANGE}(?!{_S}[+=/%]))", re.IGNORECASE
)
_SLOT = re.compile(rf"{_S}[<\[{{](?P<inside>[^<>\[\]{{}}\n]{{0,80}})[>\]}}]")
_WHOLE = re.compile(_RANGE, re.IGNORECASE)

# What may stand behind a score on its line.
_SENTENCE_END = re.compile(r"(?:\.|!{1,3}|。)[)\]}\"'”’»]*+(?:\s++(?![\da-z])|\Z)")
_NEXT_FIELD = re.compile(r"\s*(?:,\s*+[\"']\w++[\"']\s*+:|</|<\||\s<[a-z]|\[/)", re.IGNORECASE)  # of JSON; or a tag
_COMMENT = re.compile(
    r"(?:\s*+[,;(|#—]|\s++-{1,3}(?=\s)|\s++(?=(?:because|since|due\s+to|based\s+on|to\s+be|overall|in\s+total|total)\b))"
    r"\s*+(?!(?:or|to(?!\s+be\b)|and|plus|minus|if|unless|when)\b)",
    re.IGNORECASE,
)
_COMMENT_END = re.compile(r"[.!?](?:\s+(?![\da-z])|$)")
_NUMBERS = re.compile(rf"[%\d]|\b(?:{_WORD}|eleven|twelve|hundred|half|quarters?|thirds?|per\s?cent)\b", re.IGNORECASE)
# A next line that goes on with the number: `/10`, `= 3`, or one more number on a line of its own.
_GOES_ON = re.compile(
    rf"\s*+(?:[+=%/×]|(?:out\s+)?of\s++\d|per\s?cent|-?\d[\d.,]*+{_H}$)", re.IGNORECASE | re.MULTILINE
)

_MARKUP = re.compile(
    r"[*`$]+|(?<![^\W_])_+|_+(?![^\W_])"  # Markdown, and LaTeX's dollars; no underscore within a word
    r"|</?(?:b|i|u|em|strong|code|mark|span|font|p|div|br|h[1-6])\b[^<>\n]{0,80}>"
    r"|\\(?:text|textbf|textit|mathbf|mathrm|boxed|fbox)[^\S\n]?\{|\\[()\[\],;!]"  # LaTeX
)
_MACRO = re.compile(r"\\[a-z]+\s?\{")
_DASHES = "‐‑‒–−﹣"  # an em dash sets off a comment


def find_score(judgement: str, scale: Scale) -> Found | None:
    """The score that a judgement gives in the end, or None.

    The last label decides. Where it shows the form (`Score: n`, `Score: <0-5>`) the one before it does; where its
    score can't be read there is none, since the judge may have left behind what stands before it.
    """
    text = _plain(judgement)
    for label in reversed(collections.deque(_LABEL.finditer(text), _MOST_LABELS)):
        start, end = label.span()
        if _shows_form(text, end, scale):
            continue
        before = text[start - _BEFORE : start] if start >= _BEFORE else f"\n{text[:start]}"
        code = label[0].startswith("score") and label[0].endswith("=")  # a program's variable
        own = None if label["part"] or label["other"] or code else _OWN.search(before)
        if label[0].startswith("<"):
            own = _OWN.search("\n")
        if own is None:  # the score of something else, or a word about scores
            if _holds_number(text[end : end + _AFTER].partition("\n")[0]):
                return None
            continue
        number = _value(text, end, scale) if _agrees(label, scale) else None
        return None if number is None else Found(number, _reasons_end(text, start - len(own["words"])))
    for boxed in list(_BOXED.finditer(judgement))[-1:]:
        closes = not re.search(r"[^\W\d_]", text[boxed.end() :])
        number = _value(text, boxed.end(), scale) if closes else None
        return None if number is None else Found(number, _reasons_end(text, boxed.start()))
    return None


def _reasons_end(text: str, start: int) -> int:
    return len(text[:start].rstrip("\"'“‘({[").rstrip(" \t\r\n#>-"))


def _plain(text: str) -> str:
    """The text with markup as blanks and other scripts' digits and punctuation as ASCII, each at its own place."""
    if not text.isascii():
        text = text.translate({ord(c): _folded(c) for c in set(text) if not c.isascii()})
    if _MACRO.search(text):
        text = text.replace("}", " ")
    return _MARKUP.sub(lambda match: " " * len(match[0]), text)


def _folded(character: str) -> str:
    if "！" <= character <= "～":  # fullwidth forms
        return chr(ord(character) - 0xFEE0)
    if character in _DASHES:
        return "-"
    if unicodedata.category(character) in ("Cf", "So") and character != "\ufffd":  # zero-width ones; stars, smileys
        return " "
    digit = unicodedata.decimal(character, None)
    return character if digit is None else str(digit)


def _number(text: str) -> float:
    word = text.lower()
    return float(WORDS.index(word)) if word in WORDS else float(word)


def _agrees(form: re.Match[str], scale: Scale) -> bool:
    """Whether the bounds that a form names, if it names any, are the scale's."""
    bounds = {"low": scale.low, "high": scale.high, "top": scale.high}
    named = {name: value for name, value in form.groupdict().items() if name in bounds and value is not None}
    return all(_number(value) == bounds[name] for name, value in named.items())


def _shows_form(text: str, at: int, scale: Scale) -> bool:
    if slot := _SLOT.match(text, at):
        return not _holds_number(_WHOLE.sub(lambda match: "" if _agrees(match, scale) else match[0], slot["inside"]))
    found = _FORM.match(text, at)
    return found is not None and _agrees(found, scale)


def _holds_number(text: str) -> bool:
    return _NUMBERS.search(text) is not None or any(c.isnumeric() for c in text)


def _value(text: str, at: int, scale: Scale) -> float | None:
    """The number that stands here, if it is a whole value of this scale and nothing that follows makes it another."""
    found = _VALUE.match(text, at)
    if found is None:
        return None
    number, end = _number(found["n"]), found.end()
    terms = [number]
    while len(terms) < _MOST_TERMS and (term := _TERM.match(text, end)):
        terms.append(_number(term["n"]) * (1 if term["sign"] == "+" else -1))
        end = term.end()
    if len(terms) > 1:
        result = _RESULT.match(text, end)
        if result is None or not math.isclose(math.fsum(terms), _number(result["n"]), abs_tol=1e-9):
            return None
        number, end = _number(result["n"]), result.end()
    if stated := _SCALE.match(text, end):
        if not _agrees(stated, scale):
            return None
        end = stated.end()
    closers = _CLOSERS.match(text, end)
    end = closers.end() if closers else end
    return number if number in scale and _ends(text, end, alone="\n" in found["gap"]) else None


def _ends(text: str, at: int, alone: bool) -> bool:
    """Whether a value ends here; one on a line after its label (`alone`) must have that line to itself."""
    rest, newline, _ = text[at:].partition("\n")
    if not rest.strip() or (not alone and rest.strip() in (".", ",", ";")):
        return not newline or not _GOES_ON.match(text, at + len(rest))
    if alone:
        return False
    if _SENTENCE_END.match(rest) or _NEXT_FIELD.match(rest):
        return True
    if comment := _COMMENT.match(rest):
        return not _holds_number(_COMMENT_END.split(rest[comment.end() :], maxsplit=1)[0])
    return False

"""How judges write scores, and what they mean by it: a number is read right or not at all.

Read is what `FORMS` of `tests/methods/test_score_forms.py` lists: `Score: 4`, `**Final score:** 4.0`, `Score = four`,
`Score (out of 5): 4/5 points`, `Score: 1 + 1 + 1 = 3`, `"score": 4`, and a text whose last line is `\\boxed{4}`. Not
read are ranges, alternatives, limits, percentages, fractions, decimal commas, sums that don't add up, other scales than
the judge was asked for, scores of something else (`Relevance score: 1`) or in somebody else's words (`It says: Score:
5`, in quotation marks, in a block quote), scores that differ, and those that a later number may take back: their number
isn't what the judge means, or can't be told.

An answer's own scores are no part of that: `score_breaks` says where to break them up before a judge sees them.
"""

import collections
import dataclasses
import math
import re
import unicodedata

from selfreward_jax.methods.quotes import MARKS, in_quotation, says, unclosed

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
# What may stand before it: it begins its line or its sentence, or is a field of JSON. Else it is another's, or quoted.
_OWN = re.compile(
    rf"(?:(?:\n|[.!?。](?=\s))(?:\s|[#|(\[•–-])*+|[{{,]\s*+(?=[\"'“]))[\"'“‘«]?+{_H}"
    r"(?P<words>(?:(?:final|total|overall|cumulative|my|the|this|its|so|thus|therefore|hence|and|finally|evaluation"
    r"|answer|response|awarded|assigned|given),?[^\S\n]++)*+)\Z",
    re.IGNORECASE,
)
_LAST_WORD = re.compile(r"\b(?:final|total|overall)\b", re.IGNORECASE)
_BEFORE, _AFTER, _REST = 80, 200, 4_000  # characters that are looked at around a label, and behind a score
_MOST_LABELS = 100
_BOXED = re.compile(r"\\f?box(?:ed)?\s?\{")
_BOX = re.compile(rf"{_BOXED.pattern}(?=[^{{}}\n]{{1,60}}\}})")
_BOX_ALONE = re.compile(r"(?:\A|\n)[\s$*]*+(?:\\[\[(]\s*+)?+\\f?box(?:ed)?\s?\{(?P<inside>[^{}\n]{1,60})\}[^\w\n]*+\Z")

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
_SLOT = re.compile(rf"{_S}[<\[{{](?P<inside>[^<>\[\]{{}}\n]{{0,80}})[>\]}}](?!{_H}\d)")
_WHOLE = re.compile(_RANGE, re.IGNORECASE)

# What may stand right behind a score: an end, a closing tag, or a mark that no number goes on behind.
_TAGS = re.compile(r"(?:\s*+(?:</[a-z_]{1,20}>|<\|[a-z_]{1,20}\|>|\[/?[a-z]{1,20}\]))*+", re.IGNORECASE)
_BREAK = re.compile(
    r"\s|\Z|[.,;!](?![\w.,:;])|[.…]{2,}+(?!\w)|…|。|[|—#<](?=\s|\Z|[^\d\s])|[)\]}\"'”’»]", re.IGNORECASE
)
_OPERATORS = "+=/×÷*^%‰~<→½&"
_ITEM = re.compile(r"^[^\S\n]*+\d{1,2}[.)](?=\s)", re.MULTILINE)  # of a list
_SENTENCE = re.compile(r"(?<!\d)[.!?。](?=\s|\Z)|(?<=\d)[.!?。](?=\s*+\Z|\s+(?:\D))|\n")
_FIELD = re.compile(r"\s*+,\s*+[\"'][\w ]++[\"']\s*+:")  # the next one of JSON
_TENS = "(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
_PARTS = r"hundred|dozen|half|halves|quarters?|thirds?|per\s?cent\w*"
_NUMBERS = re.compile(rf"(?P<n>\d+(?:\.\d+)?)|%|\b(?P<word>{_WORD}|eleven|twelve|{_TENS}|{_PARTS})\b", re.IGNORECASE)
_ONE = re.compile(  # no number
    r"\b(?:no|any|every|some|each|this|that|which|the)\s+one\b|\bone\s+(?:of|might|could|would|can|is)\b", re.IGNORECASE
)
# In the sentence of a score: it is a limit, a condition, or not the judge's.
_HEDGE = re.compile(
    r"\b(?:at\s+(?:least|most)|min(?:imum)?|max(?:imum)?|approx\w*|roughly|or\s+(?:so|more|less|higher|lower|better)"
    r"|give\s+or\s+take|less\s+(?:a|the)\b|minus|plus|off|deduct\w*|provided|assuming|if|unless|when|would|not\s+\w+ed"
    r"|too\s+(?:high|low|much)|say(?:s|ing)|said|claim(?:s|ed)?|writes?|wrote)\b",
    re.IGNORECASE,
)
_JOINED = re.compile(r"\s*+[,;(]?\s*+(?:of|or|and|to(?!\s+be\b)|but\s+also|maybe|perhaps|vs\.?|then)\b", re.IGNORECASE)
# In a later sentence with another number: it may take the score back.
_TAKES_BACK = re.compile(
    r"\b(?:actually|instead|rather|correct(?:ion|ed)|make|wait|revis\w*|deduct\w*|minus|plus)\b"
    r"|\A\W*(?:or|no|not|but|however)\b|\A\s*+[-−]\s?\d",
    re.IGNORECASE,
)
_OF_SCORES = re.compile(  # the same, but that it may name the top of the scale
    r"\b(?:scores?|points?|pts|marks?|rating|grade|scale|total|sum|final|max\w*|minimum|range|unit|out\s?_?of)\b|\A\s*+of\b",
    re.IGNORECASE,
)
_GOES_ON = re.compile(r"\s*+(?:[+=/×%*^]|[^\w\n]*+\d[\d.,]*+\s*+\Z)")  # with the number, or is one more

_MARKUP = re.compile(
    r"[*`$]+|(?<![^\W_])_+|_+(?![^\W_])"  # Markdown, and LaTeX's dollars; no underscore within a word
    r"|</?(?:b|i|u|em|strong|code|mark|span|font|p|div|br|h[1-6])\b[^<>\n]{0,80}>"
    r"|\\(?:text|textbf|textit|mathbf|mathrm|boxed|fbox)[^\S\n]?\{|\\[()\[\],;!]"  # LaTeX
)
_MACRO = re.compile(r"\\[a-z]+\s?\{")
_AS_LETTERS = "ſｓｃｏｒｅＳＣＯＲＥ"  # that are read as letters of `score`
_DASHES = "‐‑‒–−﹣"  # an em dash sets off a comment


def find_score(judgement: str, scale: Scale) -> Found | None:
    """The score that a judgement gives in the end, or None.

    The last label decides, and those before it must say the same, unless it is called final, total or overall. One
    that shows the form (`Score: n`, `Score: <0-5>`) doesn't count. Where the last one's score can't be read there is
    none, since the judge may have left behind what stands before it.
    """
    text = _plain(judgement)
    found: Found | None = None
    final = 0  # where the label of the found score begins, if it may differ from those before
    for label in reversed(collections.deque(_LABEL.finditer(text), _MOST_LABELS)):
        start, end = label.span()
        if _shows_form(text, end, scale):
            continue
        before = text[start - _BEFORE : start] if start >= _BEFORE else f"\n{text[:start]}"
        own = None if _of_else(label) else _OWN.search(before)
        if label[0].startswith("<"):
            own = _OWN.search("\n")
        if own:
            key = any(mark in label[0] for mark in MARKS)
            own = None if in_quotation(judgement, start - len(own["words"]), key, last=found is None) else own
        if own is None:  # the score of something else, or a word about scores
            if found is None and _numbers(text[end : end + _AFTER].partition("\n")[0]):
                return None
            continue
        number = _value(text, end, scale, last=found is None) if _agrees(label, scale) else None
        if found is None:
            if number is None:
                return None
            found = Found(number, _reasons_end(text, start - len(own["words"])))
            final = start if _LAST_WORD.search(own["words"]) and "\n" in own[0] else 0
        elif number != found.number and final:
            between = judgement[end:final]
            return None if unclosed(between) or says(between) else found
        elif number != found.number:
            return None
    if (
        found is None
        and (box := _BOX_ALONE.search(judgement, max(len(judgement) - _AFTER, 0)))
        and len(_BOXED.findall(judgement)) == 1
        and not in_quotation(judgement, box.start("inside"))
    ):
        number = _value(text, box.start("inside"), scale)
        found = None if number is None else Found(number, _reasons_end(text, box.start()))
    return found


def _of_else(label: re.Match[str]) -> bool:
    """Whether it names the score of something else, or a program's variable."""
    return bool(label["part"] or label["other"]) or (label[0].startswith("score") and label[0].endswith("="))


def score_breaks(text: str, scale: Scale) -> list[int]:
    """Where to break an answer's text up, so that nobody who quotes it has written a score."""
    may_hold = "score" in text.lower() or "box" in text or (not text.isascii() and any(c in text for c in _AS_LETTERS))
    if not may_hold:  # most texts: a tenth of the time
        return []
    plain = _plain(text)
    labels = [
        label.start() + 1 + label[0].startswith("<")
        for label in _LABEL.finditer(plain)
        if not _of_else(label) and _agrees(label, scale) and _VALUE.match(plain, label.end())
    ]
    return labels + [box.start() + 1 for box in _BOX.finditer(text) if _VALUE.match(plain, box.end())]


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
        return not _numbers(_WHOLE.sub(lambda match: "" if _agrees(match, scale) else match[0], slot["inside"]))
    found = _FORM.match(text, at)
    return found is not None and _agrees(found, scale)


def _numbers(text: str) -> list[float]:
    """All numbers of a text; what is none by itself, such as a percentage or a half, is not a number."""
    found = []
    for match in _NUMBERS.finditer(_ONE.sub(" ", text)):
        if match["n"] is not None:
            found.append(float(match["n"]))
        else:
            word = (match["word"] or "").lower()
            found.append(float(WORDS.index(word)) if word in WORDS else math.nan)
    return found + [math.nan for c in text if c.isnumeric() and not c.isdecimal()]


def _value(text: str, at: int, scale: Scale, last: bool = True) -> float | None:
    """The number that stands here, if it is a whole value of this scale and nothing that follows makes it another.

    Args:
      last: no other label follows; else it is told by that one whether the judge stays with this score.
    """
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
    if number not in scale or not _ends(text, end, number, alone="\n" in found["gap"]):
        return None
    return None if last and _taken_back(text, end, number, scale) else number


def _ends(text: str, at: int, number: float, alone: bool) -> bool:
    """Whether a value ends here, and the rest of its sentence leaves it as it is.

    Args:
      alone: it stands on a line after its label, and must have that line to itself.
    """
    at = _TAGS.match(text, at).end()  # type: ignore[union-attr]
    rest = text[at : at + _REST].partition("\n")[0]
    if alone:
        return not rest.strip(" \t.!;,")
    mark = rest.lstrip()[:1]
    if mark and (mark in _OPERATORS or (mark.isnumeric() and not mark.isdecimal())):
        return False
    if re.match(r"\s*+-(?!-*+\s)", rest) or not _BREAK.match(rest):
        return False
    if _FIELD.match(rest):
        return True
    sentence = _SENTENCE.split(rest, maxsplit=1)[0]
    return not (_HEDGE.search(sentence) or _JOINED.match(sentence) or any(n != number for n in _numbers(sentence)))


def _taken_back(text: str, at: int, number: float, scale: Scale) -> bool:
    """Whether what follows the sentence of a score holds another number that may be meant in its place."""
    at = _TAGS.match(text, at).end()  # type: ignore[union-attr]
    rest = text[at : at + _REST]
    first = _SENTENCE.search(rest)
    if not _FIELD.match(rest):
        rest = rest[first.end() :] if first else ""
    for sentence in _SENTENCE.split(_ITEM.sub("", rest)):
        if _GOES_ON.match(sentence) and not re.match(rf"\s*+/\s*+{scale.high:g}\b", sentence):
            return True
        if _numbers(sentence) and _TAKES_BACK.search(sentence):
            return True
        others = _numbers(_WHOLE.sub(lambda match: "" if _agrees(match, scale) else match[0], sentence))
        if _OF_SCORES.search(sentence) and any(n not in (number, scale.high) for n in others):
            return True
    return False

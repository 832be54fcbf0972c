"""The pairwise judge: a template that shows two answers, which one the judge prefers, and who wins by that.

A verdict is read from the judgement's own text alone. It says A for the answer shown first and B for the second,
whoever wrote them; who did is known outside.
"""

import collections
import math
import re
from collections.abc import Sequence
from typing import Literal, cast

from selfreward_jax.core.rows import last_request
from selfreward_jax.core.texts import read_text
from selfreward_jax.methods.quotes import in_quotation
from selfreward_jax.methods.template_files import begins, broken, check_placeholders, fill, packaged, tags_of

Verdict = Literal["A", "B", "tie"]
Outcome = Literal["win", "tie", "lose"]  # of one side, A

_LINE, _MOST = 1_000, 100  # characters of a line before a verdict, and verdicts, that are looked at
LABEL = "Verdict: [["  # up to the letter, where a verdict is read from the distribution

_VERDICT = re.compile(
    r"\[\[[\s*_]*+(?P<marked>A|B|C|tie)[\s*_]*+\]\]"  # wherever it stands
    r"|^(?:[^\S\n]|[*_])*+verdict[\s*_]*+:[\s*_]*+\[?(?P<line>A|B|C|tie)\]?(?:[^\S\n]|[*_.])*+$",  # or by itself
    re.IGNORECASE | re.MULTILINE,
)
_PUNCTUATION = " \t\r*_.!`\"'"
_LEADS_IN = re.compile(r"(?:^|:|\b(?:is|so|thus|therefore|hence))[\s*_,`\"']*$", re.IGNORECASE)
_DENIED = re.compile(r"(?:\b(?:not|never|nor|neither)|n't)[\s*_`\"']*$", re.IGNORECASE)
# What verdicts are written with; inside an answer it is broken up, so that a judge that quotes one has said nothing.
_CLOSINGS = re.compile(r"verdict|\[(?=\[)", re.IGNORECASE)


def parse_verdict(judgement: str) -> Verdict | None:
    """`[[A]]`, `[[B]]` or `[[tie]]` (MT-Bench writes `[[C]]`), or a line `Verdict: A`; None if there is none.

    Where several stand there and differ, the last one counts if a line closes with it (`Verdict: [[B]]`); else the
    judge may have weighed one against the other (`[[A]] or [[B]]`), and there is none. FastChat takes A wherever
    `[[A]]` stands. None means missing: it is no tie, and no win for anyone. One in a quotation is nobody's.
    """
    last_ones = collections.deque(_VERDICT.finditer(judgement), _MOST)
    found = [match for match in last_ones if not _quoted(judgement, match)]
    said = [(match["marked"] or match["line"]).upper().replace("TIE", "C") for match in found]
    if not said:
        return None
    last = found[-1]
    before = judgement[max(last.start() - _LINE, 0) : last.start()].rpartition("\n")[2]
    after = judgement[last.end() :].partition("\n")[0]
    closes = last["line"] or (_LEADS_IN.search(before) and not after.strip(_PUNCTUATION) and "[[" not in before)
    if _DENIED.search(before) or (len(set(said)) > 1 and not closes):
        return None
    return "tie" if said[-1] == "C" else cast(Verdict, said[-1])


def _quoted(judgement: str, verdict: re.Match[str]) -> bool:
    """Whether it is in somebody's words; marks around the letter alone, `Verdict: "[[A]]"`, quote nothing."""
    start = verdict.start()
    line = judgement[max(start - _LINE, 0) : start].rpartition("\n")[2]
    own = line.rstrip("\"'“‘")
    alone = not judgement[verdict.end() :].partition("\n")[0].strip(_PUNCTUATION + "”’")
    own = own if alone and own.strip() and _LEADS_IN.search(own) else line
    return in_quotation(judgement, start - len(line) + len(own))


class PairwiseTemplate:
    """A text with the placeholders `{{prompt}}`, `{{first}}` and `{{second}}`."""

    def __init__(self, path: str = ""):
        """Reads the package's template, or a user's.

        Raises:
          UserError: no such file, or one without each placeholder once.
        """
        self.text = (read_text(path, "--template") if path else packaged("pairwise.txt")).strip()
        names = ("prompt", "first", "second")
        check_placeholders(self.text, names, "the pairwise", path or "templates/pairwise.txt")
        self._tags = tags_of(self.text)

    def messages(self, prompt: Sequence[dict[str, str]], first: str, second: str) -> tuple[dict[str, str], ...]:
        """What the judge is asked about two answers, in this order.

        All texts are put in at once, so that a placeholder inside one of them stays text; the template's own tags
        inside them are broken up, and so is what verdicts are written with.
        """
        texts = {"prompt": last_request(prompt), "first": first, "second": second}
        guarded = (self._tags, _CLOSINGS)
        shown = {name: broken(text, (at for p in guarded for at in begins(p, text))) for name, text in texts.items()}
        content = fill(self.text, shown)
        return ({"role": "user", "content": content},)


def side(preference: float) -> Outcome:
    """The winner that a preference for A, from 0 to 1, means."""
    if preference == 0.5:
        return "tie"
    return "win" if preference > 0.5 else "lose"


def order_preference(verdicts: Sequence[float | None]) -> float | None:
    """The mean of an order's verdicts that could be read; None if none could."""
    read = [v for v in verdicts if v is not None]
    return math.fsum(read) / len(read) if read else None


def combine(a_first: float | None, b_first: float | None) -> Outcome | None:
    """Win or loss where both orders say so, else a tie; None where one of them says nothing readable.

    Args:
      a_first, b_first: preference for A's answer, from 0 to 1, as it was shown first and second.
    """
    if a_first is None or b_first is None:
        return None
    one, other = side(a_first), side(b_first)
    return one if one == other else "tie"

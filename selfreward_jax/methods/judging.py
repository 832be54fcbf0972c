"""The judge: a template that asks for a reasoned score, and the reading of that score.

A score is read from the judgement's own text alone, never from the prompt, so nothing that an answer says about
itself can be taken for its score.
"""

import math
import re
from collections.abc import Iterable, Sequence
from importlib import resources

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.rows import last_request
from selfreward_jax.core.texts import read_text
from selfreward_jax.core.tokens import neutralise

MAX_SCORE = 5.0

_SCORE = re.compile(
    r"\b_{0,2}score_{0,2}\b[\s*_]*:[\s*_]*[<\[(]?\s*"  # `Score:`, perhaps with Markdown around it
    r"(?P<score>\d+(?:\.\d+)?)(?![.,]?\d)"  # not a part of a longer number
    r"(?![ \t*_>\])]*(?:[-\u2013]|to\b)\s*\d)"  # not a range
    r"(?![ \t*_>\])]*(?:/|out\s+of\b)[\s*_]*+(?!5(?:\.0+)?(?![.,]?\d)))",  # out of nothing but 5
    re.IGNORECASE,
)


def parse_score(judgement: str) -> float | None:
    """The last well-formed `Score: n` with n from 0 to 5, or None.

    None means missing: it is neither 0 nor -1 and never makes an answer the worse one.
    """
    found = _last_score(judgement)
    return float(found["score"]) if found else None


def reasons_before_score(judgement: str) -> str:
    """What stands before the score that `parse_score` reads, without the markup around it; "" if there is none."""
    found = _last_score(judgement)
    return judgement[: found.start()].rstrip(" \t\n\r*_#>-") if found else ""


def _last_score(judgement: str) -> re.Match[str] | None:
    return next((m for m in reversed(list(_SCORE.finditer(judgement))) if float(m["score"]) <= MAX_SCORE), None)


def mean_score(scores: Iterable[float | None], min_parsed: int) -> float | None:
    """Mean of the scores there are (paper §2.2), None if fewer than `min_parsed` could be read."""
    parsed = [score for score in scores if score is not None]
    return math.fsum(parsed) / len(parsed) if len(parsed) >= max(min_parsed, 1) else None


class JudgeTemplate:
    """A text with the placeholders `{{prompt}}` and `{{response}}`."""

    def __init__(self, path: str = ""):
        """Reads the package's template, or a user's.

        Raises:
          UserError: no such file, or one without both placeholders.
        """
        source = path or str(resources.files("selfreward_jax") / "templates" / "judge.txt")
        self.text = read_text(source, "config.judge.template").strip()
        for placeholder in ("{{prompt}}", "{{response}}"):
            if self.text.count(placeholder) != 1:
                raise UserError(f"{source}: the judge template must contain {placeholder} exactly once.")
        self._tags = sorted(set(re.findall(r"</?\w+>", self.text)))

    def messages(self, prompt: Sequence[dict[str, str]], response: str) -> tuple[dict[str, str], ...]:
        """What the judge is asked about one answer.

        Both texts are put in at once, so that a placeholder inside one of them stays text; the template's own tags
        inside them are broken up, so that neither can end its part early.
        """
        fields = {
            "{{prompt}}": neutralise(last_request(prompt), self._tags),
            "{{response}}": neutralise(response, self._tags),
        }
        content = re.sub(r"\{\{(?:prompt|response)\}\}", lambda match: fields[match[0]], self.text)
        return ({"role": "user", "content": content},)

"""The judge: a template that asks for a reasoned score, and the reading of that score.

A score is read from the judgement's own text alone, never from the prompt; and what an answer says of its own score is
broken up before the judge sees it, so that a judge that quotes the answer has given it no score.
"""

import math
import re
from collections.abc import Iterable, Sequence

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.rows import last_request
from selfreward_jax.core.texts import read_text
from selfreward_jax.methods.score_forms import FIVE, Scale, find_score, score_breaks
from selfreward_jax.methods.template_files import begins, broken, check_placeholders, fill, packaged, tags_of

MAX_SCORE = 5.0


def parse_score(judgement: str, scale: Scale = FIVE) -> float | None:
    """The score that a judgement ends in, as one from 0 to 5, or None; see `score_forms`.

    None means missing: it is neither 0 nor -1 and never makes an answer the worse one.
    """
    found = find_score(judgement, scale)
    return scale.to_five(found.number) if found else None


def mean_score(scores: Iterable[float | None], min_parsed: int) -> float | None:
    """Mean of the scores there are (paper §2.2), None if fewer than `min_parsed` could be read."""
    parsed = [score for score in scores if score is not None]
    return math.fsum(parsed) / len(parsed) if len(parsed) >= max(min_parsed, 1) else None


_SCALE = re.compile(r"\{\{\s*scale\b([^{}]*)\}\}[^\S\n]*\n?")


class JudgeTemplate:
    """A text with the placeholders `{{prompt}}` and `{{response}}`, each once.

    `{{scale: 1-10}}`, anywhere in it, says that the judge is asked for another score than 0 to 5; it isn't shown.
    """

    def __init__(self, path: str = ""):
        """Reads the package's template, or a user's.

        Raises:
          UserError: no such file, one without both placeholders, or with a scale that is none.
        """
        where = path or "templates/judge.txt"
        self.text = (read_text(path, "config.judge.template") if path else packaged("judge.txt")).strip()
        check_placeholders(self.text, ("prompt", "response"), "the judge", where)
        self.scale = _declared(self.text, where)
        self._shown = _SCALE.sub("", self.text).strip()
        self._tags = tags_of(self.text)

    def check_method(self, method: str) -> None:
        """Raises `UserError` for a way of judging that knows scores from 0 to 5 only, where others are asked for."""
        if method in ("completion", "expected") and self.scale != FIVE:
            raise UserError(
                f"config.judge.method: {method} reads scores from 0 to 5, and the judge's template declares"
                f" {self.scale}; use sampled, or a template from 0 to 5."
            )

    def parse_score(self, judgement: str) -> float | None:
        """As the function of this name, on the template's scale."""
        return parse_score(judgement, self.scale)

    def messages(self, prompt: Sequence[dict[str, str]], response: str) -> tuple[dict[str, str], ...]:
        """What the judge is asked about one answer.

        Both texts are put in at once, so that a placeholder inside one of them stays text; the template's own tags
        inside them are broken up, so that neither can end its part early, and so are scores.
        """
        texts = {"prompt": last_request(prompt), "response": response}
        shown = {
            name: broken(text, begins(self._tags, text) + score_breaks(text, self.scale))
            for name, text in texts.items()
        }
        content = fill(self._shown, shown)
        return ({"role": "user", "content": content},)


def _declared(text: str, where: str) -> Scale:
    """The scale that a template declares; from 0 to 5 if it declares none."""
    found = _SCALE.findall(text)
    if not found:
        return FIVE
    bounds = re.fullmatch(r"\s*+:?\s*+(\d{1,9})\s*(?:-|–|to)\s*(\d{1,9})\s*", found[0])
    if len(found) > 1 or not bounds or int(bounds[1]) >= int(bounds[2]):
        raise UserError(
            f"{where}: the judge template must declare its scale once, as {{{{scale: 1-10}}}}, the lower bound first."
        )
    return Scale(float(bounds[1]), float(bounds[2]))

"""Scores from the model's distribution: what stands after `Score:` is read, not sampled.

A judgement then always has a score. It is the most probable one (*completion*), or the mean of the distribution over
0 to 5 (*expected*), which tells apart answers that a single digit can't. A pairwise judge's `Verdict: [[` is read in
the same way.
"""

import dataclasses
import math
from collections.abc import Sequence

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.tokens import Chat

SCORES = tuple(range(6))
LABEL = "Score:"


@dataclasses.dataclass(frozen=True)
class ScoreSlot:
    """How a tokenizer writes the line of the score, or of another answer that is one token long.

    Attributes:
      after_text, after_line: tokens up to the score, where the text before them ends within a line, and at its end.
      candidates: the token of each score, 0 to 5, or of each other option.
    """

    after_text: tuple[int, ...]
    after_line: tuple[int, ...]
    candidates: tuple[int, ...]

    @classmethod
    def of(
        cls, chat: Chat, start: str = f"{LABEL} ", options: Sequence[object] = SCORES, what: str = "score"
    ) -> "ScoreSlot":
        """The slot after `start` for one of the options.

        Raises:
          UserError: the tokenizer writes an option with more than one token, or two with the same.
        """
        text, candidates = _split(chat, f"\n{start}", options, what)
        line, same = _split(chat, start, options, what)
        if candidates != same:
            raise UserError(
                f"config.judge.method: this tokenizer writes the {what} after {start.strip()!r} in more ways than one,"
                " so it can't be read from the distribution; use sampled."
            )
        return cls(text, line, candidates)

    def feed(self, text: str) -> tuple[int, ...]:
        """The tokens that lead from a judgement's reasons to its score."""
        return self.after_line if not text or text.endswith("\n") else self.after_text

    @property
    def longest(self) -> int:
        """Tokens that have to be fed at most: those above and the last one sampled."""
        return max(len(self.after_text), len(self.after_line)) + 1


def _split(chat: Chat, start: str, options: Sequence[object], what: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens that `start` has before every option, and each option's own."""
    written = [tuple(chat.text_ids(f"{start}{option}")) for option in options]
    common = next((n for n, ids in enumerate(zip(*written, strict=False)) if len(set(ids)) > 1), 0)
    own = [ids[common:] for ids in written]
    if not common or any(len(ids) != 1 for ids in own):
        raise UserError(
            f"config.judge.method: this tokenizer does not write the {what}s after {start.strip()!r} as one token each,"
            " so they can't be read from the distribution; use sampled."
        )
    return written[0][:common], tuple(ids[0] for ids in own)


def distribution(logps: Sequence[float]) -> tuple[float, ...]:
    """Probabilities of the scores 0 to 5, or of other options, given that one of them comes."""
    top = max(logps)
    weights = [math.exp(x - top) for x in logps]
    total = math.fsum(weights)
    return tuple(w / total for w in weights)


def expected_score(probs: Sequence[float]) -> float:
    """Mean of the distribution, from 0 to 5."""
    return math.fsum(n * p for n, p in zip(SCORES, probs, strict=True))


def likeliest_score(probs: Sequence[float]) -> float:
    """The most probable score; of several the lowest."""
    return float(max(SCORES, key=lambda n: probs[n]))

"""Scores from the model's distribution: what stands after `Score:` is read, not sampled.

A judgement then always has a score. It is the most probable one (*completion*), or the mean of the distribution over
0 to 5 (*expected*), which tells apart answers that a single digit can't. A pairwise judge's `Verdict: [[` is read in
the same way.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.tokens import Chat

SCORES = tuple(range(6))
LABEL = "Score:"


@dataclasses.dataclass(frozen=True)
class ScoreSlot:
    """How a tokenizer writes the line of the score, or of another answer that is one token long.

    Attributes:
      after_prompt: tokens up to the score where it begins the answer.
      after_text, after_line: where the text before them ends within a line, and at its end.
      candidates: the token of each score, 0 to 5, or of each other option.
    """

    after_prompt: tuple[int, ...]
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
        places = [
            lambda text: chat.begin_ids([{"role": "user", "content": "x"}], text),
            # Sampled tokens stay as they are, whatever they end with: what follows is written as behind a letter.
            lambda text: chat.ids_behind("x", "\n" + text),
            lambda text: chat.ids_behind("x\n", text),
        ]
        (prompt, candidates), (text, second), (line, third) = (_split(p, start, options, what) for p in places)
        if not candidates == second == third:
            raise _unreadable(start, what, "in more ways than one")
        return cls(prompt, text, line, candidates)

    def feed(self, text: str) -> tuple[int, ...]:
        """The tokens that lead from a judgement's reasons to its score."""
        if not text:
            return self.after_prompt
        return self.after_line if text.endswith("\n") else self.after_text

    @property
    def longest(self) -> int:
        """Tokens that have to be fed at most: those above and the last one sampled."""
        return max(len(self.after_prompt), len(self.after_text), len(self.after_line)) + 1


def _split(
    place: Callable[[str], Sequence[int] | None], start: str, options: Sequence[object], what: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens that `start` has before every option at a place, and each option's own."""
    written = [place(f"{start}{option}") for option in options]
    if None in written:
        raise _unreadable(start, what, "in a way that merges with what stands before")
    common = next((n for n, ids in enumerate(zip(*written, strict=False)) if len(set(ids)) > 1), 0)  # type: ignore[arg-type]
    own = [ids[common:] for ids in written]  # type: ignore[index]
    if not common or any(len(ids) != 1 for ids in own):
        raise _unreadable(start, what, "not as one token each")
    return tuple(written[0][:common]), tuple(ids[0] for ids in own)  # type: ignore[index]


def _unreadable(start: str, what: str, how: str) -> UserError:
    return UserError(
        f"config.judge.method: this tokenizer writes the {what}s after {start.strip()!r} {how}, so they can't be read"
        " from the distribution; use sampled."
    )


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

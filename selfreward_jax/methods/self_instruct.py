"""New prompts by showing old ones (Self-Instruct, Wang et al. 2022; paper §2.2), and the filters they must pass."""

import dataclasses
import random
import re
from collections.abc import Iterable, Sequence

from selfreward_jax.methods.overlap import Overlaps, tokens_of

# A number in mid-sentence ("the sum of 15 and 27. Show") begins no item.
_NEXT_ITEM = re.compile(r"\n|\sTask\s*\d{1,2}[.):]\s|(?<=[.!?])\s\d{1,2}[.):]\s")


def few_shot_list(demonstrations: Sequence[str]) -> str:
    """A numbered list of tasks, one a line, that ends where the next one is to be written."""
    lines = [f"{n}. {' '.join(task.split())}" for n, task in enumerate(demonstrations, 1)]
    return "\n".join([*lines, f"{len(demonstrations) + 1}."])


def pick_demonstrations(
    seeds: Sequence[str], generated: Sequence[str], *, n_seed: int, n_generated: int, rng: random.Random
) -> list[str]:
    """`n_seed` seed prompts and `n_generated` generated ones in random order; seeds fill up a small pool."""
    own = rng.sample(generated, min(n_generated, len(generated)))
    wanted = min(n_seed + n_generated - len(own), len(seeds))
    demonstrations = own + rng.sample(seeds, wanted)
    rng.shuffle(demonstrations)
    return demonstrations


def first_item(continuation: str) -> str:
    """The text up to where the model begins another item or an answer."""
    return _NEXT_ITEM.split(continuation.strip(), maxsplit=1)[0].strip()


@dataclasses.dataclass(frozen=True)
class FilterSettings:
    """The limits of Self-Instruct; `keywords` name what a model of text can't do."""

    rouge_threshold: float
    min_words: int
    max_words: int
    keywords: tuple[str, ...]


class PromptFilter:
    """Accepts or rejects prompts one after another, each compared with all accepted before it."""

    def __init__(self, settings: FilterSettings, known: Iterable[str]):
        from rouge_score.rouge_scorer import RougeScorer  # takes seconds, with all of NLTK, so only when it is needed

        self._settings = settings
        self._scorer = RougeScorer(["rougeL"], use_stemmer=False)
        words = "|".join(re.escape(k) for k in settings.keywords)
        self._keywords = re.compile(rf"\b(?:{words})\b", re.IGNORECASE) if words else None
        self._exact: set[str] = set()
        self._known: list[str] = []
        self.overlaps = Overlaps(settings.rouge_threshold)
        for text in known:
            self._remember(text)

    def _remember(self, text: str) -> None:
        self._exact.add(_folded(text))
        self._known.append(text)
        self.overlaps.add(tokens_of(_rouge_words(text)))

    def similarity(self, text: str) -> float:
        """Largest ROUGE-L F1 with any known prompt, exact where it exceeds the threshold, else 0."""
        tokens = tokens_of(_rouge_words(text))
        size = len(tokens)
        largest = self._settings.rouge_threshold
        found = 0.0
        for place, shared, other_size in self.overlaps.shared(tokens):
            # The longest common subsequence has at most as many words as are shared in any order.
            if 2 * shared <= largest * (size + other_size):
                continue
            f1 = self._scorer.score(self._known[place], text)["rougeL"].fmeasure
            if f1 > largest:
                largest = found = f1
        return found

    def reject_reason(self, text: str) -> str | None:
        """Why a prompt is rejected, or None; an accepted one is remembered."""
        s = self._settings
        n_words = len(text.split())
        if n_words < s.min_words:
            return "too_short"
        if n_words > s.max_words:
            return "too_long"
        if not text[0].isascii():
            return "starts_non_ascii"
        if not text[0].isalnum() and text[0] not in "\"'":
            return "starts_with_punctuation"
        if text.lower().startswith("write a program"):
            return "asks_for_a_program"
        if self._keywords and self._keywords.search(text):
            return "keyword"
        if _folded(text) in self._exact:
            return "duplicate"
        if self.similarity(text) > s.rouge_threshold:
            return "similar"
        self._remember(text)
        return None


def _folded(text: str) -> str:
    """What exact duplicates have in common: the words in any script, without case and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _rouge_words(text: str) -> list[str]:
    """The words that rouge-score compares: lower-case runs of ASCII letters and digits."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).split()

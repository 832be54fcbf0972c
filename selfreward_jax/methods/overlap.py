"""Which of many texts share so many words with another that their F1 can be above a threshold, without a look at all.

It is the prefix filter of set similarity joins (Chaudhuri et al. 2006; Bayardo et al. 2007). Of a text of m words that
shares k with another, at most m - k come before the first shared one in any order of all words. In an order from the
rarest on, few texts have a word so early, and only those are compared.
"""

import collections
import functools
from collections.abc import Sequence

Token = tuple[str, int]


def tokens_of(words: Sequence[str]) -> list[Token]:
    """Words, each with how often it stood there before, so that a set of them knows how many of each there are."""
    seen: collections.Counter[str] = collections.Counter()
    tokens = []
    for word in words:
        tokens.append((word, seen[word]))
        seen[word] += 1
    return tokens


class Overlaps:
    """Texts as sets of their words, found by how many of them another text has.

    Attributes:
      compared: how many texts were looked at, for measurements.
    """

    def __init__(self, threshold: float):
        self.compared = 0
        self._threshold = threshold
        self._texts: list[frozenset[Token]] = []
        self._counts: collections.Counter[Token] = collections.Counter()  # in how many texts
        self._order: dict[Token, int] = {}  # the counts when the order was last made; of an unknown word 0
        self._remake = 64  # made again whenever there are twice as many texts
        self._places: dict[int, dict[Token, list[int]]] = {}  # by least size, then by word

    def add(self, tokens: Sequence[Token]) -> None:
        self._texts.append(frozenset(tokens))
        self._counts.update(tokens)
        if len(self._texts) < self._remake:
            self._index(len(self._texts) - 1)
            return
        self._remake *= 2
        self._order = dict(self._counts)
        self._places = {}
        for place in range(len(self._texts)):
            self._index(place)

    def _index(self, place: int) -> None:
        tokens = self._texts[place]
        places = self._places.setdefault(_least_size(len(tokens)), {})
        for token in self._rarest(tokens, _needed(self._threshold, len(tokens), 1)):
            places.setdefault(token, []).append(place)

    def _rarest(self, tokens: frozenset[Token], needed: int) -> list[Token]:
        """Those among which the first shared word stands, if `needed` are shared."""
        return sorted(tokens, key=lambda token: (self._order.get(token, 0), token))[: len(tokens) - needed + 1]

    def shared(self, tokens: Sequence[Token]) -> list[tuple[int, int, int]]:
        """All texts whose F1 can be above the threshold, and a few others.

        Returns:
          Place among the texts, in their order, how many words are shared, and how many words the other has.
        """
        own = frozenset(tokens)
        rarest = self._rarest(own, 1)
        found: set[int] = set()
        for least_size, places in self._places.items():
            for token in rarest[: len(own) - _needed(self._threshold, len(own), least_size) + 1]:
                found.update(places.get(token, ()))
        self.compared += len(found)
        texts = self._texts
        return [(place, len(own & texts[place]), len(texts[place])) for place in sorted(found)]


def _least_size(size: int) -> int:
    """The least of the sizes that are kept together, an eighth wide: its four highest bits."""
    low = max(size.bit_length() - 4, 0)
    return size >> low << low


@functools.lru_cache(1 << 16)
def _needed(threshold: float, size: int, least_size: int) -> int:
    """The fewest words that a text of this size must share with one of at least the other size; size + 1 if none do."""
    enough = (k for k in range(1, size + 1) if 2 * k > threshold * (size + max(least_size, k)))
    return next(enough, size + 1)

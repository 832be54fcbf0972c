"""Evaluation following data: which of a model's judgements are worth learning from (paper §2.1, §3.1).

People only ranked answers, so the judgements are a model's own. Those are kept whose scores put the answers in the
order in which people put them; and no score may have too large a share. The paper doesn't say how many judgements an
answer had, what it did about ties, or which shares it aimed at: here each of those is an argument.
"""

import collections
import functools
import itertools
import math
import random
from collections.abc import Hashable, Sequence

PERMUTATIONS = 24  # of a prompt's answers, for what chance would do


def agreeing_scores(
    ranks: Sequence[float], scores: Sequence[Sequence[float]], min_gap: float
) -> tuple[int, ...] | None:
    """One score for each answer to a prompt, so that all scores are in the order of the ranks.

    Of several ways, the one whose scores are nearest in sum to each answer's mean score: the model's usual opinion
    and not a lucky sample; then the one of the earlier samples.

    Args:
      ranks: of the answers; the lowest is the best, and those of equal rank may have any scores beside each other.
      scores: of each answer's judgements; at least one each.
      min_gap: by how much each score must exceed every score of a worse rank; 0 lets ties pass.

    Returns:
      Each answer's index into its scores, or None if no choice agrees.
    """
    groups = [[i for i, r in enumerate(ranks) if r == rank] for rank in sorted(set(ranks))]
    means = [math.fsum(own) / len(own) for own in scores]
    levels = sorted({score for own in scores for score in own})

    @functools.cache
    def nearest(i: int, low: float, high: float) -> tuple[float, int] | None:
        return min(((abs(s - means[i]), n) for n, s in enumerate(scores[i]) if low <= s <= high), default=None)

    @functools.cache
    def best(group: int, high: float) -> tuple[float, tuple[int, ...]] | None:
        """Cost and choice for this group and all below it, with no score above `high`."""
        if group == len(groups):
            return 0.0, ()
        ways = []
        for low in levels:
            picked = [nearest(i, low, high) for i in groups[group]]
            if any(p is None for p in picked) or not (rest := best(group + 1, low - min_gap + 1e-9)):
                continue
            ways.append((rest[0] + sum(p[0] for p in picked if p), (*(p[1] for p in picked if p), *rest[1])))
        return min(ways, default=None)

    found = best(0, math.inf)
    if found is None:
        return None
    chosen = dict(zip(itertools.chain(*groups), found[1], strict=True))
    return tuple(chosen[i] for i in range(len(ranks)))


def chance_agreement(
    ranks: Sequence[float], scores: Sequence[Sequence[float]], min_gap: float, seed: Hashable
) -> float:
    """How often `agreeing_scores` would find a choice if the answers' scores were dealt out at random.

    A judge that knows nothing passes the filter as often as this.
    """
    n = len(ranks)
    if math.factorial(n) <= PERMUTATIONS:
        dealt = list(itertools.permutations(scores))
    else:
        rng = random.Random(str(seed))
        dealt = [rng.sample(scores, n) for _ in range(PERMUTATIONS)]
    return sum(agreeing_scores(ranks, d, min_gap) is not None for d in dealt) / len(dealt)


def score_bin(score: float) -> int:
    """The whole score that a score counts as, half points upwards."""
    return min(int(score + 0.5), 5)


def balance(scores: Sequence[float], max_share: float, most: int) -> list[int]:
    """Rows to keep so that no score has more than its share; the most frequent scores give way first.

    Args:
      scores: of the rows, in the order in which they should be kept.
      max_share: of any one score (0 to 5, rounded) among the kept rows. Where there are too few different scores for
        it to be possible, all may have the same share.
      most: rows to keep at most.

    Returns:
      Ascending indices.
    """
    counts = collections.Counter(map(score_bin, scores))
    if not counts or most < 1:
        return []

    def total(cap: int) -> int:
        return sum(min(n, cap) for n in counts.values())

    share = max(max_share, 1 / len(counts))
    cap = next(c for c in range(max(counts.values()), 0, -1) if c <= share * total(c) + 1e-9)
    if total(cap) > most:
        cap = next(c for c in range(1, cap + 1) if total(c) >= most)
    quota = {score: min(n, cap) for score, n in counts.items()}
    over = max(total(cap) - most, 0)
    for score in sorted((s for s in quota if quota[s] == cap), reverse=True)[:over]:
        quota[score] -= 1
    kept = []
    for i, score in enumerate(map(score_bin, scores)):
        if quota[score]:
            quota[score] -= 1
            kept.append(i)
    return kept

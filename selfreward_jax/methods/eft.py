"""Evaluation following data: which of a model's judgements are worth learning from (paper §2.1, §3.1).

People only ranked answers, so the judgements are a model's own. Those are kept whose scores put the answers in the
order in which people put them; and no score may have too large a share. The paper doesn't say how many judgements an
answer had, what it did about ties, or which shares it aimed at: here each of those is an argument.
"""

import collections
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
    if not _agree(ranks, scores, min_gap):
        return None
    groups = _groups(ranks)
    nearest = [_by_distance(own) for own in scores]
    # Cost and choice for a group and all below it, by the highest score that they may have; from the worst group up.
    below: dict[float, tuple[float, tuple[int, ...]]] | None = None
    for group, better in zip(reversed(groups), [*reversed(groups[:-1]), ()], strict=True):
        lows = {score for i in group for score in scores[i]}
        highs = {_under(score, min_gap) for i in better for score in scores[i]} or {math.inf}
        here = {}
        for high in highs:
            ways = []
            for low in lows:
                rest = (0.0, ()) if below is None else below.get(_under(low, min_gap))
                if low > high or rest is None:
                    continue
                picked = [next((p for s, *p in nearest[i] if low <= s <= high), None) for i in group]
                if all(picked):
                    cost = rest[0] + sum(p[0] for p in picked if p)
                    ways.append((cost, (*(p[1] for p in picked if p), *rest[1])))
            if ways:
                here[high] = min(ways)
        below = here
    if not below:
        return ()
    chosen = dict(zip(itertools.chain(*groups), below[math.inf][1], strict=True))
    return tuple(chosen[i] for i in range(len(ranks)))


def _groups(ranks: Sequence[float]) -> list[list[int]]:
    """Answers of equal rank, the best first."""
    groups: dict[float, list[int]] = {}
    for i in sorted(range(len(ranks)), key=lambda i: ranks[i]):
        groups.setdefault(ranks[i], []).append(i)
    return list(groups.values())


def _under(score: float, min_gap: float) -> float:
    """The highest score that an answer of a worse rank may have."""
    return score - min_gap + 1e-9


def _by_distance(scores: Sequence[float]) -> list[tuple[float, float, int]]:
    """Each score once, with its distance to their mean and its first place, the nearest first."""
    mean = math.fsum(scores) / len(scores)
    first = {score: n for n, score in reversed(list(enumerate(scores)))}
    return sorted(((score, abs(score - mean), n) for score, n in first.items()), key=lambda found: found[1:])


def _agree(ranks: Sequence[float], scores: Sequence[Sequence[float]], min_gap: float) -> bool:
    """Whether any choice agrees: from the best rank on, each answer's highest score that is low enough leaves most."""
    high = math.inf
    for group in _groups(ranks):
        highest = [max((score for score in scores[i] if score <= high), default=None) for i in group]
        if None in highest:
            return False
        high = _under(min(score for score in highest if score is not None), min_gap)
    return True


def chance_agreement(
    ranks: Sequence[float], scores: Sequence[Sequence[float]], min_gap: float, seed: Hashable
) -> float:
    """How often `agreeing_scores` would find a choice if the answers' scores were dealt out at random.

    A judge that knows nothing passes the filter as often as this.
    """
    n, scores = len(ranks), [sorted(set(own)) for own in scores]
    if math.factorial(n) <= PERMUTATIONS:
        dealt = list(itertools.permutations(scores))
    else:
        rng = random.Random(str(seed))
        dealt = [rng.sample(scores, n) for _ in range(PERMUTATIONS)]
    return sum(_agree(ranks, d, min_gap) for d in dealt) / len(dealt)


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

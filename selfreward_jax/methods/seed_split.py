"""Who learns from which prompt: demonstrations (IFT), judgements (EFT) and prompts held out have none in common."""

import dataclasses
import math
from collections.abc import Collection, Sequence

from selfreward_jax.core.ranked import Ranked
from selfreward_jax.core.rows import content_id


@dataclasses.dataclass(frozen=True)
class SeedSplit:
    """Prompts of each set, no prompt in two of them, each in an order that depends on the seed and the prompts alone.

    Attributes:
      ift: those whose best answer is to be learnt.
      eft: those whose answers are to be judged.
      held_out: those on which judges are to be measured.
    """

    ift: tuple[Ranked, ...]
    eft: tuple[Ranked, ...]
    held_out: tuple[Ranked, ...]


def split_prompts(
    ranked: Sequence[Ranked], taken: Collection[str], ift_rows: int, eft_rows: int, held_out_rows: int, seed: int
) -> SeedSplit:
    """Divides ranked prompts among the three sets.

    IFT first takes prompts whose answers can't be compared, since nothing else can; of the others it leaves as many as
    EFT needs if every judgement were good, or half of them where there are too few. Where the data have no split of
    their own for testing, prompts are held out in the proportion of `held_out_rows` to `eft_rows`.

    Args:
      taken: keys of prompts that belong to none of the sets.
      ift_rows: demonstrations wanted; 0 for none.
      eft_rows, held_out_rows: judged answers wanted, of which a prompt has several.
    """
    order = sorted((r for r in ranked if r.key not in taken), key=lambda r: content_id(seed, r.key))
    held_out = [r for r in order if r.held_out and r.comparable]
    for_training = [r for r in order if not r.held_out]
    comparable = [r for r in for_training if r.comparable]
    wanted = eft_rows if held_out else eft_rows + held_out_rows
    answers = sum(len(r.answers) for r in comparable)
    reserve = min(math.ceil(wanted * len(comparable) / max(answers, 1)), math.ceil(len(comparable) / 2))

    alone = [r for r in for_training if r.best and not r.comparable]
    shared = [r for r in comparable if r.best][: len(comparable) - reserve]
    ift = [*alone, *shared][:ift_rows]
    learnt = {r.key for r in ift}
    eft = [r for r in comparable if r.key not in learnt]
    if not held_out:
        share = held_out_rows / max(eft_rows + held_out_rows, 1)
        count = min(round(len(eft) * share), len(eft))
        held_out, eft = eft[:count], eft[count:]
    return SeedSplit(tuple(ift), tuple(eft), tuple(held_out))

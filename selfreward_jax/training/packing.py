"""How the rows of a training step are laid out in arrays: one text a row, or several packed into rows of one length.

Whatever the layout, each example's log-probability is the same, and with it loss and gradient.
"""

import dataclasses
import math
from collections.abc import Sequence

from selfreward_jax.training.batches import Batch, Text, TrainRow, lay_rows, round_up
from selfreward_jax.training.objectives.base import RowArrays, row_arrays


@dataclasses.dataclass(frozen=True)
class Layout:
    """How texts become arrays.

    Attributes:
      rows: array rows of each example's kind that are computed at a time; 0: all of a step.
      bucket: array rows are padded to a multiple of so many tokens.
      pack: tokens of an array row that takes several texts; 0: each text has a row of its own.
      share_prompt: a training row's examples follow one copy of their prompt.
      ways: array rows are filled up to a multiple of this, the devices that share them.
    """

    rows: int
    bucket: int
    pack: int = 0
    share_prompt: bool = False
    ways: int = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """One micro-batch: its training rows, to how many they are filled up, and the texts of each array row."""

    rows: list[TrainRow]
    size: int
    texts: list[list[Text]]


def _texts(row: TrainRow, index: int, size: int, share_prompt: bool) -> list[Text]:
    """A training row's texts; its n-th example is number n * size + index of the micro-batch."""
    owners = [n * size + index for n in range(len(row.examples))]
    if share_prompt:
        return [Text(row.examples[0].prompt_ids, tuple(e.response_ids for e in row.examples), tuple(owners))]
    return [Text(e.prompt_ids, (e.response_ids,), (owner,)) for e, owner in zip(row.examples, owners, strict=True)]


def _can_share(row: TrainRow, layout: Layout) -> bool:
    """Whether a training row's examples have one prompt, and fit after it into one array row."""
    fits = not layout.pack or len(_texts(row, 0, 1, True)[0]) <= layout.pack
    return len(row.examples) > 1 and len({e.prompt_ids for e in row.examples}) == 1 and fits


def _one_text_a_row(rows: list[TrainRow], layout: Layout, share: bool) -> list[Plan]:
    kinds = 1 if share else len(rows[0].examples)  # array rows of a training row; together they fill the devices
    size = round_up(layout.rows or len(rows), layout.ways // math.gcd(layout.ways, kinds))
    plans = []
    for part in (rows[i : i + size] for i in range(0, len(rows), size)):
        texts = [_texts(row, r, size, share) for r, row in enumerate(part)]
        by_example = [[[t[n]] for t in texts] + [[]] * (size - len(part)) for n in range(len(texts[0]))]
        plans.append(Plan(part, size, [row for column in by_example for row in column]))
    return plans


def _place(texts: Sequence[Text], free: list[int]) -> list[int] | None:
    """The array row of each text, first fit; takes their room from `free`. None, and nothing taken, if one has none."""
    left, places = list(free), []
    for text in texts:
        at = next((b for b, room in enumerate(left) if len(text) <= room), None)
        if at is None:
            return None
        left[at] -= len(text)
        places.append(at)
    free[:] = left
    return places


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _packed(rows: list[TrainRow], layout: Layout, share: bool) -> list[Plan]:
    """First fit, longest first: within a few percent of full rows where there are many short texts."""
    total = sum(len(t) for row in rows for t in _texts(row, 0, 1, share))
    width = layout.rows * len(rows[0].examples) if layout.rows else _power_of_two(-(-total // layout.pack))
    plans, waiting = [], rows
    while waiting:
        plan, left = _fill(waiting, layout.pack, round_up(width, layout.ways), share)
        if not plan.rows:
            raise ValueError(f"a text is longer than the {layout.pack} tokens of a packed row")
        if left and not layout.rows:
            width *= 2  # all of a step at once was asked for
            continue
        plans.append(plan)
        waiting = left
    return plans


def _fill(rows: list[TrainRow], capacity: int, width: int, share: bool) -> tuple[Plan, list[TrainRow]]:
    """As many training rows as fit into `width` array rows, and those that are left."""
    free, taken, places, left = [capacity] * width, [], [], []
    for row in rows:
        found = _place(_texts(row, 0, 1, share), free)
        if found is None:
            left.append(row)
        else:
            taken.append(row)
            places.append(found)
    size = _power_of_two(max(len(taken), 1))  # few sizes, as each is compiled
    texts: list[list[Text]] = [[] for _ in range(width)]
    for r, (row, found) in enumerate(zip(taken, places, strict=True)):
        for text, b in zip(_texts(row, r, size, share), found, strict=True):
            texts[b].append(text)
    return Plan(taken, size, texts), left


def plan_micro_batches(rows: Sequence[TrainRow], layout: Layout) -> list[Plan]:
    """Divides a step's rows into micro-batches, longest first; each row is in exactly one."""
    ordered = sorted(rows, key=len, reverse=True)
    share = layout.share_prompt and all(_can_share(row, layout) for row in ordered)
    return (_packed if layout.pack else _one_text_a_row)(ordered, layout, share)


def micro_batches(rows: Sequence[TrainRow], layout: Layout) -> list[tuple[Batch, RowArrays]]:
    """A step's rows as padded arrays (longest first); how they are divided and laid out changes no gradient."""
    batches = []
    for plan in plan_micro_batches(rows, layout):
        examples = plan.size * len(plan.rows[0].examples)
        batch = lay_rows(plan.texts, examples, bucket=layout.pack or layout.bucket, target_bucket=layout.bucket)
        batches.append((batch, row_arrays(plan.rows, plan.size)))
    return batches

"""Answers that people have put in order, in any of the forms of `core.forms.ranked`: what a judge is measured against.

`subset` (or `category`) names a part of the data that is also measured by itself. Further fields are ignored.
"""

import dataclasses
import random
from collections.abc import Sequence

from etils import epath

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.forms import order, ranked
from selfreward_jax.core.readers import read_rows
from selfreward_jax.core.rows import Prompt, Response, Row, content_id, group_by, present


@dataclasses.dataclass(frozen=True)
class RankedPrompt:
    """A prompt with its answers and their order by people.

    Attributes:
      answers: texts, of the answers that have a place in the order.
      ranks: of each answer, lower is better; equal where people prefer neither.
      subset: a part of the data, "" if the row names none.
      split: "" if the row names none.
      partial: it is one row of several, each with one answer to the prompt.
      unranked: how many further answers have no place, and are left out.
    """

    prompt: Prompt
    answers: tuple[str, ...]
    ranks: tuple[float, ...]
    subset: str = ""
    split: str = ""
    partial: bool = False
    unranked: int = 0

    @property
    def ordered(self) -> bool:
        """Whether people prefer any of the answers to another."""
        return len(set(self.ranks)) > 1

    @property
    def responses(self) -> tuple[Response, ...]:
        """The answers as rows that `judge` takes; the same text to the same prompt has the same id in every row."""
        return tuple(
            Response(content_id(self.prompt.id, text), self.prompt.id, n, (), text, "given", 0.0)
            for n, text in enumerate(self.answers)
        )


@dataclasses.dataclass(frozen=True)
class HumanData:
    """What is measured, and what is not.

    Attributes:
      rows: prompts whose answers people have put in order.
      equal_ranks: prompts left out since all their answers have the same rank.
      single_answer: prompts left out since they have one answer with a rank.
      no_answer: prompts left out since they have none.
      unranked: answers left out since they have neither rank nor score.
    """

    rows: tuple[RankedPrompt, ...]
    equal_ranks: int
    single_answer: int
    no_answer: int = 0
    unranked: int = 0

    @property
    def prompts(self) -> list[Prompt]:
        return list({row.prompt.id: row.prompt for row in self.rows}.values())

    @property
    def responses(self) -> list[Response]:
        """Each answer once, however many rows it stands in."""
        return list({r.id: r for row in self.rows for r in row.responses}.values())


def load_human(path: epath.PathLike, *, split: str = "", max_prompts: int = 0, seed: int = 0) -> HumanData:
    """Reads ranked answers.

    Args:
      split: only rows with this `split`.
      max_prompts: at most so many rows that can be measured, drawn by the seed; 0 for all.

    Raises:
      UserError: a wrong row, with its line; no row of the split; no row that can be measured.
    """
    rows = _joined(read_rows(path, parse_ranked, "ranked answers"))
    if split:
        splits = sorted({row.split for row in rows if row.split})
        rows = [row for row in rows if row.split == split]
        if not rows:
            known = f"there are {', '.join(splits)}" if splits else "no row has the field split"
            raise UserError(f"--split={split}: {path} has no such row; {known}.")
    measured = [row for row in rows if row.ordered]
    single = sum(len(row.answers) == 1 for row in rows)
    none = sum(not row.answers for row in rows)
    equal = len(rows) - len(measured) - single - none
    if not measured:
        raise UserError(
            f"{path}: nothing to measure; no prompt has two answers of different ranks"
            f" ({equal} with equal ranks, {single} with a single answer, {none} without a ranked answer)."
        )
    if 0 < max_prompts < len(measured):
        chosen = sorted(random.Random(seed).sample(range(len(measured)), max_prompts))
        measured = [measured[n] for n in chosen]
    return HumanData(tuple(measured), equal, single, none, sum(row.unranked for row in rows))


def parse_ranked(row: Row) -> RankedPrompt:
    """One row. Raises `KeyError` or `ValueError` for a wrong one."""
    row = present(row)
    made = ranked(row)
    placed = [(a.text, rank) for a, rank in zip(made.answers, order(made.answers), strict=True) if rank is not None]
    named = {name: row.get(name) or "" for name in ("subset", "category", "split")}
    for name, value in named.items():
        if not isinstance(value, str):
            raise ValueError(f"{name} must be text")
    return RankedPrompt(
        Prompt(content_id(made.prompt), made.prompt, "given"),
        tuple(text for text, _ in placed),
        tuple(rank for _, rank in placed),
        named["subset"] or named["category"],
        named["split"],
        made.partial,
        len(made.answers) - len(placed),
    )


def _joined(rows: Sequence[RankedPrompt]) -> list[RankedPrompt]:
    """Rows of one answer each as one row a prompt, where the first of them stood; a text's best rank counts."""
    made = []
    for same in group_by(rows, lambda r: f"{r.prompt.id} {r.subset} {r.split}" if r.partial else str(id(r))).values():
        best: dict[str, float] = {}
        for text, rank in ((row.answers[0], row.ranks[0]) for row in same if row.partial):
            best[text] = min(rank, best.get(text, rank))
        made.append(dataclasses.replace(same[0], answers=(*best,), ranks=(*best.values(),)) if best else same[0])
    return made

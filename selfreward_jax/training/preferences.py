"""Preference pairs as rows of training: pairs for most losses, single answers for KTO."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.losses import LOSSES, LossSettings
from selfreward_jax.core.rows import Pair, as_messages, content_id, from_dict
from selfreward_jax.core.tokens import Chat
from selfreward_jax.training.batches import Example, TrainRow

SIDES = ("chosen", "rejected")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A row, and for each of its examples the pair and the side that it is of."""

    row: TrainRow
    labels: tuple[tuple[str, str], ...]

    @property
    def tail_start(self) -> int:
        """Where the shortest answer ends, for LD-DPO."""
        return min(len(e.response_ids) for e in self.row.examples)


def given_pair(row: Mapping[str, Any], chat: Chat) -> Pair:
    """A pair from a row of TRL's preference columns, `prompt`, `chosen` and `rejected`, each text or messages.

    A line of `pairs.jsonl` keeps its token ids. `score_chosen`, `score_rejected` and `weight` are taken where they are
    there, and other columns are ignored.

    Raises:
      KeyError, TypeError, ValueError: a column is missing, or is neither text nor messages.
    """
    if "chosen_token_ids" in row:
        return from_dict(Pair, dict(row))
    prompt = as_messages(row["prompt"])
    chosen, rejected = (_answer_text(row[side], side) for side in SIDES)
    prompt_ids, (chosen_ids, rejected_ids) = chat.answers_ids(prompt, (chosen, rejected))
    high, low = (float(row.get(f"score_{side}", 0)) for side in SIDES)
    return Pair(
        id=content_id(prompt, chosen, rejected),
        prompt_id=content_id(prompt),
        prompt=prompt,
        chosen=({"role": "assistant", "content": chosen},),
        rejected=({"role": "assistant", "content": rejected},),
        score_chosen=high,
        score_rejected=low,
        margin=high - low,
        prompt_token_ids=tuple(prompt_ids),
        chosen_token_ids=tuple(chosen_ids),
        rejected_token_ids=tuple(rejected_ids),
        provenance={},
        weight=float(row.get("weight", 1)),
    )


def _answer_text(answer: Any, side: str) -> str:
    if isinstance(answer, list | tuple) and len(answer) == 1 and isinstance(answer[0], Mapping):
        message = answer[0]
        answer = message.get("content") if message.get("role") == "assistant" else None
    if not isinstance(answer, str):
        raise ValueError(f"{side} must be text or one message of the assistant")
    return answer


def preference_rows(
    pairs: Sequence[Pair], settings: LossSettings, limit: int, where: str
) -> tuple[list[Labelled], int]:
    """Rows of the pairs whose answers have at most `limit` tokens with their prompt, and how many pairs were left out.

    Args:
      where: the pairs come from, for errors.

    Raises:
      UserError: pairs that can't be learnt from, or not with this loss.
    """
    for number, pair in enumerate(pairs, 1):
        if fault := _fault(pair):
            raise UserError(f"{where}: pair {number} ({pair.id}): {fault}.")
    fitting = [p for p in pairs if max(map(len, _answers(p))) <= limit]
    for name in settings.loss_type:
        if not LOSSES[name].weights and any(p.weight != 1 for p in fitting):
            raise UserError(f"{where}: {name} compares all pairs as equals, and some have a weight other than 1.")
    if settings.unpaired and len({p.prompt_token_ids for p in fitting}) == 1:
        raise UserError(f"{where}: kto needs answers to two prompts or more, and all of these are to one.")
    make = _answer_rows if settings.unpaired else _pair_rows
    return make(fitting, settings, limit), len(pairs) - len(fitting)


def _fault(pair: Pair) -> str:
    """Why nothing can be learnt from a pair, "" if something can."""
    for side in ("prompt", *SIDES):
        if not getattr(pair, f"{side}_token_ids"):
            return f"{side}_token_ids is empty"
    if pair.chosen_token_ids == pair.rejected_token_ids:
        return "chosen and rejected answer are the same"
    if not (math.isfinite(pair.weight) and pair.weight > 0):
        return f"its weight is {pair.weight} and must be above 0"
    if not math.isfinite(pair.margin):
        return f"its margin is {pair.margin}"
    return ""


def _answers(pair: Pair) -> list[Example]:
    return [Example(pair.prompt_token_ids, ids) for ids in (pair.chosen_token_ids, pair.rejected_token_ids)]


def _pair_rows(pairs: Sequence[Pair], settings: LossSettings, limit: int) -> list[Labelled]:
    return [
        Labelled(
            TrainRow(tuple(_answers(pair)), weight=pair.weight, margin=settings.margin_scale * pair.margin),
            tuple((pair.id, side) for side in SIDES),
        )
        for pair in pairs
    ]


def _answer_rows(pairs: Sequence[Pair], settings: LossSettings, limit: int) -> list[Labelled]:
    """Both answers of each pair, each with the same side's answer to the prompt before it, from which KTO takes its KL.

    So borrowed answers are the same set as the others, as in TRL. One that is too long for its new prompt is cut.
    """
    rows = []
    for i, pair in enumerate(pairs):
        before = (pairs[i - distance] for distance in range(1, len(pairs)))
        other = next(p for p in before if p.prompt_token_ids != pair.prompt_token_ids)
        room = limit - len(pair.prompt_token_ids)
        for side, answer, borrowed in zip(SIDES, _answers(pair), _answers(other), strict=True):
            mismatched = Example(pair.prompt_token_ids, borrowed.response_ids[:room])
            row = TrainRow((answer, mismatched), weight=pair.weight, desirable=side == "chosen")
            rows.append(Labelled(row, ((pair.id, side), (pair.id, f"{side}_kl"))))
    return rows

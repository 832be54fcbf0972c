"""Preferences as rows of training: pairs for most losses, single answers for KTO."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.forms import SIDES, is_preference, preference, unpaired
from selfreward_jax.core.losses import LOSSES, LossSettings
from selfreward_jax.core.rows import Messages, Pair, Row, content_id, from_dict, present
from selfreward_jax.core.tokens import Chat, common_prefix
from selfreward_jax.training.batches import Example, TrainRow


@dataclasses.dataclass(frozen=True)
class Single:
    """One answer to a prompt, good (`label`) or bad by itself, with its token ids; the other columns are TRL's."""

    id: str
    prompt: Messages
    completion: Messages
    label: bool
    prompt_token_ids: tuple[int, ...]
    completion_token_ids: tuple[int, ...]
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A row, and for each of its examples the pair (or the answer) and the side that it is of."""

    row: TrainRow
    labels: tuple[tuple[str, str], ...]

    @property
    def tail_start(self) -> int:
        """Where the shortest answer ends, for LD-DPO."""
        return min(len(e.response_ids) for e in self.row.examples)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Rows to train on, and how many preferences were left out since they are too long, or equal on both sides."""

    rows: list[Labelled]
    too_long: int
    equal: int

    def left_out(self, limit: int) -> str:
        """What was left out and why, for people; "" if nothing was."""
        told = [f"{self.equal} with the same answer on both sides"] if self.equal else []
        told += [f"{self.too_long} of more than {limit} tokens"] if self.too_long else []
        return " and ".join(told)


def given(row: Mapping[str, Any], chat: Chat, vocab_size: int) -> Pair | Single:
    """A preference from a row of any form of `core.forms.preference` or `core.forms.unpaired`.

    A line of `pairs.jsonl` keeps its token ids, which must be below `vocab_size`.

    Raises:
      KeyError, TypeError, ValueError: a column is missing or wrong.
      UserError: the chat template can't render it.
    """
    row = present(row)
    if "chosen_token_ids" in row:
        return _with_ids(row, vocab_size)
    if not is_preference(row):
        one = unpaired(row)
        prompt_ids, (ids,) = completions_ids(chat, one.prompt, [one.completion])
        id = content_id(one.prompt, one.completion, one.label)
        return Single(id, one.prompt, one.completion, one.label, prompt_ids, ids, one.weight)
    pair = preference(row)
    prompt_ids, (chosen, rejected) = completions_ids(chat, pair.prompt, [pair.chosen, pair.rejected])
    high, low = pair.scores or (0.0, 0.0)
    return Pair(
        id=content_id(pair.prompt, pair.chosen, pair.rejected),
        prompt_id=content_id(pair.prompt),
        prompt=pair.prompt,
        chosen=pair.chosen,
        rejected=pair.rejected,
        score_chosen=high,
        score_rejected=low,
        margin=high - low,
        prompt_token_ids=prompt_ids,
        chosen_token_ids=chosen,
        rejected_token_ids=rejected,
        provenance={},
        weight=pair.weight,
    )


def _with_ids(row: Row, vocab_size: int) -> Pair:
    fields = dataclasses.fields(Pair)
    if lost := [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in row]:
        raise ValueError(f"a pair with chosen_token_ids must be a line of pairs.jsonl; it lacks {', '.join(lost)}")
    for name in ("prompt_token_ids", *(f"{side}_token_ids" for side in SIDES)):
        if not isinstance(row[name], list) or not all(type(token) is int for token in row[name]):
            raise ValueError(f"{name} must be a list of whole numbers")
        wrong = next((token for token in row[name] if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise ValueError(f"{name} holds {wrong}, and the model's vocabulary has the ids 0 to {vocab_size - 1}")
    return from_dict(Pair, {f.name: row[f.name] for f in fields if f.name in row})


def completions_ids(
    chat: Chat, prompt: Messages, completions: Sequence[Messages]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Ids of a prompt, and of all that follows it in each completion up to the end of the assistant's last turn.

    All of it is learnt from, as in TRL: of several turns also what others say between the assistant's.

    Raises:
      ValueError: the template renders the prompt otherwise when several turns follow it.
    """
    if all(len(turns) == 1 for turns in completions):
        asked, answers = chat.answers_ids(prompt, [turns[0]["content"] for turns in completions])
        return tuple(asked), [tuple(ids) for ids in answers]
    asked, text = chat.prompt_ids(prompt), chat.render(prompt)
    wholes = []
    for *between, answer in completions:
        before = (*prompt, *between)
        if not chat.render(before).startswith(text):
            raise ValueError("the chat template renders the prompt otherwise when several turns follow it")
        prompt_ids, ids = chat.answer_ids(before, answer["content"])
        wholes.append((*prompt_ids, *ids))
    shared = min(common_prefix(asked, whole) for whole in wholes)
    return tuple(asked[:shared]), [whole[shared:] for whole in wholes]


def preference_rows(preferences: Sequence[Pair | Single], settings: LossSettings, limit: int, where: str) -> Prepared:
    """Rows of the preferences whose answers have at most `limit` tokens with their prompt, without equal pairs.

    Args:
      where: the preferences come from, for errors.

    Raises:
      UserError: preferences that can't be learnt from, or not with this loss.
    """
    pairs = [p for p in preferences if isinstance(p, Pair)]
    singles = [p for p in preferences if isinstance(p, Single)]
    if pairs and singles:
        first = next(n for n, p in enumerate(preferences, 1) if type(p) is not type(preferences[0]))
        raise UserError(f"{where}: row 1 and row {first} are a pair and a single answer with a label; give one kind.")
    if singles and not settings.unpaired:
        name = settings.loss_type[0]
        raise UserError(
            f"{where}: single answers with a label, and {name} learns from pairs (chosen, rejected); use loss_type=kto."
        )
    for number, given in enumerate(preferences, 1):
        if fault := _fault(given):
            kind = "pair" if isinstance(given, Pair) else "answer"
            raise UserError(f"{where}: {kind} {number} ({given.id}): {fault}.")
    if settings.margin_scale and pairs and not any(p.margin for p in pairs):
        raise UserError(f"{where}: margin_scale needs score_chosen and score_rejected, and no pair has any.")
    unequal = [p for p in preferences if isinstance(p, Single) or p.chosen_token_ids != p.rejected_token_ids]
    fitting = [p for p in unequal if max(map(len, _answers(p))) <= limit]
    for name in settings.loss_type:
        if not LOSSES[name].weights and any(p.weight != 1 for p in fitting):
            raise UserError(f"{where}: {name} compares all pairs as equals, and some have a weight other than 1.")
    if settings.unpaired and len({p.prompt_token_ids for p in fitting}) == 1:
        raise UserError(f"{where}: kto needs answers to two prompts or more, and all of these are to one.")
    if settings.unpaired:
        rows = _answer_rows(fitting, limit)
    else:
        rows = _pair_rows([p for p in fitting if isinstance(p, Pair)], settings)
    return Prepared(rows, len(unequal) - len(fitting), len(preferences) - len(unequal))


def _fault(given: Pair | Single) -> str:
    """Why nothing can be learnt from a preference, "" if something can."""
    sides = SIDES if isinstance(given, Pair) else ("completion",)
    for side in ("prompt", *sides):
        if not getattr(given, f"{side}_token_ids"):
            return f"{side}_token_ids is empty"
    if not (math.isfinite(given.weight) and given.weight > 0):
        return f"its weight is {given.weight} and must be above 0"
    if isinstance(given, Pair) and not math.isfinite(given.margin):
        return f"its margin is {given.margin}"
    return ""


def _answers(given: Pair | Single) -> list[Example]:
    sides = (
        [given.completion_token_ids]
        if isinstance(given, Single)
        else [given.chosen_token_ids, given.rejected_token_ids]
    )
    return [Example(given.prompt_token_ids, ids) for ids in sides]


def _pair_rows(pairs: Sequence[Pair], settings: LossSettings) -> list[Labelled]:
    return [
        Labelled(
            TrainRow(tuple(_answers(pair)), weight=pair.weight, margin=settings.margin_scale * pair.margin),
            tuple((pair.id, side) for side in SIDES),
        )
        for pair in pairs
    ]


def _answer_rows(preferences: Sequence[Pair | Single], limit: int) -> list[Labelled]:
    """Each answer, with one to the prompt before it, from which KTO takes its KL; of pairs, the same side's.

    So borrowed answers of pairs are the same set as the others, as in TRL. One that is too long for its new prompt is
    cut.
    """
    rows = []
    for i, given in enumerate(preferences):
        before = (preferences[i - distance] for distance in range(1, len(preferences)))
        other = next(p for p in before if p.prompt_token_ids != given.prompt_token_ids)
        room = limit - len(given.prompt_token_ids)
        sides = SIDES if isinstance(given, Pair) else ("chosen" if given.label else "rejected",)
        for side, answer, borrowed in zip(sides, _answers(given), _answers(other), strict=True):
            mismatched = Example(given.prompt_token_ids, borrowed.response_ids[:room])
            row = TrainRow((answer, mismatched), weight=given.weight, desirable=side == "chosen")
            rows.append(Labelled(row, ((given.id, side), (given.id, f"{side}_kl"))))
    return rows

"""Verdicts on pairs of answers, each pair in both orders, as rows of an artefact.

How one comes about is `judge.method`, as for scores: read from the sampled text; or, after the judge's reasons or with
none at all, from its distribution over the two letters, so that every verdict can be read, a weak judge's too.
"""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any, Literal

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Prompt, Row, content_id, group_by, load_rows
from selfreward_jax.core.tokens import Chat
from selfreward_jax.engine.generate import Completion, Request
from selfreward_jax.methods.pairwise import (
    LABEL,
    Outcome,
    PairwiseTemplate,
    Verdict,
    combine,
    order_preference,
    parse_verdict,
)
from selfreward_jax.methods.score_slot import ScoreSlot, distribution
from selfreward_jax.stages.judge import judge_sampling, needs_sampling, slot_requests
from selfreward_jax.stages.sampling import read_artefact, sample_artefact, sampling_settings
from selfreward_jax.stages.unread import Watch, first_outputs
from selfreward_jax.stages.work import ModelRef, Work

First = Literal["a", "b"]  # whose answer is shown first
LETTERS = ("A", "B")
PREFERS_FIRST = {"A": 1.0, "tie": 0.5, "B": 0.0}


class NoVerdict(UserError):
    """A judge from which no verdict can be had on any of the pairs."""


@dataclasses.dataclass(frozen=True)
class AnswerPair:
    """Two sides' answers to one prompt."""

    prompt: Prompt
    a: str
    b: str

    def shown(self, first: First) -> tuple[str, str]:
        """The answers in the order in which the judge sees them."""
        return (self.a, self.b) if first == "a" else (self.b, self.a)


@dataclasses.dataclass(frozen=True)
class PairVerdict:
    """What a judge said of two answers in one order.

    Attributes:
      question: id of what the judge was asked, which follows from prompt, answers and order.
      first: whose answer was shown first, and so is the text's A.
      verdict: "A", "B" or "tie" as the text says it, None where it says nothing readable.
      prefers_first: 1 for A, 0 for B, 0.5 for a tie, or with `judge.method=expected` the probability of A.
    """

    question: str
    index: int
    prompt_id: str
    first: First
    text: str
    verdict: str | None
    prefers_first: float | None
    stop_reason: str

    @property
    def prefers_a(self) -> float | None:
        if self.prefers_first is None:
            return None
        return self.prefers_first if self.first == "a" else 1.0 - self.prefers_first


def judge_pairs(
    work: Work,
    artefact: str,
    judge: ModelRef,
    name: str,
    title: str,
    pairs: Sequence[AnswerPair],
    samples: int,
    template: PairwiseTemplate,
) -> list[PairVerdict]:
    """Asks the judge about every pair in both orders, `samples` times each, with the settings of `judge`.

    Pairs of equal answers are not asked about, nor are those that don't fit the judge's context in either order.

    Args:
      name: the judge's, for messages.

    Raises:
      NoVerdict: no verdict can be read, or nothing fits the judge's context.
    """
    c = work.config.judge
    inputs = {
        "stage": "verdicts",
        **work.sampling_inputs(judge),
        "pairs": content_id([[p.prompt.id, p.a, p.b] for p in pairs]),
        "template": content_id(template.text),
        "settings": c.to_dict() | {"samples": samples},
    }
    if work.is_made(artefact, inputs):
        work.skip(title)
    else:
        _ask(work, artefact, inputs, judge, name, title, pairs, samples, template)
    path = work.root / artefact
    verdicts = load_rows(path, PairVerdict) if path.read_text().strip() else []
    if verdicts and all(v.verdict is None for v in verdicts):
        raise _unreadable(name, [dataclasses.asdict(v) for v in verdicts])
    return verdicts


def _ask(
    work: Work,
    artefact: str,
    inputs: dict[str, Any],
    judge: ModelRef,
    name: str,
    title: str,
    pairs: Sequence[AnswerPair],
    samples: int,
    template: PairwiseTemplate,
) -> None:
    c = work.config.judge
    chat = work.chat_of(judge)
    slot = None if c.method == "sampled" else ScoreSlot.of(chat, LABEL, LETTERS, "verdict")
    room = work.context_of(judge) - c.max_new_tokens - (slot.longest if slot else 0)
    asked = _requests(chat, template, pairs, room)
    if not asked:
        if any(p.a != p.b for p in pairs):
            raise NoVerdict(
                f"{name}: no two answers fit into its context of {work.context_of(judge)} tokens with a verdict of"
                f" {c.max_new_tokens}; lower config.judge.max_new_tokens, or use another judge or --score=absolute."
            )
        work.write(artefact, inputs, "")
        return
    requests = [request for request, _, _ in asked]
    about: dict[str, tuple[str, First]] = {request.id: (prompt_id, first) for request, prompt_id, first in asked}
    if slot and not needs_sampling(c.method, c.rationale):
        to_row = functools.partial(_slot_row, c.method, about)
        at_slot = slot_requests(requests, slot)
        read_artefact(work, artefact, inputs, judge, at_slot, slot.candidates, to_row, "question", title)
    else:
        to_row = functools.partial(_sampled_row, c.method, about)
        settings, reading = judge_sampling(sampling_settings(c), slot, LABEL.partition(" ")[0])
        watch = Watch("verdict", functools.partial(_unreadable, name))
        sample_artefact(
            work, artefact, inputs, judge, requests, samples, settings, to_row, "question", title, reading, watch
        )


def _requests(
    chat: Chat, template: PairwiseTemplate, pairs: Sequence[AnswerPair], most_tokens: int
) -> list[tuple[Request, str, First]]:
    """What the judge is asked, with the prompt's id and whose answer stands first.

    A question's id doesn't say whose the answers are, so that with the sides swapped the same is asked and drawn.
    """
    asked: list[tuple[Request, str, First]] = []
    sides: tuple[First, First] = ("a", "b")
    unlike = [pair for pair in pairs if pair.a != pair.b]
    questions = [template.messages(pair.prompt.messages, *pair.shown(first)) for pair in unlike for first in sides]
    ids = iter(chat.prompts_ids(questions))
    for pair in unlike:
        both: list[tuple[Request, str, First]] = []
        for first in sides:
            request = Request(content_id(pair.prompt.id, *pair.shown(first)), tuple(next(ids)))
            both.append((request, pair.prompt.id, first))
        if all(len(request.prompt_ids) <= most_tokens for request, _, _ in both):
            asked += both
    return asked


def _sampled_row(method: str, about: dict[str, tuple[str, First]], x: Completion) -> PairVerdict:
    prompt_id, first = about[x.request.id]
    if x.read is not None:
        return _read_row(method, x.request.id, x.index, prompt_id, first, x.text, x.stop_reason, x.read)
    verdict = sampled_verdict(x)
    prefers = PREFERS_FIRST[verdict] if verdict else None
    return PairVerdict(x.request.id, x.index, prompt_id, first, x.text, verdict, prefers, x.stop_reason)


def sampled_verdict(x: Completion) -> Verdict | None:
    """The verdict that a sampled text gives; None too where the limit cut what may have become another word or mark."""
    verdict = parse_verdict(x.text)
    if x.stop_reason == "length" and ("[[" in x.text.rpartition("]]")[2] or parse_verdict(f"{x.text}x") != verdict):
        return None
    return verdict


def _slot_row(
    method: str, about: dict[str, tuple[str, First]], request: Request, logps: Sequence[float]
) -> PairVerdict:
    return _read_row(method, request.id, 0, *about[request.id], "", "read", logps)


def _read_row(
    method: str,
    question: str,
    index: int,
    prompt_id: str,
    first: First,
    reasons: str,
    stop_reason: str,
    logps: Sequence[float],
) -> PairVerdict:
    """A verdict read from the distribution over A and B; its text ends in it as if it had been written."""
    p = round(distribution(logps)[0], 6)
    verdict = "tie" if p == 0.5 else LETTERS[int(p < 0.5)]
    text = f"{reasons.rstrip()}\n{LABEL}{verdict}]]".lstrip()
    prefers = p if method == "expected" else PREFERS_FIRST[verdict]
    return PairVerdict(question, index, prompt_id, first, text, verdict, prefers, stop_reason)


def _unreadable(name: str, rows: Sequence[Row]) -> NoVerdict:
    return NoVerdict(
        f"{name}: none of its {len(rows)} verdicts can be read, they should end in [[A]] or [[B]]; they begin"
        f" {first_outputs(rows)}."
        " Use --config.judge.method=completion, which reads them from its distribution, --score=absolute or another"
        " judge."
    )


def too_long(pairs: Sequence[AnswerPair], verdicts: Sequence[PairVerdict], title: str) -> set[str]:
    """The prompts of pairs that did not fit the judge's context; said, if there are any."""
    asked = {v.prompt_id for v in verdicts}
    left = {p.prompt.id for p in pairs if p.a != p.b and p.prompt.id not in asked}
    if left:
        say(f"{title}: {len(left)} of {len(pairs)} pairs are too long for the judge's context and are left out")
    return left


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the verdicts on a pair come to.

    Attributes:
      outcome: of A; None where it is missing.
      orders: the preference for A's answer with A's shown first and with B's shown first; empty where no one was asked.
      missing: why there is no outcome, or "".
    """

    outcome: Outcome | None
    orders: tuple[float | None, ...] = ()
    missing: str = ""


def decide(pairs: Sequence[AnswerPair], verdicts: Sequence[PairVerdict], left: Collection[str]) -> list[Decision]:
    """Who wins each pair; equal answers are a tie.

    Args:
      left: the prompts of pairs that are too long for the judge.
    """
    said = group_by(verdicts, lambda v: v.prompt_id)
    made = []
    for pair in pairs:
        if pair.a == pair.b:
            made.append(Decision("tie"))
        elif pair.prompt.id in left:
            made.append(Decision(None, missing="too_long"))
        else:
            own = said[pair.prompt.id]
            orders = tuple(order_preference([v.prefers_a for v in own if v.first == first]) for first in ("a", "b"))
            outcome = combine(*orders)
            made.append(Decision(outcome, orders, "" if outcome else "unreadable"))
    return made

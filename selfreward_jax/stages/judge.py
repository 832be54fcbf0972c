"""Judgements of answers by the model that gave them, and a score from each (paper §2.2).

The paper's way reads the score from the sampled text. Two others read it from the model's distribution over the
scores, after sampled reasons or with none at all (`methods/score_slot.py`).
"""

import functools
from collections.abc import Callable, Mapping, Sequence

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Judgement, Prompt, Response, Row, content_id, load_rows, read_jsonl, to_lines
from selfreward_jax.core.tokens import Chat
from selfreward_jax.engine.generate import Completion, Reading, Request
from selfreward_jax.engine.sampling import SamplingSettings
from selfreward_jax.methods.judge_function import JudgeFunction, checked_score, load_function, source_hash
from selfreward_jax.methods.judging import JudgeTemplate
from selfreward_jax.methods.score_slot import LABEL, ScoreSlot, distribution, expected_score, likeliest_score
from selfreward_jax.stages.sampling import read_artefact, sample_artefact, sampling_settings
from selfreward_jax.stages.unread import Watch, first_outputs
from selfreward_jax.stages.work import ModelRef, Work


def judge(
    work: Work,
    folder: str,
    model: ModelRef,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    must_score: bool = True,
    texts: bool = True,
) -> list[Judgement]:
    """Judges every answer `judge.samples` times, to `FOLDER/judgements.jsonl` in the answers' order.

    An answer whose judge prompt doesn't fit the model's context gets no judgement, and so can't be ranked.

    Args:
      must_score: whether the scores are needed to go on; else a judge that gives none is a result like any other.
      texts: whether the judgements' texts are wanted; see `load_rows`.

    Raises:
      UserError: no judgement has a score, or no answer fits; told as soon as it is known. What there is is kept.
    """
    c = work.config.judge
    template = JudgeTemplate(c.template)
    template.check_method(c.method)
    artefact = f"{folder}/judgements.jsonl"
    inputs = {
        "stage": "judge",
        **work.sampling_inputs(model),
        "responses": content_id([r.id for r in responses]),
        "template": content_id(template.text),
        "settings": c.to_dict(),
    }
    function = load_function(c.function) if c.method == "function" else None
    if function:
        inputs["function"] = source_hash(function)
    title = f"{model.title} judgements"
    if work.is_made(artefact, inputs):
        work.skip(title)
    elif function:
        _call_function(work, artefact, inputs, prompts, responses, function)
    else:
        _ask(work, artefact, inputs, model, prompts, responses, template, must_score)
    path = work.root / artefact
    judgements = load_rows(path, Judgement, texts=texts) if path.stat().length else []
    if must_score and responses and all(j.score is None for j in judgements):
        raise _no_score(model.title, read_jsonl(path) if judgements else [])
    return judgements


def _ask(
    work: Work,
    artefact: str,
    inputs: dict,
    model: ModelRef,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    template: JudgeTemplate,
    must_score: bool,
) -> None:
    """Judgements by a model."""
    c, title = work.config.judge, f"{model.title} judgements"
    chat, context = work.chat_of(model), work.context_of(model)
    asked = {p.id: p.messages for p in prompts}
    slot = None if c.method == "sampled" else ScoreSlot.of(chat)
    extra = slot.longest if slot else 0
    requests = judge_requests(chat, template, asked, responses, context - c.max_new_tokens - extra)
    if len(requests) < len(responses):
        say(f"{title}: {len(responses) - len(requests)} answers are too long to be judged in {context} tokens")
    if not requests:
        work.write(artefact, inputs, "")
    elif slot and not needs_sampling(c.method, c.rationale):
        to_row = functools.partial(_slot_row, model.hash, c.method)
        at_slot = slot_requests(requests, slot)
        read_artefact(work, artefact, inputs, model, at_slot, slot.candidates, to_row, "response_id", title)
    else:
        to_row = functools.partial(judgement_row, model.hash, c.method, template)
        settings, reading = judge_sampling(sampling_settings(c), slot)
        watch = Watch("score", functools.partial(_no_score, model.title)) if must_score else lambda row: None
        sample_artefact(
            work, artefact, inputs, model, requests, c.samples, settings, to_row, "response_id", title, reading, watch
        )


def _no_score(name: str, rows: Sequence[Row]) -> UserError:
    if not rows:
        return UserError(f"{name}: every answer is too long to be judged in its context.")
    return UserError(
        f"{name}: none of its {len(rows)} judgements has a score to read; they begin {first_outputs(rows)}. Use another"
        " template (config.judge.template=FILE) or judge, or config.judge.method=completion, which reads scores from"
        " its distribution."
    )


def check_judge(work: Work) -> None:
    """Finds what is wrong with the judge before hours of training, instead of after.

    Raises:
      UserError: a template without its places or with a scale that the method can't read, or a function that can't be
        imported.
    """
    c = work.config.judge
    JudgeTemplate(c.template).check_method(c.method)
    if c.method == "function":
        load_function(c.function)


def needs_sampling(method: str, rationale: bool) -> bool:
    """Whether a way of judging samples any text."""
    return method != "function" and (method != "expected" or rationale)


def scores_needed(section) -> int:
    """Judgements with a score that an answer needs to be ranked, from the `judge` section."""
    return section.min_parsed if needs_sampling(section.method, section.rationale) else 1


def judge_requests(
    chat: Chat,
    template: JudgeTemplate,
    asked: Mapping[str, Sequence[dict[str, str]]],
    responses: Sequence[Response],
    most_tokens: int,
) -> list[Request]:
    """What the judge is asked about each answer, for those whose question fits in `most_tokens`."""
    questions = chat.prompts_ids([template.messages(asked[r.prompt_id], r.text) for r in responses])
    requests = [Request(r.id, tuple(ids)) for r, ids in zip(responses, questions, strict=True)]
    return [request for request in requests if len(request.prompt_ids) <= most_tokens]


def judge_sampling(
    settings: SamplingSettings, slot: ScoreSlot | None, label: str = LABEL
) -> tuple[SamplingSettings, Reading | None]:
    """Settings for judgements; where the score is read, reasons end where the model itself begins to write it."""
    if slot is None:
        return settings, None
    stop = (*settings.stop, label)
    made = SamplingSettings(**{**settings.__dict__, "stop": stop})
    return made, Reading(slot.feed, slot.candidates, slot.longest)


SCORE_OF: dict[str, Callable[[Sequence[float]], float]] = {"completion": likeliest_score, "expected": expected_score}


def judgement_row(model_hash: str, method: str, template: JudgeTemplate, x: Completion) -> Judgement:
    """A judgement from its sample; its text ends in the score, however that came about."""
    if x.read is None:
        id = content_id(model_hash, x.request.id, x.index, x.text)
        return Judgement(id, x.request.id, x.index, x.text, sampled_score(template, x), x.stop_reason)
    return read_row(model_hash, method, x.request.id, x.index, x.text, x.stop_reason, x.read)


def sampled_score(template: JudgeTemplate, x: Completion) -> float | None:
    """The score that a sampled judgement gives.

    None too where the limit cut it within the line of its score: `Score: 1` may have become 10, or 1 out of 10.
    """
    score = template.parse_score(x.text)
    whole_lines = x.text[: x.text.rfind("\n") + 1]
    return None if x.stop_reason == "length" and template.parse_score(whole_lines) != score else score


def read_row(
    model_hash: str, method: str, response_id: str, index: int, reasons: str, stop_reason: str, logps: Sequence[float]
) -> Judgement:
    """A judgement whose score was read from the distribution."""
    probs = tuple(round(p, 6) for p in distribution(logps))
    score = round(SCORE_OF[method](probs), 4)
    text = f"{reasons.rstrip()}\n{LABEL} {score:g}".lstrip()
    id = content_id(model_hash, response_id, index, text)
    return Judgement(id, response_id, index, text, score, stop_reason, probs)


def _slot_row(model_hash: str, method: str, request: Request, logps: Sequence[float]) -> Judgement:
    return read_row(model_hash, method, request.id, 0, "", "read", logps)


def slot_requests(requests: Sequence[Request], slot: ScoreSlot) -> list[Request]:
    """Judge prompts that go on to where the score stands, with no reasons before it."""
    return [Request(r.id, (*r.prompt_ids, *slot.feed(""))) for r in requests]


def _call_function(
    work: Work,
    artefact: str,
    inputs: dict,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    function: JudgeFunction,
) -> None:
    """One judgement an answer, by a function instead of a model."""
    asked = {p.id: p.messages for p in prompts}
    rows = []
    for r in responses:
        rows.append(function_row(inputs["function"], function, asked[r.prompt_id], r))
        work.interrupt.check()
    work.write(artefact, inputs, to_lines(rows))


def function_row(
    source: str, function: JudgeFunction, prompt: tuple[dict[str, str], ...], response: Response
) -> Judgement:
    """The function's judgement of one answer; `source` is the hash of its text."""
    score = checked_score(function, prompt, response.text)
    text = "no score" if score is None else f"{LABEL} {score:g}"
    return Judgement(content_id(source, response.id, text), response.id, 0, text, score, "function")

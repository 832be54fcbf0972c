"""Judgements of answers by the model that gave them: several samples each, a score read from each (paper §2.3)."""

import functools
from collections.abc import Mapping, Sequence

from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Judgement, Prompt, Response, content_id, load_rows
from selfreward_jax.core.tokens import Chat
from selfreward_jax.engine.generate import Completion, Request
from selfreward_jax.methods.judging import JudgeTemplate, parse_score
from selfreward_jax.stages.run import ModelRef, Run
from selfreward_jax.stages.sampling import sample_artefact, sampling_settings


def judge(
    run: Run, folder: str, model: ModelRef, prompts: Sequence[Prompt], responses: Sequence[Response]
) -> list[Judgement]:
    """Samples `judge.samples` judgements of every answer, to `FOLDER/judgements.jsonl` in the answers' order.

    An answer whose judge prompt doesn't fit the model's context gets no judgement, and so can't be ranked.
    """
    c = run.config.judge
    template = JudgeTemplate(c.template)
    artefact = f"{folder}/judgements.jsonl"
    inputs = {
        "stage": "judge",
        "model": model.hash,
        "chat": run.chat_hashes(),
        "responses": content_id([r.id for r in responses]),
        "template": content_id(template.text),
        "settings": c.to_dict(),
        "generation": run.config.generation.to_dict(),
        "seed": run.config.seed,
    }
    title = f"{model.name.upper()} judgements"
    if run.is_made(artefact, inputs):
        run.skip(title)
        return load_rows(run.root / artefact, Judgement)

    chat, context = run.chat, run.context
    asked = {p.id: p.messages for p in prompts}
    requests = judge_requests(chat, template, asked, responses, context - c.max_new_tokens)
    if len(requests) < len(responses):
        say(f"{title}: {len(responses) - len(requests)} answers are too long to be judged in {context} tokens")
    to_row = functools.partial(judgement_row, model.hash)
    place = {r.id: n for n, r in enumerate(responses)}
    order = lambda row: (place[row["response_id"]], row["index"])  # noqa: E731
    settings = sampling_settings(c)
    sample_artefact(run, artefact, inputs, model, requests, c.samples, settings, to_row, order, title)
    return load_rows(run.root / artefact, Judgement)


def judge_requests(
    chat: Chat,
    template: JudgeTemplate,
    asked: Mapping[str, Sequence[dict[str, str]]],
    responses: Sequence[Response],
    most_tokens: int,
) -> list[Request]:
    """What the judge is asked about each answer, for those whose question fits in `most_tokens`."""
    requests = []
    for r in responses:
        ids = tuple(chat.prompt_ids(template.messages(asked[r.prompt_id], r.text)))
        if len(ids) <= most_tokens:
            requests.append(Request(r.id, ids))
    return requests


def judgement_row(model_hash: str, x: Completion) -> Judgement:
    id = content_id(model_hash, x.request.id, x.index, x.text)
    return Judgement(id, x.request.id, x.index, x.text, parse_score(x.text), x.stop_reason)

"""Candidate answers y: N samples of each prompt from the current model (paper §2.2)."""

import functools
from collections.abc import Sequence
from typing import Any

from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Prompt, Response, content_id, load_rows
from selfreward_jax.engine.generate import Completion, Request, check_requests
from selfreward_jax.stages.sampling import sample_artefact, sampling_settings
from selfreward_jax.stages.work import ModelRef, Work


def respond(work: Work, folder: str, model: ModelRef, prompts: Sequence[Prompt], section: Any = None) -> list[Response]:
    """Samples `respond.n` answers to every prompt, written to `FOLDER/responses.jsonl` in the prompts' order.

    Args:
      section: settings to use instead of the configuration's section `respond`.

    Raises:
      UserError: a prompt is too long for the model's context.
    """
    c = section or work.config.respond
    artefact = f"{folder}/responses.jsonl"
    inputs = {
        "stage": "respond",
        **work.sampling_inputs(model),
        "prompts": content_id([p.id for p in prompts]),
        "settings": c.to_dict(),
    }
    title = f"{model.title} answers"
    if work.is_made(artefact, inputs):
        work.skip(title)
        return load_rows(work.root / artefact, Response)

    chat, context = work.chat_of(model), work.context_of(model)
    asked = chat.prompts_ids([p.messages for p in prompts])
    requests = [Request(p.id, tuple(ids)) for p, ids in zip(prompts, asked, strict=True)]
    settings = sampling_settings(c)
    check_requests(requests, c.n, settings, context, "prompt")

    to_row = functools.partial(response_row, model.hash)
    sample_artefact(work, artefact, inputs, model, requests, c.n, settings, to_row, "prompt_id", title)
    responses = load_rows(work.root / artefact, Response)
    if cut := sum(r.stop_reason == "length" for r in responses):
        say(f"{title}: {cut} of {len(responses)} were cut by the limit of {c.max_new_tokens} tokens")
    return responses


def response_row(model_hash: str, x: Completion) -> Response:
    id = content_id(model_hash, x.request.id, x.index, x.token_ids)
    return Response(id, x.request.id, x.index, x.token_ids, x.text, x.stop_reason, x.logp)

"""Preference pairs from judged answers: highest against lowest score, everything left out counted (paper §2.3)."""

import collections
from collections.abc import Sequence

from selfreward_jax.core.rows import Judgement, Pair, Prompt, Response, Row, content_id, group_by, load_rows, to_lines
from selfreward_jax.core.tokens import Chat
from selfreward_jax.methods.answer_metrics import answer_metrics
from selfreward_jax.methods.pairing import PAIR_RULES, Drop, Scored, judgement_facts, positives, rank
from selfreward_jax.stages.judge import scores_needed
from selfreward_jax.stages.run import ModelRef, Run


def build_pairs(
    run: Run,
    t: int,
    model: ModelRef,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    judgements: Sequence[Judgement],
) -> list[Pair]:
    """The pairs from which M_t learns, at most one a prompt.

    Writes `pairs.jsonl`, `dropped.jsonl` (what was left out and why) and `positives.jsonl` (answers of score 5, for
    SFT on them) to `mT/`.
    """
    c = run.config
    artefact = f"m{t}/pairs.jsonl"
    reference = run.reference(t)
    inputs = {
        "stage": "pairs",
        "model": model.hash,
        "reference": reference.hash,
        "judgements": content_id([j.id for j in judgements]),
        "responses": content_id([r.id for r in responses]),
        "settings": c.pairs.to_dict(),
        "min_parsed": scores_needed(c.judge),
        "truncated": c.respond.truncated,
    }
    if run.is_made(artefact, inputs, f"m{t}/dropped.jsonl", f"m{t}/positives.jsonl") and run.has_logged(t):
        run.skip(f"M{t} pairs")
        return _load(run, artefact)

    pairs, drops, best = make_pairs(
        run.chat,
        prompts,
        responses,
        judgements,
        model=model,
        reference=reference,
        rule=c.pairs.rule,
        min_parsed=scores_needed(c.judge),
        min_margin=c.pairs.min_margin,
        keep_truncated=c.respond.truncated == "keep",
    )
    kept = {"pairs/kept": len(pairs), "pairs/positives": len(best)}
    reasons = collections.Counter(f"pairs/dropped_{d.reason}" for d in drops)
    run.write(f"m{t}/dropped.jsonl", inputs, to_lines(drops))
    run.write(f"m{t}/positives.jsonl", inputs, to_lines(best))
    counts = kept | dict(sorted(reasons.items()))
    run.log_iteration(t, answer_metrics(responses, judgements, min_parsed=scores_needed(c.judge)) | counts)
    run.write(artefact, inputs, to_lines(pairs), metrics=counts)
    return pairs


def make_pairs(
    chat: Chat,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    judgements: Sequence[Judgement],
    *,
    model: ModelRef,
    reference: ModelRef,
    rule: str,
    min_parsed: int,
    min_margin: float,
    keep_truncated: bool,
) -> tuple[list[Pair], list[Drop], list[Row]]:
    """Pairs, what was left out and why, and SFT rows of the answers with full score; see the configuration."""
    by_prompt = group_by(responses, lambda r: r.prompt_id)
    by_response = group_by(judgements, lambda j: j.response_id)
    pairs: list[Pair] = []
    drops: list[Drop] = []
    best: list[Row] = []
    asked = chat.prompts_ids([prompt.messages for prompt in prompts])
    for prompt, ids in zip(prompts, asked, strict=True):
        ranked, left_out = rank(
            by_prompt.get(prompt.id, []), by_response, min_parsed=min_parsed, keep_truncated=keep_truncated
        )
        drops += left_out
        prompt_ids = tuple(ids)
        best += [_positive(chat, prompt, prompt_ids, s, model) for s in positives(ranked)]
        picked = PAIR_RULES[rule](ranked, min_margin)
        if isinstance(picked, str):
            drops.append(Drop(prompt.id, None, picked))
        else:
            pairs.append(_pair(chat, prompt, prompt_ids, *picked, model, reference))
    return pairs, drops, best


def _load(run: Run, artefact: str) -> list[Pair]:
    path = run.root / artefact
    return load_rows(path, Pair) if path.stat().length else []


def _answer(scored: Scored) -> tuple[dict[str, str], ...]:
    return ({"role": "assistant", "content": scored.response.text},)


def trained_ids(chat: Chat, response: Response) -> tuple[int, ...]:
    """What an answer teaches: its tokens as sampled, and where a stop string ended it, the end of turn instead.

    Else the model would learn not to end there. One that the limit cut, if it is kept, has no end to learn.
    """
    return (*response.token_ids, chat.eos_ids[0]) if response.stop_reason == "stop" else response.token_ids


def _pair(
    chat: Chat,
    prompt: Prompt,
    prompt_ids: tuple[int, ...],
    chosen: Scored,
    rejected: Scored,
    model: ModelRef,
    reference: ModelRef,
) -> Pair:
    assert chosen.score is not None and rejected.score is not None
    return Pair(
        id=content_id(chosen.response.id, rejected.response.id, reference.hash),
        prompt_id=prompt.id,
        prompt=prompt.messages,
        chosen=_answer(chosen),
        rejected=_answer(rejected),
        score_chosen=chosen.score,
        score_rejected=rejected.score,
        margin=chosen.score - rejected.score,
        prompt_token_ids=prompt_ids,
        chosen_token_ids=trained_ids(chat, chosen.response),
        rejected_token_ids=trained_ids(chat, rejected.response),
        provenance={
            "model": model.name,
            "model_hash": model.hash,
            "reference": reference.name,
            "reference_hash": reference.hash,
            "chosen": judgement_facts(chosen),
            "rejected": judgement_facts(rejected),
        },
    )


def _positive(chat: Chat, prompt: Prompt, prompt_ids: tuple[int, ...], scored: Scored, model: ModelRef) -> Row:
    """An SFT row in TRL's prompt-completion columns."""
    return {
        "prompt": prompt.messages,
        "completion": _answer(scored),
        "score": scored.score,
        "prompt_token_ids": prompt_ids,
        "completion_token_ids": trained_ids(chat, scored.response),
        "provenance": {"model": model.name, "model_hash": model.hash, "answer": judgement_facts(scored)},
    }

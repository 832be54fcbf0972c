"""The reward that a model has learnt without words: log-probabilities of answers, against a reference's.

A model trained by DPO ranks answers by beta * (log pi(y|x) - log pi_ref(y|x)) (Rafailov et al. 2023, eq. 5; used to
choose pairs in DICE, arXiv 2406.09760). beta changes no order, so it is left out here.
"""

from collections.abc import Sequence

from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Prompt, Response, content_id, read_jsonl
from selfreward_jax.engine.score import plan_batches, score_batch
from selfreward_jax.stages.work import ModelRef, Work
from selfreward_jax.training.batches import Example


def answer_logps(
    work: Work, artefact: str, model: ModelRef, prompts: Sequence[Prompt], responses: Sequence[Response]
) -> dict[str, float]:
    """Summed log-probability of each answer with its end of turn, in nats, by the answer's id; kept as an artefact.

    Answers that don't fit the model's context have none.
    """
    chat, c, t = work.chat_of(model), work.config.generation, work.config.training
    inputs = {
        "stage": "answer_logps",
        "model": model.hash,
        "chat": chat.hashes,
        "responses": content_id([r.id for r in responses]),
        "rows": c.score_rows,
        "dtype": work.config.model.dtype,
        "training": {name: t[name] for name in ("length_bucket", "head_chunk", "attention")},
    }
    title = f"{model.title} log-probabilities"
    if work.is_made(artefact, inputs):
        work.skip(title)
        return _read(work, artefact)

    asked = {p.id: p.messages for p in prompts}
    ids = {r.id: chat.answer_ids(asked[r.prompt_id], r.text) for r in responses}
    examples = {id: Example(tuple(prompt_ids), tuple(response_ids)) for id, (prompt_ids, response_ids) in ids.items()}
    fitting = [r.id for r in responses if len(examples[r.id]) <= work.context_of(model)]
    if len(fitting) < len(responses):
        say(f"{title}: {len(responses) - len(fitting)} answers are too long for {work.context_of(model)} tokens")
    if not fitting:
        work.write(artefact, inputs, "")
        return {}
    place = {id: n for n, id in enumerate(fitting)}
    batches = plan_batches([examples[id] for id in fitting], c.score_rows)
    for n, done in work.todo(artefact, inputs, title, [len(b) for b in batches]):
        ids = [fitting[i] for i in batches[n]]
        batch = [examples[id] for id in ids]
        logps = score_batch(
            work.load(model),
            batch,
            rows=c.score_rows,
            bucket=t.length_bucket,
            head_chunk=t.head_chunk,
            attention=t.attention,
        )
        rows = [{"response_id": id, "logp": logp} for id, logp in zip(ids, logps, strict=True)]
        done(rows, sum(map(len, batch)))
    work.finish(artefact, inputs, lambda row: place[row["response_id"]])
    return _read(work, artefact)


def _read(work: Work, artefact: str) -> dict[str, float]:
    path = work.root / artefact
    return {row["response_id"]: row["logp"] for row in read_jsonl(path)} if path.read_text() else {}

"""Preference training on an iteration's own pairs: M_t from M_{t-1} (paper §2.3)."""

import dataclasses
from collections.abc import Sequence

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Pair, Row, content_id, read_jsonl
from selfreward_jax.engine.score import plan_batches, score_batch
from selfreward_jax.llama.load import MODEL_FILE
from selfreward_jax.stages.run import ModelRef, Run
from selfreward_jax.stages.sft import fit, seed_rows
from selfreward_jax.stages.training import train_model, training_inputs
from selfreward_jax.training.batches import Example, TrainRow
from selfreward_jax.training.objectives import DPO


def preference_train(run: Run, t: int, pairs: Sequence[Pair]) -> ModelRef:
    """M_t by DPO on the pairs, or by SFT on positives if `dpo.data` says so.

    The reference's log-probabilities are computed once, before training, so that only one model is in memory.

    Raises:
      UserError: there is no pair to learn from.
    """
    c = run.config.dpo
    init, reference = run.named(c.init_from, t), run.reference(t)
    title = f"M{t} DPO"
    if c.data == "positives":
        return _fit_positives(run, t, init)
    limit = min(c.max_length, run.context)
    rows, ids = [], []
    for pair in pairs:
        examples = tuple(
            Example(pair.prompt_token_ids, ids) for ids in (pair.chosen_token_ids, pair.rejected_token_ids)
        )
        if max(map(len, examples)) <= limit:
            rows.append(TrainRow(examples))
            ids.append(pair.id)
    facts = {"pairs": len(rows), "dropped_too_long": len(pairs) - len(rows)}
    if not rows:
        raise UserError(
            f"{run.root / f'm{t}' / 'pairs.jsonl'}: no pairs to learn from ({len(pairs)} before the length limit of"
            f" {limit} tokens); dropped.jsonl beside it says why. More prompts, candidates or judgements may help."
        )
    inputs = training_inputs(run, "dpo", c, rows, init) | {"reference": dataclasses.asdict(reference)}
    if run.is_made(f"m{t}/{MODEL_FILE}", inputs):
        run.skip(title)
        return run.ref(f"m{t}")
    if facts["dropped_too_long"]:
        say(f"{title}: {facts['dropped_too_long']} pairs exceed {limit} tokens and are left out")
    logps = reference_logps(run, t, reference, rows, ids)
    rows = [dataclasses.replace(row, reference=logps[id]) for row, id in zip(rows, ids, strict=True)]
    say(f"{title}: starts from {init.name.upper()}, reference {reference.name.upper()}, {len(rows)} pairs")
    return train_model(
        run, t, title, init, rows, DPO(c.beta, c.label_smoothing), c, inputs,
        reference=dataclasses.asdict(reference), data=facts,
    )  # fmt: skip


def reference_logps(
    run: Run, t: int, reference: ModelRef, rows: Sequence[TrainRow], ids: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Chosen and rejected log-probability of each pair under the reference, kept in `reference_logps.jsonl`."""
    artefact = f"m{t}/reference_logps.jsonl"
    c = run.config.generation
    examples = [e for row in rows for e in row.examples]
    inputs = {
        "stage": "reference_logps",
        "reference": dataclasses.asdict(reference),
        "pairs": content_id(list(ids)),
        "rows": c.score_rows,
        "dtype": run.config.model.dtype,
        "training": run.config.training.to_dict(),
    }
    if not run.is_made(artefact, inputs):
        batches = plan_batches(examples, c.score_rows)
        for n, done in run.todo(artefact, inputs, f"{reference.name.upper()} reference", [len(b) for b in batches]):
            batch = [examples[i] for i in batches[n]]
            logps = score_batch(
                run.load(reference),
                batch,
                rows=c.score_rows,
                bucket=run.config.training.length_bucket,
                head_chunk=run.config.training.head_chunk,
            )
            sides = ("chosen", "rejected")
            scored = [
                {"place": i, "pair_id": ids[i // 2], "side": sides[i % 2], "logp": logp}
                for i, logp in zip(batches[n], logps, strict=True)
            ]
            done(scored, sum(map(len, batch)))
        run.finish(artefact, inputs, lambda row: row["place"])
    found: dict[str, dict[str, float]] = {}
    for row in read_jsonl(run.root / artefact):
        found.setdefault(row["pair_id"], {})[row["side"]] = row["logp"]
    return {id: (sides["chosen"], sides["rejected"]) for id, sides in found.items()}


def _fit_positives(run: Run, t: int, init: ModelRef) -> ModelRef:
    """The paper's comparison (appendix A.4): SFT on the seeds together with answers of full score."""
    rows, facts = seed_rows(run)
    path = run.root / f"m{t}" / "positives.jsonl"
    limit = min(run.config.sft.max_length, run.context)
    best = [_positive(row) for row in (read_jsonl(path) if path.read_text().strip() else [])]
    fitting = [TrainRow((e,)) for e in best if len(e) <= limit]
    facts |= {"positives": len(fitting), "positives_dropped_too_long": len(best) - len(fitting)}
    return fit(run, t, f"M{t} SFT on positives", init, [*rows, *fitting], facts)


def _positive(row: Row) -> Example:
    return Example(tuple(row["prompt_token_ids"]), tuple(row["completion_token_ids"]))

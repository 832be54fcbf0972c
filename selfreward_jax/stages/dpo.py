"""Preference training on an iteration's own pairs: M_t from M_{t-1} (paper §2.3)."""

import dataclasses
from collections.abc import Sequence

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.losses import loss_settings
from selfreward_jax.core.progress import say
from selfreward_jax.core.readers import read_rows
from selfreward_jax.core.rows import Pair, Row, content_id, read_jsonl
from selfreward_jax.engine.score import plan_batches, score_batch
from selfreward_jax.stages.run import ModelRef, Run
from selfreward_jax.stages.sft import fit, seed_rows
from selfreward_jax.stages.training import is_trained, train_model, training_inputs
from selfreward_jax.training.batches import Example, TrainRow
from selfreward_jax.training.objectives import make_objective
from selfreward_jax.training.preferences import Labelled, Prepared, Single, given, preference_rows

OWN = ("pairs", "positives")  # as `dpo.data`: what the iteration made itself; else a file


def given_preferences(run: Run) -> list[Pair | Single]:
    """The preferences of the file that `dpo.data` names; none where each iteration makes its own.

    Raises:
      UserError: there is no such file, a row of it is wrong, or the loss can't learn from them.
    """
    data = run.config.dpo.data
    if data in OWN:
        return []
    preferences = read_rows(data, lambda row: given(row, run.chat), "preferences")
    _prepared(run, preferences, data)  # what is wrong shows before hours of training, not after them
    return preferences


def _prepared(run: Run, preferences: Sequence[Pair | Single], where: str) -> Prepared:
    """Raises `UserError` if there is nothing to learn from, or not with this loss."""
    c = run.config.dpo
    limit = min(c.max_length, run.context)
    prepared = preference_rows(preferences, loss_settings(c), limit, where)
    if not prepared.rows:
        left_out = prepared.left_out(limit) or "none"
        why = "; dropped.jsonl beside it says why. More prompts, candidates or judgements may help."
        raise UserError(f"{where}: no pairs to learn from; there are {left_out}{why if c.data in OWN else '.'}")
    return prepared


def preference_train(run: Run, t: int, pairs: Sequence[Pair | Single]) -> ModelRef:
    """M_t by DPO or another loss (`dpo.loss_type`) on the pairs, or by SFT on positives if `dpo.data` says so.

    The reference's log-probabilities are computed once, before training, so that only one model is in memory; not at
    all if no loss needs them.

    Raises:
      UserError: there is no pair to learn from, or the loss can't learn from these.
    """
    c = run.config.dpo
    init, title = run.named(c.init_from, t), f"M{t} DPO"
    if c.data == "positives":
        return _fit_positives(run, t, init)
    losses = loss_settings(c)
    reference = run.reference(t) if losses.needs_reference else None
    limit = min(c.max_length, run.context)
    path = str(run.root / f"m{t}" / "pairs.jsonl") if c.data in OWN else c.data
    prepared = _prepared(run, pairs, path)
    left_out = prepared.left_out(limit)
    kept = len(pairs) - prepared.too_long - prepared.equal
    facts = {"pairs": kept, "dropped_too_long": prepared.too_long, "dropped_equal": prepared.equal}
    labelled = prepared.rows
    rows = [x.row for x in labelled]
    frozen = {"reference": dataclasses.asdict(reference) if reference else None}
    inputs = training_inputs(run, "dpo", c, rows, init) | frozen
    if is_trained(run, t, title, inputs):
        if reference and run.manifest.changed(f"m{t}/reference_logps.jsonl"):
            reference_logps(run, t, reference, labelled, losses.ld_alpha)
        return run.ref(f"m{t}")
    if left_out:
        say(f"{title}: {left_out} of {len(pairs)} left out")
    if reference:
        rows = reference_logps(run, t, reference, labelled, losses.ld_alpha)
    against = f"reference {reference.name.upper()}" if reference else "no reference"
    say(f"{title}: {', '.join(losses.loss_type)}, starts from {init.name.upper()}, {against}, {len(rows)} rows")
    asked = {pair.prompt_token_ids: pair.prompt for pair in pairs}
    return train_model(run, t, title, init, rows, make_objective(losses), c, inputs, asked, **frozen, data=facts)


def reference_logps(
    run: Run, t: int, reference: ModelRef, labelled: Sequence[Labelled], ld_alpha: float
) -> list[TrainRow]:
    """The rows with their log-probabilities under the reference, which are kept in `reference_logps.jsonl`."""
    artefact = f"m{t}/reference_logps.jsonl"
    c = run.config.generation
    examples = [e for x in labelled for e in x.row.examples]
    labels = [label for x in labelled for label in x.labels]
    starts = [x.tail_start for x in labelled for _ in x.labels]
    inputs = {
        "stage": "reference_logps",
        "reference": dataclasses.asdict(reference),
        "examples": content_id([labels, [[e.prompt_ids, e.response_ids] for e in examples]]),
        "rows": c.score_rows,
        "dtype": run.config.model.dtype,
        "training": {name: run.config.training[name] for name in ("length_bucket", "head_chunk", "attention")},
        "ld_alpha": ld_alpha,
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
                attention=run.config.training.attention,
                tail_starts=[starts[i] for i in batches[n]] if ld_alpha != 1 else None,
                tail_weight=ld_alpha,
            )
            scored = [
                {"place": i, "pair_id": labels[i][0], "side": labels[i][1], "logp": logp}
                for i, logp in zip(batches[n], logps, strict=True)
            ]
            done(scored, sum(map(len, batch)))
        run.finish(artefact, inputs, lambda row: row["place"])
    found = iter([row["logp"] for row in read_jsonl(run.root / artefact)])
    return [dataclasses.replace(x.row, reference=tuple(next(found) for _ in x.labels)) for x in labelled]


def _fit_positives(run: Run, t: int, init: ModelRef) -> ModelRef:
    """The paper's comparison (appendix A.4): SFT on the seeds together with answers of full score."""
    rows, asked, facts = seed_rows(run)
    path = run.intact(f"m{t}/positives.jsonl")
    limit = min(run.config.sft.max_length, run.context)
    positives = read_jsonl(path) if path.read_text().strip() else []
    asked |= {tuple(row["prompt_token_ids"]): tuple(row["prompt"]) for row in positives}
    best = [_positive(row) for row in positives]
    fitting = [TrainRow((e,)) for e in best if len(e) <= limit]
    facts |= {"positives": len(fitting), "positives_dropped_too_long": len(best) - len(fitting)}
    return fit(run, t, f"M{t} SFT on positives", init, [*rows, *fitting], asked, facts)


def _positive(row: Row) -> Example:
    return Example(tuple(row["prompt_token_ids"]), tuple(row["completion_token_ids"]))

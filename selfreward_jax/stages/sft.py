"""Supervised fine-tuning of M0 on instruction following and evaluation following data: M1 (paper §2.1)."""

from collections.abc import Sequence

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.forms import Demonstration
from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Messages, draw
from selfreward_jax.core.seeds import load_eft, load_ift
from selfreward_jax.core.tokens import renderable
from selfreward_jax.methods.judging import JudgeTemplate
from selfreward_jax.methods.score_forms import FIVE
from selfreward_jax.stages.choice import Asked
from selfreward_jax.stages.run import ModelRef, Run
from selfreward_jax.stages.training import is_trained, train_model, training_inputs
from selfreward_jax.training.batches import Example, TrainRow
from selfreward_jax.training.objectives import SFT


def supervised_fine_tune(run: Run) -> ModelRef:
    """M1 from M0 on IFT and EFT together, loss on response tokens only."""
    rows, asked, facts = seed_rows(run)
    return fit(run, 1, "M1 SFT", run.ref("m0"), rows, asked, facts)


def fit(run: Run, t: int, title: str, init: ModelRef, rows: Sequence[TrainRow], asked: Asked, facts: dict) -> ModelRef:
    """SFT of `init` on the rows, with the configuration's `sft` section, as M_t."""
    inputs = training_inputs(run, "sft", run.config.sft, rows, init)
    if is_trained(run, t, title, inputs):
        return run.ref(f"m{t}")
    return train_model(run, t, title, init, rows, SFT(), run.config.sft, inputs, asked, data=facts)


def seed_rows(run: Run) -> tuple[list[TrainRow], dict[tuple[int, ...], Messages], dict[str, int]]:
    """IFT and EFT as token ids, the requests of IFT, and how many rows there are and were dropped for their length.

    Raises:
      UserError: a seed file is wrong, or every row is too long.
    """
    c = run.config
    template = JudgeTemplate(c.judge.template)
    sets = {"ift": load_ift(c.seeds.ift, renderable(run.chat))}
    if c.seeds.eft:
        if c.seeds.eft == "builtin" and template.scale != FIVE:
            raise UserError(
                f"config.seeds.eft: builtin judges from 0 to 5, and the judge's template declares {template.scale};"
                " give judgements on that scale (config.seeds.eft=FILE), or none."
            )
        sets["eft"] = load_eft(c.seeds.eft, template.messages, template.parse_score, renderable(run.chat))
    rows: list[TrainRow] = []
    asked: dict[tuple[int, ...], Messages] = {}
    facts: dict[str, int] = {}
    limit = min(c.sft.max_length, run.context)
    for name, demonstrations in sets.items():
        chosen = draw(demonstrations, c.seeds.max_rows, c.seed)
        examples = [tokenise(run, d) for d in chosen]
        if name == "ift":  # what is asked in EFT is a judgement
            asked = {e.prompt_ids: d.messages for e, d in zip(examples, chosen, strict=True)}
        fitting = [e for e in examples if len(e) <= limit]
        facts |= {f"{name}_rows": len(fitting), f"{name}_dropped_too_long": len(examples) - len(fitting)}
        rows += [TrainRow((e,)) for e in fitting]
        if len(fitting) < len(examples):
            say(f"M1 SFT: {len(examples) - len(fitting)} {name.upper()} rows exceed {limit} tokens and are left out")
    if not rows:
        raise UserError(f"config.sft.max_length: all seed rows exceed {limit} tokens; raise it.")
    return rows, asked, facts


def tokenise(run: Run, demonstration: Demonstration) -> Example:
    prompt_ids, response_ids = run.chat.answer_ids(demonstration.messages, demonstration.response)
    return Example(tuple(prompt_ids), tuple(response_ids))

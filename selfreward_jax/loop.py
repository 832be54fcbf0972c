"""The algorithm of Self-Rewarding Language Models (arXiv 2401.10020), whole, on one screen."""

from selfreward_jax.core.rows import Pair, Prompt, load_rows
from selfreward_jax.stages.dpo import given_preferences, preference_train
from selfreward_jax.stages.judge import check_judge, judge
from selfreward_jax.stages.pairs import build_pairs
from selfreward_jax.stages.prompts import check_prompt_file, create_prompts
from selfreward_jax.stages.respond import respond
from selfreward_jax.stages.run import ModelRef, Run
from selfreward_jax.stages.sft import supervised_fine_tune


def self_reward(run: Run) -> ModelRef:
    """M0 → M1 by SFT on the seeds; then M_t → M_{t+1} by DPO on pairs that M_t answered and judged itself."""
    run.base()
    given = given_preferences(run)  # instead of its own, if the configuration names any
    if not given:
        check_prompt_file(run)
        check_judge(run)
    model = supervised_fine_tune(run)
    for t in range(2, run.config.loop.iterations + 1):
        model = preference_train(run, t, given or own_pairs(run, t, model))
    if run.config.loop.score_last and not given:
        score_last(run, model)
    return model


def own_pairs(run: Run, t: int, model: ModelRef) -> list[Pair]:
    """What M_t learns from: answers of the model before it, judged by itself."""
    prompts = create_prompts(run, t, model)
    responses = respond(run, f"m{t}", model, prompts)
    judgements = judge(run, f"m{t}", run.grader(model), prompts, responses, texts=False)
    return build_pairs(run, t, model, prompts, responses, judgements)


def score_last(run: Run, model: ModelRef) -> None:
    """The last model answers and judges the last iteration's prompts, as its predecessor did."""
    t = run.config.loop.iterations
    if t < 2:
        return
    prompts = load_rows(run.intact(f"m{t}/prompts.jsonl"), Prompt)
    responses = respond(run, f"m{t}/eval", model, prompts)
    judge(run, f"m{t}/eval", run.grader(model), prompts, responses, must_score=False, texts=False)

"""What `respond` and `judge` share: requests to a model of the run, sampled batch by batch into an artefact."""

from collections.abc import Callable, Sequence
from typing import Any

from selfreward_jax.core.rows import Row
from selfreward_jax.engine.generate import Completion, Request, SamplingSettings, generate_batch, plan_batches
from selfreward_jax.stages.run import ModelRef, Run


def sampling_settings(section) -> SamplingSettings:
    """From a section of the configuration."""
    return SamplingSettings(section.temperature, section.top_p, section.max_new_tokens)


def sample_artefact(
    run: Run,
    artefact: str,
    inputs: dict[str, Any],
    ref: ModelRef,
    requests: Sequence[Request],
    samples: int,
    settings: SamplingSettings,
    to_row: Callable[[Completion], Any],
    order: Callable[[Row], Any],
    title: str,
) -> None:
    """Samples every request `samples` times and writes the rows, sorted by `order`, as one artefact."""
    generation = run.config.generation
    batches = plan_batches(requests, samples, generation.rows)
    for n, done in run.todo(artefact, inputs, title, [samples * len(batch) for batch in batches]):
        completions = generate_batch(
            run.load(ref),
            batches[n],
            samples,
            settings,
            seed=run.config.seed,
            size=len(batches[0]),
            bucket=generation.length_bucket,
            purpose=f"{artefact}\0{ref.hash}",
        )
        done([to_row(c) for c in completions], sum(len(c.token_ids) for c in completions))
    run.finish(artefact, inputs, order)

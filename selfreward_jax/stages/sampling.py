"""What `respond` and `judge` share: requests to a model, sampled into an artefact as they finish."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Row
from selfreward_jax.engine.generate import Completion, Engine, Reading, Request
from selfreward_jax.engine.sampling import SamplingSettings
from selfreward_jax.stages.work import ModelRef, Work


def sampling_settings(section, stop: tuple[str, ...] = ()) -> SamplingSettings:
    """From a section of the configuration."""
    return SamplingSettings(
        float(section.temperature),
        float(section.top_p),
        section.max_new_tokens,
        section.top_k,
        float(section.min_p),
        section.get("min_new_tokens", 0),
        stop or tuple(section.get("stop", ())),
    )


def sample_artefact(
    work: Work,
    artefact: str,
    inputs: dict[str, Any],
    ref: ModelRef,
    requests: Sequence[Request],
    samples: int,
    settings: SamplingSettings,
    to_row: Callable[[Completion], Any],
    identify: str,
    title: str,
    reading: Reading | None = None,
    watch: Callable[[Row], None] = lambda row: None,
) -> None:
    """Samples every request `samples` times and writes the rows, in the requests' order, as one artefact.

    Args:
      identify: the field of a row that holds its request's id; `index` holds the sample's number.
      watch: sees every row once it is kept, those of an earlier session first; may raise to end the work.
    """
    place = {r.id: n for n, r in enumerate(requests)}
    with work.growing(artefact, inputs, title, samples * len(requests)) as rows:
        for row in rows.before:
            watch(row)
        done = {(row[identify], row["index"]) for row in rows.before}
        if len(done) < samples * len(requests):
            engine = work.engine(ref)
            before = dict(engine.counters)
            purpose = f"{artefact}\0{ref.hash}"
            with work.tracer(artefact) as engine.tracer:
                for made in engine.run(
                    requests, samples, settings, seed=work.config.seed, purpose=purpose, done=done, reading=reading
                ):
                    row = to_row(made)
                    rows.add(row, made.drawn, slots_in_use(engine))
                    watch(row if isinstance(row, dict) else dataclasses.asdict(row))
            report(title, engine, before)
    work.finish(artefact, inputs, lambda row: (place[row[identify]], row["index"]))


def read_artefact(
    work: Work,
    artefact: str,
    inputs: dict[str, Any],
    ref: ModelRef,
    requests: Sequence[Request],
    candidates: tuple[int, ...],
    to_row: Callable[[Request, Sequence[float]], Any],
    identify: str,
    title: str,
) -> None:
    """Reads how probable each candidate is after every request, a row each, without sampling."""
    place = {r.id: n for n, r in enumerate(requests)}
    with work.growing(artefact, inputs, title, len(requests)) as rows:
        done = {row[identify] for row in rows.before}
        if len(done) < len(requests):
            engine = work.engine(ref)
            before = dict(engine.counters)
            with work.tracer(artefact) as engine.tracer:
                for request, logps in engine.read(requests, candidates, done=done):
                    rows.add(to_row(request, logps), len(request.prompt_ids))
            report(title, engine, before)
    work.finish(artefact, inputs, lambda row: place[row[identify]])


def slots_in_use(engine: Engine) -> str:
    used, all_slots = engine.in_use
    return f"{used}/{all_slots} slots" if all_slots else ""


def report(title: str, engine: Engine, before: dict[str, int]) -> None:
    """A line on what the work cost, and on what sharing saved."""
    counters = {name: count - before.get(name, 0) for name, count in engine.counters.items()}
    computed, shared = counters["gen/prefill_tokens_computed"], counters["gen/prefill_tokens_shared"]
    steps, slots = counters.get("gen/decode_steps", 0), engine.in_use[1]
    busy = counters.get("gen/slot_steps", 0) / (steps * slots) if steps and slots else 1.0
    say(
        f"{title}: {counters.get('gen/tokens', 0)} tokens in {steps} steps, {busy:.0%} of slots in use;"
        f" {computed} prompt tokens computed, {shared} shared ({shared / max(computed + shared, 1):.0%})"
    )

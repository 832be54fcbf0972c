"""AdamW with warm-up, a cosine to a floor and global-norm clipping, from optax."""

import dataclasses

import optax

from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.lora import LoraSettings, trained_specs
from selfreward_jax.llama.params import map_specs


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Hashable, so that it can be static under `jax.jit`. Rates are per step; `steps` is the whole training."""

    learning_rate: float
    final_learning_rate: float
    warmup_steps: int
    steps: int
    weight_decay: float = 0.0
    adam_b1: float = 0.9
    adam_b2: float = 0.95
    adam_eps: float = 1e-8
    clip_norm: float = 1.0


def schedule(settings: OptimizerSettings) -> optax.Schedule:
    """Learning rate at a step (from 0): linear warm-up, then a cosine that reaches the floor at the last step."""
    decay_steps = max(settings.steps - 1, settings.warmup_steps + 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=settings.learning_rate / (settings.warmup_steps + 1),
        peak_value=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        decay_steps=decay_steps,
        end_value=settings.final_learning_rate,
    )


def make_optimizer(
    config: LlamaConfig, settings: OptimizerSettings, lora: LoraSettings | None = None
) -> optax.GradientTransformation:
    """Decay applies to matrices only, not to norms and biases."""
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()
    decayed = map_specs(lambda spec: spec.kind == "matrix", trained_specs(config, lora))
    adamw = optax.adamw(
        schedule(settings),
        b1=settings.adam_b1,
        b2=settings.adam_b2,
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
        mask=decayed,
    )
    return optax.chain(clip, adamw)

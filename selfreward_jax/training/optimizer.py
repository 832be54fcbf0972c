"""The optimiser, its learning rate's course, and how its state is laid out; from optax."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from selfreward_jax.core.mesh import replicated
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.lora import LoraSettings, trained_specs
from selfreward_jax.llama.params import Params, ParamSpec, is_spec, map_specs
from selfreward_jax.training.moments import scale_by_adam

FACTORED_RMS_CLIP = 1.0  # Adafactor's bound on an update's root mean square, its paper's value


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
    schedule: str = "cosine"
    optimizer: str = "adamw"
    moments_dtype: str = "float32"
    ema_decay: float = 0.0


def schedule(settings: OptimizerSettings) -> optax.Schedule:
    """Learning rate at a step (from 0): linear warm-up, then a course that reaches the floor at the last step."""
    s = settings
    start = s.learning_rate / (s.warmup_steps + 1)
    decay_steps = max(s.steps - 1, s.warmup_steps + 1)
    if s.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            start, s.learning_rate, s.warmup_steps, decay_steps, s.final_learning_rate
        )
    if s.schedule == "linear":
        course = optax.linear_schedule(s.learning_rate, s.final_learning_rate, decay_steps - s.warmup_steps)
    else:
        course = optax.constant_schedule(s.learning_rate)
    if not s.warmup_steps:
        return course
    return optax.join_schedules(
        [optax.linear_schedule(start, s.learning_rate, s.warmup_steps), course], [s.warmup_steps]
    )


def make_optimizer(
    config: LlamaConfig, settings: OptimizerSettings, lora: LoraSettings | None = None
) -> optax.GradientTransformation:
    """The direction of a step; the rate is left to the caller, who knows the step. Decay applies to matrices only.

    `adamw` is Loshchilov and Hutter's (arXiv 1711.05101). `adafactor` (Shazeer and Stern, arXiv 1804.04235) keeps
    the second moment of a matrix as row and column means and no first one; rates are absolute as AdamW's, not relative
    to the weights, and decay is AdamW's too.
    """
    s, specs = settings, trained_specs(config, lora)
    clip = optax.clip_by_global_norm(s.clip_norm) if s.clip_norm else optax.identity()
    if s.optimizer == "adafactor":
        adafactor = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(FACTORED_RMS_CLIP))
        direction = per_matrix(adafactor, specs)
    else:
        direction = scale_by_adam(s.adam_b1, s.adam_b2, s.adam_eps, s.moments_dtype)
    decayed = map_specs(lambda spec: spec.kind == "matrix", specs)
    return optax.chain(clip, direction, optax.add_decayed_weights(s.weight_decay, mask=decayed))


def per_matrix(rule: optax.GradientTransformation, specs) -> optax.GradientTransformation:
    """A rule that acts on each tensor by itself, on those that a model's file has: a matrix or vector of each layer.

    Here a layer's are stacked with those of the others, and an axis of heads is split in two.
    """
    by_name = {_names(path): s for path, s in jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)}
    axes = map_specs(lambda spec: 0 if spec.stacked else None, specs)

    def split(tree):
        return jax.tree.map(lambda spec, x: x.reshape(matrix_shape(spec, x.shape)), specs, tree, is_leaf=is_spec)

    def state_axes(state):
        axis = lambda path, _: 0 if (spec := by_name.get(_names(path))) and spec.stacked else None  # noqa: E731
        return jax.tree_util.tree_map_with_path(axis, state)

    def init(params):
        matrices = split(params)
        one = jax.tree.map(lambda s, x: jnp.zeros(x.shape[s.stacked :], x.dtype), specs, matrices, is_leaf=is_spec)
        made = state_axes(jax.eval_shape(rule.init, one))
        return jax.vmap(rule.init, (axes,), made)(matrices)

    def update(updates, state, params=None):
        kept = state_axes(state)
        acted = jax.vmap(rule.update, (axes, kept, axes), (axes, kept))
        directions, state = acted(split(updates), state, split(params))
        return jax.tree.map(lambda x, like: x.reshape(like.shape), directions, updates), state

    return optax.GradientTransformation(init, update)


def matrix_shape(spec: ParamSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a stack [L, inputs, outputs], [L, size], or of one tensor, of a weight of `shape`."""
    return tuple(math.prod(shape[n] for n in group) for group in _matrix_axes(spec))


def _matrix_axes(spec: ParamSpec) -> list[range]:
    """Which axes of a weight make up each axis of its (stacked) matrices or vectors."""
    first = int(spec.stacked)
    cut, last = first + spec.inputs, first + len(spec.shape)
    bounds = (first, cut, last) if spec.kind == "matrix" else (first, last)
    return [range(n) for n in [first] if n] + [range(a, b) for a, b in itertools.pairwise(bounds)]


def state_shardings(optimizer: optax.GradientTransformation, params: Params, specs):
    """A sharding for every array of the optimiser's state: those that go with a weight are laid out like it.

    Args:
      specs: the tree of `ParamSpec`s of `params`.
    """
    weights = {_names(path): weight for path, weight in jax.tree_util.tree_leaves_with_path(params)}
    by_name = {_names(path): s for path, s in jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)}
    some = jax.tree.leaves(params)[0].sharding
    whole = replicated(some.mesh) if isinstance(some, NamedSharding) else some

    def one(path, x):
        weight = weights.get(_names(path))
        if weight is None:
            return whole
        shape, sharding = weight.shape, weight.sharding
        if len(x.shape) != len(shape) and isinstance(sharding, NamedSharding):  # of matrices, see `per_matrix`
            spec = by_name[_names(path)]
            split = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
            merged = (split[group[0]] for group in _matrix_axes(spec))
            shape, sharding = matrix_shape(spec, shape), NamedSharding(sharding.mesh, PartitionSpec(*merged))
        return sharding_beside(x.shape, shape, sharding)

    return jax.tree_util.tree_map_with_path(one, jax.eval_shape(optimizer.init, params))


def _names(path) -> tuple[str, ...]:
    """Of the weight that an array goes with: the tree of weights is all dicts, the state around it is not."""
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def sharding_beside(shape: tuple[int, ...], weight_shape: tuple[int, ...], sharding):
    """Splits an array along the axes that it shares with a weight, as the weight is, where they still divide.

    The array has the weight's axes, perhaps in other sizes (a scale per block), or all but one (a mean over it);
    anything else is whole on each device.
    """
    if not isinstance(sharding, NamedSharding):
        return sharding
    axes = [*sharding.spec, *[None] * (len(weight_shape) - len(sharding.spec))]
    if len(shape) == len(weight_shape) - 1:
        without = (n for n in range(len(weight_shape)) if weight_shape[:n] + weight_shape[n + 1 :] == shape)
        dropped = next(without, None)
        if dropped is not None:
            del axes[dropped]
    if len(shape) != len(axes):
        return replicated(sharding.mesh)

    def ways(axis) -> int:
        names = (axis,) if isinstance(axis, str) else axis or ()
        return math.prod(sharding.mesh.shape[name] for name in names)

    return NamedSharding(
        sharding.mesh,
        PartitionSpec(*(axis if size % ways(axis) == 0 else None for axis, size in zip(axes, shape, strict=True))),
    )

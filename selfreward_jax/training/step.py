"""The jitted pieces of a training step: gradients of a micro-batch added to a sum, and one update from the sum.

Each micro-batch contributes its share of the whole batch's loss and metrics (see `objectives.Objective`), so
accumulating is exact however the rows are split.
"""

import dataclasses
import functools
from typing import cast

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding

from selfreward_jax.core.mesh import constrain_rows, replicated
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.load import shardings
from selfreward_jax.llama.params import Params
from selfreward_jax.training.batches import Batch
from selfreward_jax.training.logps import response_logps
from selfreward_jax.training.objectives import Counts, Objective, RowArrays
from selfreward_jax.training.optimizer import OptimizerSettings, make_optimizer, schedule


@struct.dataclass
class TrainState:
    """What a checkpoint holds: updates done so far, weights, optimiser state."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class ForwardSettings:
    """How log-probabilities are computed; static under jit."""

    dtype: str
    head_chunk: int
    remat: bool
    dropout: float


def _losses(
    params: Params,
    config: LlamaConfig,
    objective: Objective,
    settings: ForwardSettings,
    batch: Batch,
    rows: RowArrays,
    counts: Counts,
    key: jax.Array | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A micro-batch's share of the loss, and its shares of the loss and the metrics."""
    logps_B = response_logps(
        config,
        params,
        batch,
        dtype=jnp.dtype(settings.dtype),
        head_chunk=settings.head_chunk,
        remat=settings.remat,
        dropout_rate=settings.dropout,
        dropout_key=key if settings.dropout > 0 else None,
        constrain=constrain_rows,
    )
    loss, metrics = objective.loss(logps_B.reshape(rows.lengths.shape), rows, counts)
    return loss, {"loss": loss, **metrics}


@functools.partial(jax.jit, static_argnames=("config", "objective", "settings"))
def gradients(
    config: LlamaConfig,
    objective: Objective,
    settings: ForwardSettings,
    params: Params,
    batch: Batch,
    rows: RowArrays,
    counts: Counts,
    key: jax.Array,
) -> tuple[Params, dict[str, jax.Array]]:
    """Gradient of a micro-batch's share of the loss, and its shares of the loss and the metrics.

    Args:
      batch: the first examples of all rows, then the second ones, and so on.
      rows: what else the objective needs to know of them.
      counts: of the whole batch, from `objective.counts`.
      key: of the dropout.
    """
    grads, shares = jax.grad(_losses, has_aux=True)(params, config, objective, settings, batch, rows, counts, key)
    return constrain_params(config, grads), shares


@functools.partial(jax.jit, static_argnames=("config", "objective", "settings"))
def losses(
    config: LlamaConfig,
    objective: Objective,
    settings: ForwardSettings,
    params: Params,
    batch: Batch,
    rows: RowArrays,
    counts: Counts,
) -> dict[str, jax.Array]:
    """The shares that `gradients` gives beside the gradient, without dropout: for rows that are not trained on."""
    still = dataclasses.replace(settings, dropout=0.0, remat=False)
    return _losses(params, config, objective, still, batch, rows, counts, None)[1]


def constrain_params(config: LlamaConfig, tree: Params) -> Params:
    """Lays a tree out like the weights under `jax.set_mesh`: left alone, the compiler keeps gradients whole."""
    mesh = jax.sharding.get_abstract_mesh()
    return tree if mesh.empty else jax.lax.with_sharding_constraint(tree, shardings(config, mesh))


@functools.partial(jax.jit, donate_argnums=0)
def add(total, more):
    return jax.tree.map(jnp.add, total, more)


@functools.partial(jax.jit, static_argnames=("config", "settings"), donate_argnums=2)
def update(
    config: LlamaConfig, settings: OptimizerSettings, state: TrainState, grads: Params
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimiser step. Returns the new state, the gradient's norm before clipping, and the learning rate."""
    optimizer = make_optimizer(config, settings)
    metrics = {"grad_norm": optax.global_norm(grads), "learning_rate": schedule(settings)(state.step)}
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = cast(Params, optax.apply_updates(state.params, updates))
    return TrainState(state.step + 1, params, opt_state), metrics


def init_state(config: LlamaConfig, settings: OptimizerSettings, params: Params) -> TrainState:
    """Step 0; the optimiser's moments are laid out like the weights, which the compiler would not do by itself."""
    optimizer = make_optimizer(config, settings)
    beside = params["norm"].sharding
    layout = optax.tree.map_params(
        optimizer,
        lambda _, weight: weight.sharding,
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda _: replicated(beside.mesh) if isinstance(beside, NamedSharding) else beside,
    )
    return TrainState(jnp.int32(0), params, jax.jit(optimizer.init, out_shardings=layout)(params))

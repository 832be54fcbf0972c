"""The jitted pieces of a training step: gradients of a micro-batch added to a sum, and one update from the sum.

Each micro-batch contributes sums that are divided by the whole batch's count (tokens for SFT, pairs for DPO), so
accumulating is exact however the rows are split.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import struct

from selfreward_jax.core.mesh import constrain_rows
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.load import shardings
from selfreward_jax.llama.params import Params
from selfreward_jax.training import ema
from selfreward_jax.training.batches import Batch, TrainRow
from selfreward_jax.training.logps import response_logps
from selfreward_jax.training.objectives import PairLogps, dpo_loss
from selfreward_jax.training.optimizer import OptimizerSettings, make_optimizer, schedule, state_shardings


@struct.dataclass
class TrainState:
    """What training changes: steps done so far, weights, optimiser state, and the weights' average if there is one."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    ema: Params | None = None

    @property
    def trained(self) -> Params:
        """The weights of the model that training has made so far."""
        return self.params if self.ema is None else ema.weights(self.ema, self.params)

    @property
    def resumable(self) -> Any:
        """What going on needs and `trained` doesn't hold."""
        if self.ema is None:
            return self.opt_state
        return {"optimizer": self.opt_state, "weights": self.params, "ema": self.ema}


@dataclasses.dataclass(frozen=True)
class ForwardSettings:
    """How log-probabilities are computed; static under jit."""

    dtype: str
    head_chunk: int
    remat: bool
    dropout: float


@dataclasses.dataclass(frozen=True)
class SFT:
    """Negative log-likelihood of response tokens, averaged over the batch's tokens."""

    def losses(self, logps_B: jax.Array, batch: Batch, reference: PairLogps | None):
        return -logps_B.sum(), {}

    def count(self, rows: Sequence[TrainRow]) -> int:
        """What the loss is averaged over: response tokens."""
        return sum(len(row.examples[0].response_ids) for row in rows)


@dataclasses.dataclass(frozen=True)
class DPO:
    """DPO; a batch holds the chosen rows of all pairs, then the rejected ones."""

    beta: float
    label_smoothing: float = 0.0

    def losses(self, logps_B: jax.Array, batch: Batch, reference: PairLogps | None):
        assert reference is not None
        chosen, rejected = jnp.split(logps_B, 2)
        loss, metrics = dpo_loss(PairLogps(chosen, rejected), reference, self.beta, self.label_smoothing)
        real = jnp.split(batch.response_lengths, 2)[0] > 0
        sums = {name: jnp.where(real, value, 0.0).sum() for name, value in metrics.items()}
        return jnp.where(real, loss, 0.0).sum(), sums

    def count(self, rows: Sequence[TrainRow]) -> int:
        """What the loss is averaged over: pairs."""
        return len(rows)


Objective = SFT | DPO


@functools.partial(jax.jit, static_argnames=("config", "objective", "settings"))
def gradients(
    config: LlamaConfig,
    objective: Objective,
    settings: ForwardSettings,
    params: Params,
    batch: Batch,
    reference: PairLogps | None,
    count: jax.Array,
    key: jax.Array,
) -> tuple[Params, dict[str, jax.Array]]:
    """Gradient of a micro-batch's share of the loss, and its metric sums (`loss` is already the share).

    Args:
      reference: the frozen model's log-probabilities of the same rows, for objectives that need them.
      count: what the whole batch's loss is divided by.
      key: of the dropout.
    """

    def loss_fn(params):
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
        total, sums = objective.losses(logps_B, batch, reference)
        loss = total / count
        return loss, {"loss": loss, **sums}

    grads, sums = jax.grad(loss_fn, has_aux=True)(params)
    return constrain_params(config, grads), sums


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
    """One optimiser step. Returns the new state, the gradient's norm before clipping, and the learning rate.

    A gradient that is not finite leaves weights and optimiser state as they are; the step counts all the same, so that
    the learning rate's course and the order of rows go on.
    """
    norm, rate = optax.global_norm(grads), jnp.asarray(schedule(settings)(state.step))

    def apply(params, opt_state):
        updates, opt_state = make_optimizer(config, settings).update(grads, opt_state, params)
        return cast(Params, optax.apply_updates(params, jax.tree.map(lambda x: -rate * x, updates))), opt_state

    # A branch rather than a choice between results, which would need memory for both.
    params, opt_state = jax.lax.cond(jnp.isfinite(norm), apply, lambda *old: old, state.params, state.opt_state)
    averaged = None if state.ema is None else ema.average(settings.ema_decay, state.step, state.ema, params)
    return TrainState(state.step + 1, params, opt_state, averaged), {"grad_norm": norm, "learning_rate": rate}


def init_state(config: LlamaConfig, settings: OptimizerSettings, params: Params) -> TrainState:
    """Step 0; the optimiser's moments are laid out like the weights, which the compiler would not do by itself."""
    optimizer = make_optimizer(config, settings)
    opt_state = jax.jit(optimizer.init, out_shardings=state_shardings(optimizer, params))(params)
    return TrainState(jnp.int32(0), params, opt_state, ema.start(params) if settings.ema_decay else None)


def resume(state: TrainState, step: int, restore: Callable[[dict[str, Any]], dict[str, Any]]) -> TrainState:
    """The state after `step` steps, from what `restore` gives for trees of arrays laid out as `state`'s are."""
    if state.ema is None:
        found = restore({"params": state.params, "opt_state": state.opt_state})
        return TrainState(jnp.int32(step), **found)
    found = restore({"opt_state": state.resumable})["opt_state"]
    return TrainState(jnp.int32(step), found["weights"], found["optimizer"], found["ema"])

"""The jitted pieces of a training step: gradients of a micro-batch added to a sum, and one update from the sum.

Each micro-batch contributes its share of the whole batch's loss and metrics (see `objectives.Objective`), so
accumulating is exact however the rows are split.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import struct

from selfreward_jax.core.mesh import RULES, Rules
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.lora import LoraSettings, attach, trained_specs
from selfreward_jax.llama.params import Params, shardings
from selfreward_jax.training import ema
from selfreward_jax.training.batches import Batch
from selfreward_jax.training.logps import response_logps
from selfreward_jax.training.objectives import Counts, Objective, RowArrays
from selfreward_jax.training.optimizer import OptimizerSettings, make_optimizer, schedule, state_shardings


@struct.dataclass
class TrainState:
    """What training changes: steps done so far, what is trained, optimiser state, and the average."""

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
    """How log-probabilities are computed (see `llama.model.hidden_states`), and with `lora` that its adapter alone is
    trained; static under jit."""

    dtype: str
    head_chunk: int
    remat: str
    dropout: float
    attention: str = "auto"
    rules: Rules = RULES
    lora: LoraSettings | None = None


def _losses(
    trained: Params,
    config: LlamaConfig,
    objective: Objective,
    settings: ForwardSettings,
    batch: Batch,
    rows: RowArrays,
    counts: Counts,
    key: jax.Array | None,
    frozen: Params | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A micro-batch's share of the loss, and its shares of the loss and the metrics; without a key no dropout."""
    lora, shortest_R = settings.lora, rows.lengths.min(axis=0)
    adapter_dropout = lora.dropout if lora and key is not None else 0.0
    dropout = settings.dropout if key is not None else 0.0
    logps_N = response_logps(
        config,
        attach(lora, frozen, trained) if lora and frozen else trained,
        batch,
        dtype=jnp.dtype(settings.dtype),
        head_chunk=settings.head_chunk,
        remat=settings.remat,
        attention_backend=settings.attention,
        rules=settings.rules,
        dropout_rate=dropout,
        dropout_key=key if dropout > 0 or adapter_dropout > 0 else None,
        adapter_dropout=adapter_dropout,
        tail_starts_N=jnp.tile(shortest_R, rows.lengths.shape[0]) if objective.ld_alpha != 1 else None,
        tail_weight=objective.ld_alpha,
    )
    with jax.named_scope("loss"):
        loss, metrics = objective.loss(logps_N.reshape(rows.lengths.shape), rows, counts)
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
    frozen: Params | None = None,
) -> tuple[Params, dict[str, jax.Array]]:
    """Gradient of a micro-batch's share of the loss, and its shares of the loss and the metrics.

    Args:
      params: what is trained.
      batch: the first examples of all rows, then the second ones, and so on.
      rows: what else the objective needs to know of them.
      counts: of the whole batch, from `objective.counts`.
      key: of the dropout.
      frozen: with `settings.lora` the weights beside which `params` is the adapter; they have no gradient.
    """
    grads, shares = jax.grad(_losses, has_aux=True)(
        params, config, objective, settings, batch, rows, counts, key, frozen
    )
    return constrain_params(config, grads, settings.lora, settings.rules), shares


@functools.partial(jax.jit, static_argnames=("config", "objective", "settings"))
def losses(
    config: LlamaConfig,
    objective: Objective,
    settings: ForwardSettings,
    params: Params,
    batch: Batch,
    rows: RowArrays,
    counts: Counts,
    frozen: Params | None = None,
) -> dict[str, jax.Array]:
    """The shares that `gradients` gives beside the gradient, without dropout: for rows that are not trained on."""
    still = dataclasses.replace(settings, dropout=0.0, remat="none")
    return _losses(params, config, objective, still, batch, rows, counts, None, frozen)[1]


def constrain_params(config: LlamaConfig, tree: Params, lora: LoraSettings | None = None, rules: Rules = RULES):
    """Lays a tree out like the weights under `jax.set_mesh`: left alone, the compiler keeps gradients whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(config, mesh, trained_specs(config, lora), rules))


@functools.partial(jax.jit, donate_argnums=0)
def add(total, more):
    return jax.tree.map(jnp.add, total, more)


@functools.partial(jax.jit, static_argnames=("config", "settings", "lora"), donate_argnums=2)
def update(
    config: LlamaConfig,
    settings: OptimizerSettings,
    state: TrainState,
    grads: Params,
    lora: LoraSettings | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimiser step. Returns the new state, the gradient's norm before clipping, and the learning rate.

    A gradient that is not finite leaves weights and optimiser state as they are; the step counts all the same, so that
    the learning rate's course and the order of rows go on.
    """
    norm, rate = optax.global_norm(grads), jnp.asarray(schedule(settings)(state.step))

    @jax.named_scope("optimizer")
    def apply(params, opt_state):
        updates, opt_state = make_optimizer(config, settings, lora).update(grads, opt_state, params)
        return cast(Params, optax.apply_updates(params, jax.tree.map(lambda x: -rate * x, updates))), opt_state

    # A branch rather than a choice between results, which would need memory for both.
    params, opt_state = jax.lax.cond(jnp.isfinite(norm), apply, lambda *old: old, state.params, state.opt_state)
    averaged = None if state.ema is None else ema.average(settings.ema_decay, state.step, state.ema, params)
    return TrainState(state.step + 1, params, opt_state, averaged), {"grad_norm": norm, "learning_rate": rate}


def init_state(
    config: LlamaConfig, settings: OptimizerSettings, params: Params, lora: LoraSettings | None = None
) -> TrainState:
    """Step 0; the optimiser's moments are laid out like the weights, which the compiler would not do by itself."""
    optimizer, specs = make_optimizer(config, settings, lora), trained_specs(config, lora)
    opt_state = jax.jit(optimizer.init, out_shardings=state_shardings(optimizer, params, specs))(params)
    return TrainState(jnp.int32(0), params, opt_state, ema.start(params) if settings.ema_decay else None)


def resume(state: TrainState, item: str, step: int, restore: Callable[[dict[str, Any]], dict[str, Any]]) -> TrainState:
    """The state after `step` steps, from what `restore` gives for trees of arrays laid out as `state`'s are;
    `item` is what a checkpoint calls the trained tree."""
    if state.ema is None:
        found = restore({item: state.params, "opt_state": state.opt_state})
        return TrainState(jnp.int32(step), found[item], found["opt_state"])
    found = restore({"opt_state": state.resumable})["opt_state"]
    return TrainState(jnp.int32(step), found["weights"], found["optimizer"], found["ema"])

"""What a training would put where: every array's shape, dtype, layout and bytes on each device, and nothing computed.

Only the model's configuration is read. The mesh may be larger than this machine, so a pod can be planned from a laptop.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from rich.table import Table

from selfreward_jax.core.console import Terminal
from selfreward_jax.core.mesh import AXES, Rules, activation_spec, make_rules
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.load import read_config
from selfreward_jax.llama.lora import trained_specs
from selfreward_jax.llama.params import full_shape, is_spec, param_specs, shardings
from selfreward_jax.stages.training import lora_settings, optimizer_settings
from selfreward_jax.training.batches import round_up
from selfreward_jax.training.optimizer import make_optimizer, state_shardings


@dataclasses.dataclass(frozen=True)
class Placed:
    """One array: to which group it belongs, its name, and how it lies."""

    group: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    sharding: NamedSharding

    @property
    def bytes_per_device(self) -> int:
        return math.prod(self.sharding.shard_shape(self.shape)) * jnp.dtype(self.dtype).itemsize


def described_mesh(section) -> AbstractMesh:
    """The mesh of the configuration, whatever devices there are here; -1 is what they leave."""
    sizes = [section.data, section.fsdp, section.tensor]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = max(1, jax.device_count() // max(1, math.prod(s for s in sizes if s != -1)))
    return AbstractMesh(tuple(max(1, s) for s in sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def placed_arrays(config: Any, stage: str) -> Iterator[Placed]:
    """All arrays of a training step that grow with the model or the batch.

    Args:
      config: the whole configuration.
      stage: `sft` or `dpo`.

    Raises:
      UserError: an axis can't be split as the mesh asks, with the numbers.
    """
    if stage == "dpo" and config.dpo.data == "positives":
        stage = "sft"  # what that stage then does
    model, section = read_config(config.model.path), config[stage]
    mesh, rules = described_mesh(config.mesh), make_rules(config.mesh.rules.to_dict())
    lora = lora_settings(config.lora)
    layouts = shardings(model, mesh, rules=rules)
    for name, spec, sharding in _named(param_specs(model), layouts):
        yield Placed("weights", name, full_shape(model, spec), config.model.param_dtype, sharding)

    dtype = jnp.dtype("float32" if lora else config.model.param_dtype)
    specs = trained_specs(model, lora)
    trained = jax.tree.map(
        lambda spec, sharding: jax.ShapeDtypeStruct(full_shape(model, spec), dtype, sharding=sharding),
        specs,
        shardings(model, mesh, specs, rules),
        is_leaf=is_spec,
    )
    weights = list(jax.tree_util.tree_leaves_with_path(trained))
    if lora:
        yield from (Placed("adapter", _name(p), x.shape, str(x.dtype), x.sharding) for p, x in weights)
    yield from (Placed("gradients", _name(p), x.shape, str(x.dtype), x.sharding) for p, x in weights)
    optimizer = make_optimizer(model, optimizer_settings(config, section, 1), lora)
    state = jax.eval_shape(optimizer.init, trained)
    for (path, x), sharding in zip(
        jax.tree_util.tree_leaves_with_path(state),
        jax.tree.leaves(state_shardings(optimizer, trained, specs)),
        strict=True,
    ):
        yield Placed("optimiser", _name(path), x.shape, str(x.dtype), sharding)
    if config.training.ema_decay:
        yield from (Placed("average", _name(p), x.shape, "float32", x.sharding) for p, x in weights)
    yield from _of_a_batch(config, stage, model, mesh, rules)


def _of_a_batch(config: Any, stage: str, model: LlamaConfig, mesh: AbstractMesh, rules: Rules) -> Iterator[Placed]:
    """Arrays of one micro-batch of rows that are as long as they may be."""
    section, training = config[stage], config.training
    ways = math.prod(mesh.shape[a] for a in dict(rules)["batch"])
    rows = round_up(section.micro_batch_size or section.batch_size, ways) * (2 if stage == "dpo" else 1)
    length = round_up(training.pack or min(section.max_length, model.max_position_embeddings), training.length_bucket)
    D, L, dtype = model.hidden_size, model.num_layers, config.model.dtype

    def placed(group: str, name: str, axes: tuple[str, ...], shape: tuple[int, ...], kind: str) -> Placed:
        return Placed(group, name, shape, kind, NamedSharding(mesh, activation_spec(axes, shape, mesh, rules)))

    for name in ("tokens", "targets", "sources"):
        yield placed("batch", name, ("batch", "sequence"), (rows, length), "int32")
    if training.remat in ("block", "dots", "none"):
        shape = (L, rows, length, D)
        yield placed(
            "kept for the backward pass", "layer inputs", ("layers", "batch", "sequence", "width"), shape, dtype
        )
    if training.remat in ("dots", "none"):
        width = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim + 2 * D
        axes = ("layers", "batch", "sequence", "width")
        yield placed("kept for the backward pass", "q, k, v, o, down", axes, (L, rows, length, width), dtype)
        shape = (L, rows, length, 2 * model.intermediate_size)
        axes = ("layers", "batch", "sequence", "mlp")
        yield placed("kept for the backward pass", "gate, up", axes, shape, dtype)
    chunk = (rows, max(training.head_chunk // rows, 1), model.vocab_size)
    for name in ("logits of a chunk", "their gradient"):
        yield placed("head", name, ("batch", "sequence", "vocab"), chunk, "float32")


def _name(path) -> str:
    return ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _named(specs, layouts):
    leaves = jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)
    return ((_name(p), spec, s) for (p, spec), s in zip(leaves, jax.tree.leaves(layouts), strict=True))


def _size(count: float) -> str:
    return f"{count / 2**30:.3f} GiB" if count >= 2**27 else f"{count / 2**20:.2f} MiB"


def show(config: Any, stage: str) -> None:
    """Prints the table and its sums."""
    arrays = list(placed_arrays(config, stage))
    mesh = described_mesh(config.mesh)
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    table = Table(title=f"{stage} of {config.model.path} on {shape}", title_justify="left")
    for column in ("", "array", "shape", "dtype", "split over"):
        table.add_column(column)
    table.add_column("bytes/device", justify="right")
    totals: dict[str, int] = {}
    for x in arrays:
        split = ", ".join("+".join(a) if isinstance(a, tuple) else a or "-" for a in x.sharding.spec) or "whole"
        first = x.group if x.group not in totals else ""
        totals[x.group] = totals.get(x.group, 0) + x.bytes_per_device
        table.add_row(first, x.name, " x ".join(map(str, x.shape)) or "1", x.dtype, split, _size(x.bytes_per_device))
    console = Terminal(width=140)
    console.print(table)
    for group, total in totals.items():
        console.print(f"{group:28}{_size(total):>12}")
    console.print(f"{'on each device':28}{_size(sum(totals.values())):>12}")
    console.print(
        f"Beside them: one layer at a time, and what XLA needs. remat={config.training.remat}"
        + (" (it keeps more than is listed)" if config.training.remat == "none" else "")
    )

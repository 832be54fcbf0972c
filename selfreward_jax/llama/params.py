"""One table of a Llama model's parameters: shape, logical axes and Hugging Face name of each.

Initialising, loading, sharding and exporting all read this table, so that a parameter is described once. Matrices
are stored input-first, `x @ w`; Hugging Face stores `[out, in]`, so loading transposes and export transposes back.

Shape letters: V vocabulary, D embed, H heads, K kv heads, E head size, F mlp, L layers.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from selfreward_jax.core.mesh import RULES, Rules, partition
from selfreward_jax.llama.config import LlamaConfig

Params = dict[str, Any]
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")  # the matrices of a layer, by their names in the table


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One parameter.

    Attributes:
      shape: without the layer axis.
      axes: logical names of the axes of `shape`.
      hf_name: tensor name in a Hugging Face file, with `{layer}` where the parameter exists once per layer.
      hf_shape: the shape there.
      transpose: whether the file holds the (flattened) matrix as [out, in].
      kind: `matrix`, `norm` or `bias`; decides the initial values and weight decay.
      inputs: how many leading axes of a layer's matrix are its inputs; the rest are its outputs.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    hf_name: str
    hf_shape: tuple[int, ...]
    transpose: bool = False
    kind: str = "matrix"
    inputs: int = 1

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.hf_name

    def from_hf(self, array: np.ndarray) -> np.ndarray:
        return np.reshape(array.T if self.transpose else array, self.shape)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        flat = np.reshape(array, self.hf_shape[::-1] if self.transpose else self.hf_shape)
        return np.ascontiguousarray(flat.T if self.transpose else flat)


def _matrix(name: str, inputs: dict[str, int], outputs: dict[str, int]) -> ParamSpec:
    return ParamSpec(
        shape=(*inputs.values(), *outputs.values()),
        axes=(*inputs, *outputs),
        hf_name=f"model.layers.{{layer}}.{name}.weight",
        hf_shape=(math.prod(outputs.values()), math.prod(inputs.values())),
        transpose=True,
        inputs=len(inputs),
    )


def _bias(name: str, outputs: dict[str, int]) -> ParamSpec:
    return ParamSpec(
        shape=tuple(outputs.values()),
        axes=tuple(outputs),
        hf_name=f"model.layers.{{layer}}.{name}.bias",
        hf_shape=(math.prod(outputs.values()),),
        kind="bias",
    )


def param_specs(config: LlamaConfig) -> dict[str, Any]:
    """The tree of `ParamSpec`s, of the same structure as the parameters.

    Parameters under `layers` carry a leading axis L, logical name `layers`, in the arrays themselves.
    """
    c = config
    embed, mlp = {"embed": c.hidden_size}, {"mlp": c.intermediate_size}
    heads = {"heads": c.num_heads, "head_dim": c.head_dim}
    kv_heads = {"kv_heads": c.num_kv_heads, "head_dim": c.head_dim}
    norm = lambda name: ParamSpec((c.hidden_size,), ("norm",), name, (c.hidden_size,), kind="norm")  # noqa: E731
    layers = {
        "attn_norm": norm("model.layers.{layer}.input_layernorm.weight"),
        "q": _matrix("self_attn.q_proj", embed, heads),
        "k": _matrix("self_attn.k_proj", embed, kv_heads),
        "v": _matrix("self_attn.v_proj", embed, kv_heads),
        "o": _matrix("self_attn.o_proj", heads, embed),
        "mlp_norm": norm("model.layers.{layer}.post_attention_layernorm.weight"),
        "gate": _matrix("mlp.gate_proj", embed, mlp),
        "up": _matrix("mlp.up_proj", embed, mlp),
        "down": _matrix("mlp.down_proj", mlp, embed),
    }
    if c.attention_bias:
        layers |= {
            "q_bias": _bias("self_attn.q_proj", heads),
            "k_bias": _bias("self_attn.k_proj", kv_heads),
            "v_bias": _bias("self_attn.v_proj", kv_heads),
            "o_bias": _bias("self_attn.o_proj", embed),
        }
    if c.mlp_bias:
        layers |= {
            "gate_bias": _bias("mlp.gate_proj", mlp),
            "up_bias": _bias("mlp.up_proj", mlp),
            "down_bias": _bias("mlp.down_proj", embed),
        }
    vocabulary = (c.vocab_size, c.hidden_size)
    specs = {
        "embed": ParamSpec(vocabulary, ("vocab", "embed"), "model.embed_tokens.weight", vocabulary),
        "layers": layers,
        "norm": norm("model.norm.weight"),
    }
    if not c.tie_word_embeddings:
        specs["head"] = ParamSpec(vocabulary[::-1], ("embed", "vocab"), "lm_head.weight", vocabulary, transpose=True)
    return specs


def is_spec(node: Any) -> bool:
    return isinstance(node, ParamSpec)


def map_specs(function, specs):
    """`jax.tree.map` over the table's leaves."""
    return jax.tree.map(function, specs, is_leaf=is_spec)


def full_shape(config: LlamaConfig, spec: ParamSpec) -> tuple[int, ...]:
    return (config.num_layers, *spec.shape) if spec.stacked else spec.shape


def full_axes(spec: ParamSpec) -> tuple[str, ...]:
    return ("layers", *spec.axes) if spec.stacked else spec.axes


def shardings(config: LlamaConfig, mesh: Mesh | AbstractMesh, specs=None, rules: Rules = RULES):
    """A `NamedSharding` for every parameter, from the one table of parameters and the rules of the mesh.

    Args:
      specs: another tree of `ParamSpec`s, such as an adapter's; None for the table.
    """
    specs = param_specs(config) if specs is None else specs
    lay = lambda spec: partition(full_axes(spec), full_shape(config, spec), mesh, spec.hf_name, rules)  # noqa: E731
    return map_specs(lay, specs)


def count_params(config: LlamaConfig) -> int:
    leaves = jax.tree.leaves(param_specs(config), is_leaf=is_spec)
    return sum(math.prod(full_shape(config, spec)) for spec in leaves)


def init_params(config: LlamaConfig, key: jax.Array, dtype=jnp.float32, scale: float = 0.02) -> Params:
    """Random parameters: normal matrices of standard deviation `scale`, norms 1, biases 0."""
    specs = param_specs(config)
    leaves, tree = jax.tree.flatten(specs, is_leaf=is_spec)

    def init(index: int, spec: ParamSpec):
        shape = full_shape(config, spec)
        if spec.kind == "norm":
            return jnp.ones(shape, dtype)
        if spec.kind == "bias":
            return jnp.zeros(shape, dtype)
        return (scale * jax.random.normal(jax.random.fold_in(key, index), shape)).astype(dtype)

    return jax.tree.unflatten(tree, [init(i, spec) for i, spec in enumerate(leaves)])

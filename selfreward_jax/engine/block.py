"""A layer as sampling runs it: few large matrix products instead of many small ones.

A token at a time, a layer is bound by how well its products fill the machine. So queries, keys and values come from
one matrix, [D, K, G + 2, E]: for each kv head its G query heads, its key and its value; and the two halves of the MLP
from another, [D, 2, F]; the output's is [H * E, D], which a product reads as it lies. All are split over tensor
devices along their K, F and H axes without moving anything. Where there are more of these than K/V heads, K counts
the copies that `layout.sampling_config` asks for.

Shape letters: B rows, T tokens, D embed, H heads, K kv heads, G = H // K, E head size, F mlp.
"""

import jax
import jax.numpy as jnp

from selfreward_jax.llama import model as llama
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import Params

AXES = {
    "qkv": (None, "kv_heads", None, None),
    "qkv_bias": ("kv_heads", None, None),
    "o": ("heads", None),
    "gate_up": (None, None, "mlp"),
    "gate_up_bias": (None, "mlp"),
    "down": ("mlp", None),
}  # logical names of the axes along which the weights of a layer are split; the rest are whole
# The axes from the outermost to the innermost in a TPU's memory, where its compiler wants another order than they are
# written in: it would copy such a weight at every call.
TPU_ORDER = {"qkv": (1, 2, 3, 0), "gate_up": (1, 0, 2)}


def copy_kv(config: LlamaConfig, layer: Params) -> Params:
    """A layer's weights, or a stack of layers', with each K/V head as often in a row as `config` has it."""
    names = [name for name in ("k", "v", "k_bias", "v_bias") if name in layer]
    times = config.num_kv_heads // layer["k"].shape[-2]
    return layer | {name: jnp.repeat(layer[name], times, axis=-2) for name in names} if times > 1 else layer


def fuse(config: LlamaConfig, layer: Params) -> Params:
    """A layer's weights in the form above; what is not named there stays as it is."""
    layer = copy_kv(config, layer)
    K, E = config.num_kv_heads, config.head_dim
    G = config.num_heads // K

    def heads(q, k, v):  # [..., H, E], [..., K, E] twice, to [..., K, G + 2, E]
        q = q.reshape(*q.shape[:-2], K, G, E)
        return jnp.concatenate([q, k[..., None, :], v[..., None, :]], axis=-2)

    made = {name: layer[name] for name in ("attn_norm", "mlp_norm", "down", "o_bias", "down_bias") if name in layer}
    made["qkv"] = heads(layer["q"], layer["k"], layer["v"])
    made["o"] = layer["o"].reshape(K * G * E, -1)
    made["gate_up"] = jnp.stack([layer["gate"], layer["up"]], axis=-2)
    if config.attention_bias:
        made["qkv_bias"] = heads(layer["q_bias"], layer["k_bias"], layer["v_bias"])
    if config.mlp_bias:
        made["gate_up_bias"] = jnp.stack([layer["gate_bias"], layer["up_bias"]], axis=-2)
    return made


def unfuse(config: LlamaConfig, layer: Params) -> Params:
    """What `fuse` was given, after `copy_kv`."""
    G = config.num_heads // config.num_kv_heads

    def heads(qkv):
        q = qkv[..., :G, :]
        return q.reshape(*q.shape[:-3], config.num_heads, config.head_dim), qkv[..., G, :], qkv[..., G + 1, :]

    made = {name: layer[name] for name in ("attn_norm", "mlp_norm", "down", "o_bias", "down_bias") if name in layer}
    made["q"], made["k"], made["v"] = heads(layer["qkv"])
    made["o"] = layer["o"].reshape(config.num_heads, config.head_dim, -1)
    made["gate"], made["up"] = layer["gate_up"][..., 0, :], layer["gate_up"][..., 1, :]
    if config.attention_bias:
        made["q_bias"], made["k_bias"], made["v_bias"] = heads(layer["qkv_bias"])
    if config.mlp_bias:
        made["gate_bias"], made["up_bias"] = layer["gate_up_bias"][..., 0, :], layer["gate_up_bias"][..., 1, :]
    return made


@jax.named_scope("attention")
def project_qkv(config: LlamaConfig, layer: Params, x_BTD: jax.Array, rope) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotated queries [B, T, K, G, E], rotated keys and values [B, T, K, E]."""
    G = config.num_heads // config.num_kv_heads
    y = llama.rms_norm(x_BTD, layer["attn_norm"], config.rms_norm_eps)
    qkv = jnp.einsum("btd,dkge->btkge", y, layer["qkv"])
    if config.attention_bias:
        qkv = qkv + layer["qkv_bias"]
    cos, sin = rope
    rotated = llama.apply_rope(qkv[..., : G + 1, :], (cos[..., None, :], sin[..., None, :]))
    return rotated[..., :G, :], rotated[..., G, :], qkv[..., G + 1, :]


@jax.named_scope("attention")
def project_out(config: LlamaConfig, layer: Params, out_BTKGE: jax.Array) -> jax.Array:
    y = out_BTKGE.reshape(*out_BTKGE.shape[:2], -1) @ layer["o"]
    return y + layer["o_bias"] if config.attention_bias else y


@jax.named_scope("mlp")
def mlp(config: LlamaConfig, layer: Params, x_BTD: jax.Array) -> jax.Array:
    y = llama.rms_norm(x_BTD, layer["mlp_norm"], config.rms_norm_eps)
    both = jnp.einsum("btd,dcf->btcf", y, layer["gate_up"])
    if config.mlp_bias:
        both = both + layer["gate_up_bias"]
    down = (jax.nn.silu(both[..., 0, :]) * both[..., 1, :]) @ layer["down"]
    return down + layer["down_bias"] if config.mlp_bias else down

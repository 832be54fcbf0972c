"""The Llama forward pass: pure functions over one parameter pytree, layers stacked and scanned.

Rows are right-padded. Attention is causal, so padding after a row's end can't reach the tokens before it, and no
mask is ever inferred from token ids. Several texts may share a row, each a segment of its own.

Shape letters: B rows, T tokens, S keys, D embed, H heads, K kv heads, G = H // K, E head size, F mlp, V vocabulary,
L layers.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from selfreward_jax.core.mesh import RULES, Rules, constrain
from selfreward_jax.llama.attention import Segments, attention
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import PROJECTIONS, Params

# What the backward pass recomputes of each layer: nothing; everything from its input; everything but the products
# with weights; everything, from an input that waits in the host's memory.
REMAT = ("none", "block", "dots", "offload")
ACTIVATION = ("batch", None, None)


def rms_norm(x_BTD: jax.Array, weight_D: jax.Array, eps: float) -> jax.Array:
    x_f32 = x_BTD.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x_f32 * x_f32, axis=-1, keepdims=True) + eps)
    return weight_D.astype(x_BTD.dtype) * (x_f32 * scale).astype(x_BTD.dtype)


def rope_frequencies(config: LlamaConfig) -> jax.Array:
    """Angle per position for each pair of head dimensions, float32 [E // 2].

    `llama3` (Llama 3.1): wavelengths longer than the original context are stretched by `factor`, short ones are
    kept, those between are interpolated.
    """
    rope, size = config.rope, config.head_dim
    exponent = jnp.arange(0, size, 2, dtype=jnp.float32) / size
    frequency = 1.0 / (jnp.float32(rope.theta) ** exponent)
    if rope.type == "linear":
        return frequency / rope.factor
    if rope.type == "llama3":
        wavelength = 2 * math.pi / frequency
        context = rope.original_max_position_embeddings
        smooth = (context / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        between = (1 - smooth) * frequency / rope.factor + smooth * frequency
        scaled = jnp.where(wavelength > context / rope.low_freq_factor, frequency / rope.factor, between)
        return jnp.where(wavelength < context / rope.high_freq_factor, frequency, scaled)
    return frequency


def rope_tables(config: LlamaConfig, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine, each float32 [B, T, 1, E // 2]."""
    angle = positions_BT[..., None, None].astype(jnp.float32) * rope_frequencies(config)
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(x_BTHE: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates in the half-split layout of Hugging Face files (first half with second half of each head)."""
    cos, sin = rope
    first, second = jnp.split(x_BTHE.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHE.dtype)


Drop = Callable[[str, jax.Array], jax.Array]  # the dropout of the input of a matrix's adapter


def keep_all(name: str, x: jax.Array) -> jax.Array:
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """`jnp.einsum` of activations and a matrix, whose gradient is formed as the matrix lies.

    JAX forms it transposed, for which XLA on a CPU computes the activations' gradient a second time, and transposed:
    a tenth of a training step.
    """
    return jnp.einsum(equation, x, w)


def _einsum_forward(equation: str, x: jax.Array, w: jax.Array):
    return jnp.einsum(equation, x, w), (x, w)


def _einsum_backward(equation: str, kept, grad: jax.Array):
    x, w = kept
    inputs, y = equation.split("->")
    left, right = inputs.split(",")
    return jnp.einsum(f"{y},{right}->{left}", grad, w), jnp.einsum(f"{left},{y}->{right}", x, grad)


einsum.defvjp(_einsum_forward, _einsum_backward)


def product(equation: str, layer: Params, name: str, x: jax.Array, drop: Drop) -> jax.Array:
    """Activations times a matrix of the layer, and through its adapter where it has one (`llama/lora.py`)."""
    w = layer[name].astype(x.dtype)
    if "adapter" not in layer:
        return einsum(equation, x, w)
    y = jnp.einsum(equation, x, w)  # frozen: without a gradient
    adapter = layer["adapter"].get(name)
    if adapter is None:
        return y
    low = jnp.tensordot(drop(name, x).astype(jnp.float32), adapter["a"], axes=adapter["a"].ndim - 1)
    return y + jnp.tensordot(low, adapter["b"], axes=1).astype(y.dtype)


@jax.named_scope("attention")
def project_qkv(
    config: LlamaConfig, layer: Params, x_BTD: jax.Array, rope, drop: Drop = keep_all
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalised input to rotated queries [B, T, H, E], rotated keys and values [B, T, K, E]."""
    dtype = x_BTD.dtype
    y = rms_norm(x_BTD, layer["attn_norm"], config.rms_norm_eps)
    q = product("btd,dhe->bthe", layer, "q", y, drop)
    k = product("btd,dke->btke", layer, "k", y, drop)
    v = product("btd,dke->btke", layer, "v", y, drop)
    if config.attention_bias:
        q, k = q + layer["q_bias"].astype(dtype), k + layer["k_bias"].astype(dtype)
        v = v + layer["v_bias"].astype(dtype)
    return apply_rope(q, rope), apply_rope(k, rope), v


@jax.named_scope("attention")
def project_out(config: LlamaConfig, layer: Params, out_BTHE: jax.Array, drop: Drop = keep_all) -> jax.Array:
    y = product("bthe,hed->btd", layer, "o", out_BTHE, drop)
    return y + layer["o_bias"].astype(y.dtype) if config.attention_bias else y


@jax.named_scope("mlp")
def mlp(config: LlamaConfig, layer: Params, x_BTD: jax.Array, drop: Drop = keep_all) -> jax.Array:
    dtype = x_BTD.dtype
    y = rms_norm(x_BTD, layer["mlp_norm"], config.rms_norm_eps)
    gate, up = product("btd,df->btf", layer, "gate", y, drop), product("btd,df->btf", layer, "up", y, drop)
    if config.mlp_bias:
        gate, up = gate + layer["gate_bias"].astype(dtype), up + layer["up_bias"].astype(dtype)
    down = product("btf,fd->btd", layer, "down", jax.nn.silu(gate) * up, drop)
    return down + layer["down_bias"].astype(dtype) if config.mlp_bias else down


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def adapter_drop(rate: float, key: jax.Array | None) -> Drop:
    """Dropout of adapters' inputs, drawn anew for each matrix from a layer's key."""
    if key is None or rate == 0.0:
        return keep_all
    # A key's split gives what folding 0 and 1 into it gives, and these two drop the residual branches.
    return lambda name, x: dropout(x, rate, jax.random.fold_in(key, 2 + PROJECTIONS.index(name)))


@jax.named_scope("embed")
def embed(params: Params, tokens_BT: jax.Array, dtype) -> jax.Array:
    return params["embed"].astype(dtype)[tokens_BT]


@jax.named_scope("head")
def logits(config: LlamaConfig, params: Params, x_D: jax.Array) -> jax.Array:
    """Final hidden states [..., D] to float32 logits [..., V]."""
    if config.tie_word_embeddings:
        table = params["embed"].astype(x_D.dtype)
        return jnp.einsum("...d,vd->...v", x_D, table, preferred_element_type=jnp.float32)
    return jnp.einsum("...d,dv->...v", x_D, params["head"].astype(x_D.dtype), preferred_element_type=jnp.float32)


def rematerialised(block, how: str):
    """A scanned layer whose backward pass computes anew what `how` doesn't keep; see REMAT."""
    if how == "none":
        return block
    policies = jax.checkpoint_policies
    policy = {
        "block": policies.nothing_saveable,
        "dots": policies.dots_with_no_batch_dims_saveable,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["layer_input"],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }[how]
    # The loop over layers already keeps the two passes apart.
    return jax.checkpoint(block, policy=policy, prevent_cse=False)


def hidden_states(
    config: LlamaConfig,
    params: Params,
    tokens_BT: jax.Array,
    *,
    positions_BT: jax.Array | None = None,
    segments: Segments | None = None,
    dtype=jnp.float32,
    remat: str = "none",
    attention_backend: str = "auto",
    rules: Rules = RULES,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    adapter_dropout: float = 0.0,
) -> jax.Array:
    """Hidden states after the final norm, [B, T, D], for right-padded rows.

    Args:
      tokens_BT: token ids; whatever stands after a row's end has no influence on what stands before it.
      positions_BT: place of each token in its text; None where each row is one text.
      segments: which tokens belong together; None where each row is one text.
      dtype: of the computation; parameters are cast as they are used.
      remat: what the backward pass recomputes instead of keeping, one of REMAT.
      attention_backend: see `llama.attention`.
      rules: how activations lie on the training mesh.
      dropout_rate: probability of zeroing each element of a layer's two residual branches.
      dropout_key: None turns dropout off.
      adapter_dropout: probability of zeroing each element of an adapter's input.
    """
    if positions_BT is None:
        positions_BT = jnp.arange(tokens_BT.shape[1])[None]
    rope = rope_tables(config, positions_BT)

    def block(x, layer_and_index):
        layer, index = layer_and_index
        x = checkpoint_name(x, "layer_input")
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        keys = (None, None) if key is None else jax.random.split(key)
        drop = adapter_drop(adapter_dropout, key)
        q, k, v = project_qkv(config, layer, x, rope, drop)
        out = attention(q, k, v, segments, backend=attention_backend, rules=rules)
        x = x + dropout(project_out(config, layer, out, drop), dropout_rate, keys[0])
        x = constrain(x + dropout(mlp(config, layer, x, drop), dropout_rate, keys[1]), ACTIVATION, rules)
        return x, None

    # Rows may be split over the same devices as the embedding's width, and a lookup can't have both.
    table = {"embed": constrain(params["embed"], ("vocab", None), rules)}
    x = constrain(embed(table, tokens_BT, dtype), ACTIVATION, rules)
    body = rematerialised(block, remat)
    x, _ = jax.lax.scan(body, x, (params["layers"], jnp.arange(config.num_layers)))
    return rms_norm(x, params["norm"], config.rms_norm_eps)


def forward(config: LlamaConfig, params: Params, tokens_BT: jax.Array, dtype=jnp.float32) -> jax.Array:
    """Logits of every position, float32 [B, T, V]; for tests and small models (training uses chunked heads)."""
    return logits(config, params, hidden_states(config, params, tokens_BT, dtype=dtype))

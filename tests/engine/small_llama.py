"""A random Llama of two layers, and the same network written a second time: NumPy, float64, one row, no cache."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from selfreward_jax.core.mesh import make_mesh
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.load import Model, shardings
from selfreward_jax.llama.params import Params, full_shape, map_specs, param_specs

GQA = LlamaConfig(
    vocab_size=70,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=128,
)
# Each K/V head is read by so many queries that four devices can share them.
GROUPED = dataclasses.replace(GQA, vocab_size=72, num_heads=8, attention_bias=True)
VARIANTS = {
    "gqa": GQA,
    "tied_mqa": dataclasses.replace(GQA, num_kv_heads=1, tie_word_embeddings=True),
    "mha_with_biases": dataclasses.replace(GQA, num_kv_heads=4, attention_bias=True, mlp_bias=True),
}


def random_params(config: LlamaConfig, seed: int = 0, dtype=jnp.float32) -> Params:
    """Norms and biases are random too, so that none of them can be forgotten unnoticed."""
    rng = np.random.default_rng(seed)
    random = lambda spec: (spec.kind == "norm") + 0.3 * rng.normal(size=full_shape(config, spec))  # noqa: E731
    return map_specs(lambda spec: jnp.asarray(random(spec), dtype), param_specs(config))


@dataclasses.dataclass(frozen=True)
class StubChat:
    """What the engine asks of a tokenizer."""

    eos_ids: tuple[int, ...] = ()

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def small_model(config: LlamaConfig = GQA, *, eos_ids: tuple[int, ...] = (), seed: int = 0, **mesh: int) -> Model:
    """By default on one device, and never ending a text."""
    devices = make_mesh(**mesh)
    params = jax.device_put(random_params(config, seed), shardings(config, devices))
    return Model("small", config, params, StubChat(eos_ids), devices, "float32")  # type: ignore[arg-type]


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def _norm(x, weight, eps):
    return weight * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)


def _rotate(x_TE, theta):
    T, E = x_TE.shape
    angle = np.outer(np.arange(T), theta ** (-np.arange(0, E, 2) / E))
    z = (x_TE[:, : E // 2] + 1j * x_TE[:, E // 2 :]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], axis=-1)


def naive_logits(config: LlamaConfig, params: Params, tokens: Sequence[int]) -> np.ndarray:
    """Logits of every position of one row, float64 [T, V]."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    T, c = len(tokens), config
    x = p["embed"][list(tokens)]
    for n in range(c.num_layers):
        w = {name: value[n] for name, value in p["layers"].items()}
        bias = lambda name, w=w: w.get(f"{name}_bias", 0.0)  # noqa: E731
        y = _norm(x, w["attn_norm"], c.rms_norm_eps)
        attended = bias("o")
        for head in range(c.num_heads):
            kv = head * c.num_kv_heads // c.num_heads
            q, k, v = (
                y @ w[name][:, i] + (bias(name)[i] if c.attention_bias else 0.0)
                for name, i in (("q", head), ("k", kv), ("v", kv))
            )
            scores = _rotate(q, c.rope.theta) @ _rotate(k, c.rope.theta).T / np.sqrt(c.head_dim)
            scores[np.triu_indices(T, 1)] = -np.inf
            attended = attended + np.exp(log_softmax(scores)) @ v @ w["o"][head]
        x = x + attended
        y = _norm(x, w["mlp_norm"], c.rms_norm_eps)
        gate, up = y @ w["gate"] + bias("gate"), y @ w["up"] + bias("up")
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w["down"] + bias("down")
    return _norm(x, p["norm"], c.rms_norm_eps) @ (p["embed"].T if c.tie_word_embeddings else p["head"])


def naive_logp(config: LlamaConfig, params: Params, prompt: Sequence[int], response: Sequence[int]) -> float:
    """Summed log-probability of a response given its prompt."""
    logps = log_softmax(naive_logits(config, params, [*prompt, *response]))
    return sum(logps[len(prompt) - 1 + n, token] for n, token in enumerate(response))

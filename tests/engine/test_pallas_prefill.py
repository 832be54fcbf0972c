"""Prompts through the splash kernel, interpreted, are the naive attention in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from selfreward_jax.engine.attention import KV
from selfreward_jax.engine.pallas_prefill import attend_prompts

P, K, G, E = 2, 2, 2, 8


@pytest.mark.parametrize(("T", "C", "prefix_length"), [(20, 0, 0), (150, 64, 64), (70, 192, 131)])
def test_tokens_see_the_prefix_and_their_prompt_up_to_themselves(T, C, prefix_length):
    rng = np.random.default_rng(0)
    random = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    q, k, v = random(P, T, K, G, E), random(P, T, K, E), random(P, T, K, E)
    before_k, before_v = random(C, K, E), random(C, K, E)
    prefix = KV(
        jnp.asarray(before_k.transpose(1, 2, 0)[None, None]), jnp.asarray(before_v.transpose(1, 0, 2)[None, None])
    )
    found = attend_prompts(q, k, v, prefix if C else None, jnp.int32(prefix_length), interpret=True)

    expected = np.zeros(q.shape)
    for p, h in np.ndindex(P, K):
        keys = np.concatenate([before_k[:prefix_length, h], k[p, :, h]]).astype(np.float64)
        values = np.concatenate([before_v[:prefix_length, h], v[p, :, h]]).astype(np.float64)
        scores = np.einsum("tge,se->tgs", q[p, :, h], keys) / np.sqrt(E)
        seen = np.arange(len(keys)) <= prefix_length + np.arange(T)[:, None]
        weights = np.exp(scores - scores.max()) * seen[:, None]
        expected[p, :, h] = weights / weights.sum(axis=-1, keepdims=True) @ values
    np.testing.assert_allclose(found, expected, atol=1e-5)

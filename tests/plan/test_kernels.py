"""Operations of kernels, by hand."""

import pytest

from selfreward_jax.plan.kernels import kernel_flops

QUERIES, CACHE = (32, 8, 4, 128), (4, 32, 128, 1024)  # 32 rows of 8 groups, and 4 blocks of 128 positions


def test_decoding_is_two_products_of_every_query_with_a_full_cache():
    scalars, token = [(), (128,), (32,)], (32, 1, 1024)
    expected = 2 * (2 * 32 * 32 * 512 * 128)  # rows, heads, positions, head size
    assert kernel_flops("append_and_attend.1", [*scalars, QUERIES, token, token, CACHE, CACHE], []) == expected
    assert kernel_flops("attend_used.7", [*scalars, QUERIES, CACHE, CACHE], []) == expected


@pytest.mark.parametrize("prefix", [0, 512])
def test_a_causal_mask_halves_a_square_and_what_stands_before_it_is_seen_whole(prefix):
    T, H, K, E = 2048, 8, 2, 128
    keys = (K, prefix + T, E)
    found = kernel_flops("splash_mha_fwd_no_residuals.1", [(1, 4, 5), (H, T, E), keys, keys, (T, 128)], [])
    assert found == 2 * (2 * H * E * (T * prefix + T * T / 2))


def test_another_kernel_is_not_guessed_at():
    assert kernel_flops("fused_norm.1", [(8, 128)], [(8, 128)]) is None

"""Llama-3.1-70B with the paper's recipe. Give the weights: --config.model.path=DIR.

On a slice of TPUs: --config=configs/llama3_70b.py:v5p-128 (or v5e-256, v6e-256).
"""

from ml_collections import ConfigDict

from selfreward_jax.configs import layouts, llama2_70b


def get_config(where: str = "") -> ConfigDict:
    c = llama2_70b.get_config()
    c.model.path = "models/Llama-3.1-70B"
    layouts.lay_out(c, "llama-3.1-70b", where)
    return c

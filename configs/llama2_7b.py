"""Llama-2-7B with the paper's recipe. Give the weights: --config.model.path=DIR.

On a slice of TPUs: --config=configs/llama2_7b.py:v5e-256 (or v5p-128, v6e-256).
"""

from ml_collections import ConfigDict

from selfreward_jax.configs import layouts, llama3_8b


def get_config(where: str = "") -> ConfigDict:
    c = llama3_8b.get_config()
    c.model.path = "models/Llama-2-7b-hf"
    layouts.lay_out(c, "llama-2-7b", where)
    return c

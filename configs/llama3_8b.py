"""Llama-3.1-8B with the paper's recipe. Give the weights: --config.model.path=DIR.

On a slice of TPUs: --config=configs/llama3_8b.py:v5e-256 (or v5p-128, v6e-256).
"""

from ml_collections import ConfigDict

from selfreward_jax.configs import base, layouts


def get_config(where: str = "") -> ConfigDict:
    c = base.get_config()
    c.model.path = "models/Llama-3.1-8B"
    c.sft.learning_rate = 5e-6
    c.sft.final_learning_rate = 1e-6
    c.dpo.learning_rate = 5e-7  # what works at this size in public recipes; the paper's is for 70B
    c.dpo.final_learning_rate = 5e-8
    c.generation.slots = 256
    layouts.lay_out(c, "llama-3.1-8b", where)
    return c

"""The paper's own model, Llama-2-70B, with the paper's own numbers. Give the weights: --config.model.path=DIR.

On a slice of TPUs: --config=configs/llama2_70b.py:v5p-128 (or v5e-256, v6e-256).
"""

from ml_collections import ConfigDict

from selfreward_jax.configs import base, layouts


def get_config(where: str = "") -> ConfigDict:
    c = base.get_config()
    c.model.path = "models/Llama-2-70b-hf"
    c.mesh.tensor = 4
    c.sft.micro_batch_size = 16
    c.dpo.micro_batch_size = 16
    c.generation.slots = 256
    layouts.lay_out(c, "llama-2-70b", where)
    return c

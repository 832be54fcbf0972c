"""Llama-3.1-8B with the paper's recipe, on one slice. Give the weights: --config.model.path=DIR."""

from ml_collections import ConfigDict

from selfreward_jax.configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.model.path = "models/Llama-3.1-8B"
    c.sft.learning_rate = 5e-6
    c.sft.final_learning_rate = 1e-6
    c.dpo.learning_rate = 5e-7  # what works at this size in public recipes; the paper's is for 70B
    c.dpo.final_learning_rate = 5e-8
    c.generation.slots = 256
    return c

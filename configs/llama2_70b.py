"""The paper's own model, Llama-2-70B, with the paper's own numbers. Give the weights: --config.model.path=DIR."""

from ml_collections import ConfigDict

from selfreward_jax.configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.model.path = "models/Llama-2-70b-hf"
    c.mesh.tensor = 4
    c.sft.micro_batch_size = 16
    c.dpo.micro_batch_size = 16
    c.generation.slots = 256
    return c

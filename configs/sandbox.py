"""The whole loop in the made world of `selfreward sandbox`, where every answer's true score is known.

A Llama of a million weights learns from nothing to answer, to judge and to write tasks; then the same code as for any
other model goes on: M1, M2, M3. The verb fills in the files of the world.
"""

from ml_collections import ConfigDict

from selfreward_jax.configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.model.dtype = "float32"
    c.mesh.fsdp = 1

    c.sft.learning_rate = 3e-3
    c.sft.final_learning_rate = 1e-4
    c.sft.warmup_steps = 50
    c.sft.batch_size = 64
    c.sft.epochs = 6
    c.sft.dropout = 0.0
    c.sft.max_length = 256

    c.prompts.generator = "current"  # M0 has random weights
    c.prompts.count = 400
    c.prompts.min_words = 2
    c.prompts.max_new_tokens = 16

    c.respond.max_new_tokens = 16
    c.judge.max_new_tokens = 24

    c.dpo.learning_rate = 3e-5
    c.dpo.final_learning_rate = 3e-6
    c.dpo.batch_size = 16
    c.dpo.dropout = 0.0
    c.dpo.max_length = 64

    c.training.length_bucket = 32
    c.training.head_chunk = 128
    c.training.remat = "none"
    c.training.pack = 256
    c.generation.slots = 256
    c.generation.score_rows = 256
    c.checkpoint.every_steps = 100000
    c.log.tensorboard = False
    return c

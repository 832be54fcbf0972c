"""Self-Rewarding Language Models (arXiv 2401.10020) in JAX: a model answers, judges its answers, and learns from it.

`import selfreward_jax as sr` gives the functions of `selfreward_jax.api`, loaded when one of them is first used.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "LoraSettings",
    "config", "dpo", "export", "generate", "judge", "judge_metrics", "load", "pairs", "run", "sample_rows",
    "score", "sft", "table",
]  # fmt: skip

if TYPE_CHECKING:
    from selfreward_jax.api import (
        LoraSettings,
        config,
        dpo,
        export,
        generate,
        judge,
        judge_metrics,
        load,
        pairs,
        run,
        sample_rows,
        score,
        sft,
        table,
    )


def __getattr__(name: str):
    if name in __all__:
        return getattr(importlib.import_module("selfreward_jax.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Shapes of well-known public models, so that a run can be planned before their weights are here."""

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.paths import local_path
from selfreward_jax.llama.config import LlamaConfig, RopeConfig
from selfreward_jax.llama.load import read_config

_LLAMA_31 = RopeConfig(theta=500000.0, type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
_LLAMA_32 = RopeConfig(theta=500000.0, type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0)


def _llama2(width: int, mlp: int, layers: int, heads: int, kv_heads: int) -> LlamaConfig:
    return LlamaConfig(32000, width, mlp, layers, heads, kv_heads, 128, bos_token_id=1, eos_token_ids=(2,))


def _llama3(
    width: int, mlp: int, layers: int, heads: int, size: int, rope: RopeConfig = _LLAMA_31, tied: bool = False
) -> LlamaConfig:
    return LlamaConfig(
        128256, width, mlp, layers, heads, 8, size, rope=rope, max_position_embeddings=131072,
        tie_word_embeddings=tied, bos_token_id=128000, eos_token_ids=(128001,),
    )  # fmt: skip


# By the beginning of the model's name, in lower case; longer ones first.
SHAPES: dict[str, LlamaConfig] = {
    "llama-2-7b": _llama2(4096, 11008, 32, 32, 32),
    "llama-2-13b": _llama2(5120, 13824, 40, 40, 40),
    "llama-2-70b": _llama2(8192, 28672, 80, 64, 8),
    "llama-3.1-8b": _llama3(4096, 14336, 32, 32, 128),
    "llama-3.1-70b": _llama3(8192, 28672, 80, 64, 128),
    "llama-3.3-70b": _llama3(8192, 28672, 80, 64, 128),
    "llama-3.2-1b": _llama3(2048, 8192, 16, 32, 64, _LLAMA_32, tied=True),
    "llama-3.2-3b": _llama3(3072, 8192, 28, 24, 128, _LLAMA_32, tied=True),
    "smollm2-135m": LlamaConfig(
        49152, 576, 1536, 30, 9, 3, 64, rope=RopeConfig(theta=100000.0), max_position_embeddings=8192,
        tie_word_embeddings=True, bos_token_id=1, eos_token_ids=(2,),
    ),
}  # fmt: skip


def shape_of(path: str) -> LlamaConfig:
    """A model's shape: from its files, or for one that isn't here from its name, or else from the hub.

    Raises:
      UserError: it is neither here nor known, or its files are of no use.
    """
    name = path.rstrip("/").rsplit("/", 1)[-1].lower()
    known = next((shape for start, shape in SHAPES.items() if name.startswith(start)), None)
    if known is None or path.startswith("package:") or (path and local_path(path).exists()):
        try:
            return read_config(path)
        except UserError as error:
            if path and not path.startswith("package:") and not local_path(path).exists():
                raise UserError(
                    f"{error} Without its files these can be planned by name: {', '.join(SHAPES)}."
                ) from None
            raise
    return known

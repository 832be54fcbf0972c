"""The shape of a Llama-family model, read from and written to Hugging Face `config.json`.

Everything that the forward pass would not honour is refused here by name, so that a model never runs with a
feature silently left out.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from selfreward_jax.core.errors import UserError, shown

# What a number may be, lowest and highest. The limits of sizes stand far above every model's (the largest today: 126
# layers, width 16,384, 256 Ki tokens): they keep a broken or hostile file from taking all memory or time before its
# weights, against which sizes are checked, have been looked at.
SIZES = {
    "vocab_size": (1, 1 << 24),
    "hidden_size": (1, 1 << 20),
    "intermediate_size": (1, 1 << 22),
    "num_hidden_layers": (1, 10_000),
    "num_attention_heads": (1, 1 << 16),
    "num_key_value_heads": (1, 1 << 16),
    "head_dim": (2, 1 << 16),
    "max_position_embeddings": (1, (1 << 31) - 1),  # positions are int32
    "original_max_position_embeddings": (1, (1 << 31) - 1),
    "token id": (-1, (1 << 31) - 1),  # int32; old files say -1 where there is no padding
}
NUMBERS = {
    "rms_norm_eps": (1e-20, 1.0),  # smaller ones are 0 when squared numbers are float32, and a row of zeros then NaN
    "rope_theta": (1.0, 1e30),  # below 1 positions turn the wrong way; float32 ends at 3e38
    "factor": (1e-3, 1e6),
    "low_freq_factor": (1e-6, 1e6),
    "high_freq_factor": (1e-6, 1e6),
}

_AS_TEXT = re.compile(r"\d+(\.\d+)?([eE][+-]?\d{1,3})?", re.ASCII)  # as some programs write `1e-05`

# Keys of other architectures (or of Llama variants) that change the forward pass; a set value is refused.
UNSUPPORTED_KEYS = (
    "sliding_window",
    "quantization_config",
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "attention_chunk_size",
    "no_rope_layers",
    "rope_interleaved",
    "use_qk_norm",
    "qk_norm",
    "clip_qkv",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "logit_scale",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
)


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: `default`, `linear` (positions divided by factor) or `llama3` (scaled by band)."""

    theta: float = 10000.0
    type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Hashable, so that it can be static under `jax.jit`. Sizes are counts, ids are token ids."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope: RopeConfig = RopeConfig()
    max_position_embeddings: int = 4096
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    model_type: str = "llama"


def number(where: str, name: str, value: Any, limits: str = "") -> Any:
    """A number of a model file: an int for what is in `SIZES`, a float for what is in `NUMBERS`.

    Args:
      where: the file, for error messages.
      name: of the field there.
      limits: the name in the tables, where the file's is another.

    Raises:
      UserError: it is no number, or outside of its limits.
    """
    key = limits or name
    given: Any = float(value) if key in NUMBERS and isinstance(value, str) and _AS_TEXT.fullmatch(value) else value
    low, high = SIZES[key] if key in SIZES else NUMBERS[key]
    # Comparing first: NaN is in no range, and an integer of 400 digits is no float.
    if type(given) in (int, float) and low <= given <= high and (key in NUMBERS or given == int(given)):
        return float(given) if key in NUMBERS else int(given)
    kind = "number" if key in NUMBERS else "whole number"
    raise UserError(f"{where}: {name} is {shown(value)}; a {kind} from {low:,} to {high:,} is needed.")


def token_ids(where: str, name: str, value: Any) -> tuple[int, ...]:
    """What a field says that holds a token id, a list of them, or nothing."""
    if value is None:
        return ()
    low, high = SIZES["token id"]
    ids: list[Any] = value if isinstance(value, list) else [value]
    ids = [int(token) if type(token) is float and token.is_integer() else token for token in ids]
    if not all(type(token) is int and low <= token <= high for token in ids):
        raise UserError(f"{where}: {name} is {shown(value)}; an id or a list of ids is needed.")
    return tuple(dict.fromkeys(ids))


def check_config(config: LlamaConfig, where: str) -> LlamaConfig:
    """The same configuration, if its sizes can be those of a model.

    Raises:
      UserError: they contradict each other.
    """
    if config.num_heads % config.num_kv_heads:
        heads = f"{config.num_heads} heads in {config.num_kv_heads} groups of keys and values"
        raise UserError(f"{where}: {heads}; num_key_value_heads must divide num_attention_heads.")
    if config.head_dim < 2 or config.head_dim % 2:
        raise UserError(f"{where}: heads of size {config.head_dim}; rotary embeddings need an even head_dim.")
    if config.rope.type == "llama3" and not config.rope.low_freq_factor < config.rope.high_freq_factor:
        raise UserError(f"{where}: low_freq_factor must be below high_freq_factor.")
    return config


def _rope_from_hf(hf: Mapping[str, Any], where: str) -> RopeConfig:
    parameters = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping) or any(isinstance(value, Mapping) for value in parameters.values()):
        raise UserError(f"{where}: rope_parameters is {shown(parameters)}, not an object of numbers and words.")
    theta = number(where, "rope_theta", parameters.get("rope_theta", hf.get("rope_theta", 10000.0)))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    partial = parameters.get("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1, 1.0):
        raise UserError(f"{where}: partial_rotary_factor {shown(partial)} is not supported; only full rotation is.")
    needed = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
    if not isinstance(kind, str) or kind not in needed:
        raise UserError(f"{where}: rope type {shown(kind)} is not supported; default, linear and llama3 are.")
    if missing := [name for name in needed[kind] if name not in parameters]:
        raise UserError(f"{where}: rope type {kind!r} needs the field {missing[0]!r}.")
    values = {name: number(where, f"rope {name}", parameters[name], name) for name in needed[kind]}
    return RopeConfig(theta=theta, type=kind, **values)


def config_from_hf(hf: Mapping[str, Any], where: str = "config.json") -> LlamaConfig:
    """Reads the `config.json` of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`).

    Args:
      hf: the parsed file.
      where: its name, for error messages.

    Raises:
      UserError: a field that is missing or of no use, or a feature that the forward pass would not honour.
    """
    kind = hf.get("model_type")
    if kind not in ("llama", "mistral"):
        raise UserError(f"{where}: model_type {shown(kind)} is not supported; llama and mistral (dense) are.")
    # What transformers takes where a file leaves a field out differs by model type.
    mistral = {"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131072}
    defaults = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6} | (mistral if kind == "mistral" else {})
    for key in UNSUPPORTED_KEYS:
        if (value := hf.get(key, defaults.get(key))) not in (None, False, [], {}):
            raise UserError(
                f"{where}: {key} = {shown(value)} is not supported; the model would answer wrongly without it."
            )
    layer_types = hf.get("layer_types") or ["full_attention"]
    if not isinstance(layer_types, list) or any(name != "full_attention" for name in layer_types):
        raise UserError(f"{where}: layer_types {shown(layer_types)} are not supported; only full_attention is.")
    if hf.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: hidden_act {shown(hf['hidden_act'])} is not supported; silu is.")

    def size(name: str, default: int | None = None) -> Any:
        """A size or a number; where the file has none, or null in the place of what may be left out, the default."""
        value = hf.get(name, defaults.get(name))
        value = default if value is None and default is not None else value
        if value is None and name not in hf:
            raise UserError(f"{where}: the field {name!r} is missing.")
        return number(where, name, value)

    def flag(name: str) -> bool:
        value = hf.get(name)
        if value is not None and type(value) is not bool and not (type(value) is int and value in (0, 1)):
            raise UserError(f"{where}: {name} is {shown(value)}; true or false is needed.")
        return bool(value)

    def token(name: str) -> int | None:
        return None if hf.get(name) is None else number(where, name, hf[name], "token id")

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    config = LlamaConfig(
        vocab_size=size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=size("intermediate_size"),
        num_layers=size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", hidden // heads),
        rms_norm_eps=size("rms_norm_eps"),
        rope=_rope_from_hf(hf, where),
        max_position_embeddings=size("max_position_embeddings"),
        tie_word_embeddings=flag("tie_word_embeddings"),
        attention_bias=flag("attention_bias"),
        mlp_bias=flag("mlp_bias"),
        bos_token_id=token("bos_token_id"),
        eos_token_ids=token_ids(where, "eos_token_id", hf.get("eos_token_id")),
        pad_token_id=token("pad_token_id"),
        model_type=kind,
    )
    return check_config(config, where)


def config_to_hf(config: LlamaConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` that transformers 4 and 5 both read; `dtype` is the dtype of the saved weights."""
    rope: dict[str, Any] = {"rope_type": config.rope.type, "rope_theta": config.rope.theta}
    if config.rope.type != "default":
        rope["factor"] = config.rope.factor
    if config.rope.type == "llama3":
        rope["low_freq_factor"] = config.rope.low_freq_factor
        rope["high_freq_factor"] = config.rope.high_freq_factor
        rope["original_max_position_embeddings"] = config.rope.original_max_position_embeddings
    eos = list(config.eos_token_ids)
    hf = {
        "architectures": ["MistralForCausalLM" if config.model_type == "mistral" else "LlamaForCausalLM"],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": None if config.rope.type == "default" else rope,
        "rope_parameters": rope,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": dtype,
        "dtype": dtype,
        "use_cache": True,
    }
    if config.model_type == "mistral":
        hf["sliding_window"] = None
    else:
        hf |= {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    return hf


def config_to_json(config: LlamaConfig, dtype: str) -> str:
    return json.dumps(config_to_hf(config, dtype), indent=2) + "\n"

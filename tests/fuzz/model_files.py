"""Model folders, GGUF files, adapters and names of models that are nearly right."""

import copy
import functools
import json
import os
import random
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
import transformers  # noqa: F401  what reads tokenizers takes seconds to import, once before the processes are forked
from etils import epath
from sentencepiece import sentencepiece_model_pb2
from tokenizers import pre_tokenizers

from selfreward_jax.llama import gguf, hf_save, load
from selfreward_jax.llama.config import config_from_hf, config_to_json
from selfreward_jax.llama.hf import tensor_shapes
from selfreward_jax.llama.lora import PEFT_PREFIX
from selfreward_jax.llama.params import full_shape, is_spec, param_specs
from tests.fuzz import mutate

Files = Mapping[str, bytes]
Target = Callable[[random.Random, Path], Callable[[], object]]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": [2, 0],
    "pad_token_id": None,
    "torch_dtype": "float32",
    "layer_types": ["full_attention", "full_attention"],
    "sliding_window": None,
}
GENERATION = {"bos_token_id": 1, "eos_token_id": [2, 0], "temperature": 0.6, "do_sample": True}
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"))
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ADAPTER: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "base",
    "r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.0,
    "use_rslora": False,
    "target_modules": ["q_proj", "v_proj"],
    "exclude_modules": None,
    "rank_pattern": {"layers.0.self_attn.q_proj": 3},
    "alpha_pattern": {".*1.self_attn.*": 8},
    "layers_to_transform": None,
    "layers_pattern": None,
    "bias": "none",
    "init_lora_weights": True,
    "modules_to_save": None,
}
# What a model's own files can hold that is worse than a wrong type.
NASTY: tuple[Any, ...] = (
    0, -1, 3, 7, 10**8, 2**31 - 1, 2**32, 10**20, 1e-40, 1e30, -5.0, "no", "NaN", "9" * 5000, [2**31], [[1]], [-1],
    "(a+)+b", "(.*)*x", ".*.*.*.*.*.*q", "(a|a)*$", "(", "[", "\\", "(?P<x>a)(?P=x)", "a{1,9999}{1,9999}", "*",
    {"Regex": "(a+)+(?!a)b"}, {"Regex": "("}, {"Regex": "\\s*\\s*\\s*\\s*\\s*\\s*x"}, {"String": ""}, {"String": "e"},
    {"type": "yarn", "factor": 4.0}, {"rope_type": "llama3"}, {"type": "linear", "factor": 0}, "x" * 5000,
    {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 3000}, {"type": "Prepend", "prepend": ""},
    {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 99}] * 20},
    {"type": "Split", "pattern": {"Regex": "(a+)+(?!a)b"}, "behavior": "Isolated", "invert": False},
    {"type": "Unigram", "unk_id": None, "vocab": []}, {"type": "WordLevel", "vocab": {}, "unk_token": "x"},
    {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "y", "max_input_chars_per_word": 2**60},
    {"strategy": {"Fixed": 2**60}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0},
    {"max_length": 2**60, "strategy": "LongestFirst", "stride": 2**60, "direction": "Right"}, "../../etc/passwd", "..",
    "/dev/zero", "model.safetensors", "", "all-linear", "q_proj", ["q_proj"] * 1000, {"q_proj": 10**9}, {"(a+)+": 2},
    {"content": "", "special": True}, {"id": 2**32 - 1, "content": "<x>", "special": True, "normalized": False},
)  # fmt: skip
COUNTS = (0, 1, 2, 7, 255, 2**16, 10**8, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1)
NAMES = ("org/name", "org/name@main", "org/name@" + "0" * 40, "org/name/x.gguf", "package:json", "base", "~/base")


# ---------------------------------------------------------------------------------------------------------------------
# Valid files


def vocabulary() -> dict[str, int]:
    pieces = [*CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    return {piece: number for number, piece in enumerate(pieces)}


def tokenizer() -> dict[str, Any]:
    """What `tokenizer.json` says."""
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    begin = {"SpecialToken": {"id": CONTROL[1], "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": n, "content": text, **added} for n, text in enumerate(CONTROL)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": r"\p{N}{1,3}| ?\p{L}+|\s+"},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {CONTROL[1]: {"id": CONTROL[1], "ids": [1], "tokens": [CONTROL[1]]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary(),
            "merges": [list(pair) for pair in MERGES],
        },
    }


def tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": CONTROL[1],
        "eos_token": {"__type": "AddedToken", "content": CONTROL[2], "special": True},
        "pad_token": None,
        "chat_template": TEMPLATE,
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "additional_special_tokens": [],
        "added_tokens_decoder": {"0": {"content": CONTROL[0], "special": True}},
    }


def weights() -> dict[str, np.ndarray]:
    config = config_from_hf(CONFIG)
    return {name: _noise(shape) for name, shape in tensor_shapes(config, param_specs(config)).items()}


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@functools.cache
def folder() -> Files:
    """A whole model folder."""
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "generation_config.json": json.dumps(GENERATION).encode(),
        "tokenizer.json": json.dumps(tokenizer()).encode(),
        "tokenizer_config.json": json.dumps(tokenizer_config()).encode(),
        "model.safetensors": safetensors.numpy.save(weights(), {"format": "pt"}),
    }


@functools.cache
def sentencepiece() -> bytes:
    proto: Any = sentencepiece_model_pb2
    model = proto.ModelProto()
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{n:02X}>", 6) for n in range(256))]
    for piece, kind in [*pieces, *((text, 1) for text in ("▁", "h", "e", "l", "o", "he", "ll", "hell", "hello"))]:
        model.pieces.add(piece=piece, score=-float(len(model.pieces)), type=kind)
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()


def gguf_fields() -> dict[str, Any]:
    texts = list(vocabulary())
    return {
        "general.architecture": "llama",
        "general.alignment": 32,
        "general.license": "mit",
        "llama.context_length": 256,
        "llama.embedding_length": 8,
        "llama.block_count": 2,
        "llama.feed_forward_length": 12,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": [1, 1],
        "llama.rope.dimension_count": 4,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.scaling.factor": 2.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": 300,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [3 if text in CONTROL else 1 for text in texts],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def write_gguf(fields: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], int, bytes]]) -> bytes:
    """A GGUF file of any fields, of types that follow from the values; tensors as sizes, type and bytes."""

    def text(value: str) -> bytes:
        data = value.encode(errors="surrogatepass")
        return struct.pack("<Q", len(data)) + data

    def typed(value: Any) -> tuple[int, bytes]:
        if isinstance(value, bool):
            return 7, bytes([value])
        if isinstance(value, int):
            return (4, struct.pack("<I", value)) if 0 <= value < 2**32 else (10, struct.pack("<Q", value % 2**64))
        if isinstance(value, float):
            return 12, struct.pack("<d", value)
        if isinstance(value, list):
            made = [typed(entry) for entry in value]
            kind = made[0][0] if made else 4
            return 9, struct.pack("<IQ", kind, len(made)) + b"".join(data for _, data in made)
        return 8, text(value if isinstance(value, str) else str(value))

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    for key, value in fields.items():
        kind, data = typed(value)
        head += text(key) + struct.pack("<I", kind) + data
    place = 0
    for name, (shape, kind, data) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, place)
        place += len(data) + -len(data) % 32
    body = b"".join(data + bytes(-len(data) % 32) for _, _, data in tensors.values())
    return head + bytes(-len(head) % 32) + body


@functools.cache
def gguf_tensors() -> Mapping[str, tuple[tuple[int, ...], int, bytes]]:
    names = {value: key for key, value in (gguf.NAMES | gguf.LAYER_NAMES).items()}
    found = {}
    for name, array in weights().items():
        words = name.split(".")
        stem = names.get(".".join(words[3:-1] if "layers" in words else words[:-1]))
        found[f"blk.{words[2]}.{stem}.weight" if "layers" in words else f"{stem}.weight"] = (
            array.shape,
            0,
            array.tobytes(),
        )
    return found


@functools.cache
def adapter_weights() -> bytes:
    tensors = {}
    for layer in range(2):
        for name, outputs in (("q_proj", 8), ("v_proj", 4)):
            rank = 3 if (layer, name) == (0, "q_proj") else 2
            stem = f"{PEFT_PREFIX}model.layers.{layer}.self_attn.{name}"
            tensors[f"{stem}.lora_A.weight"] = _noise((rank, 8))
            tensors[f"{stem}.lora_B.weight"] = _noise((outputs, rank))
    return safetensors.numpy.save(tensors)


# ---------------------------------------------------------------------------------------------------------------------
# What is done to them


def write(at: Path, files: Files) -> Path:
    for name, data in files.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(data)
    return at


def spoilt(rng: random.Random, value: Any) -> bytes:
    """A JSON value with something changed that only a model's file can hold, or as any JSON."""
    if rng.random() < 0.4:
        return mutate.as_json(rng, value)
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2))):
        there = mutate.places(value)
        # Long tables would take nearly all changes.
        holder, key = rng.choice([place for place in there if len(place[0]) < 40 or rng.random() < 0.05] or there)
        old, what = holder[key], rng.random()
        if what < 0.3 and isinstance(old, int | float):
            holder[key] = rng.choice((old * 2, old + 1, -old, old * 10**6, old / 3, 1e-7 * old, str(old), [old]))
        elif what < 0.4:
            holder[key] = [old] * rng.choice((2, 50)) if rng.random() < 0.5 else {"a": old}
        else:
            holder[key] = copy.deepcopy(rng.choice(NASTY))
    return json.dumps(value).encode()


def miscounted(rng: random.Random, data: bytes) -> bytes:
    """Bytes in which a number, such as a length, is another."""
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.choice((0, 4, 8, 16, rng.randrange(len(data)), rng.randrange(min(len(data), 2000))))
        form = rng.choice(("<I", "<Q"))
        new = struct.pack(form, rng.choice(COUNTS) % (2**32 if form == "<I" else 2**64))
        data = data[:at] + new + data[at + len(new) :]
    return data


def tensors_spoilt(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file with a change in its header, in a length, or anywhere."""
    length = int.from_bytes(data[:8], "little")
    header, what = json.loads(data[8 : 8 + length]), rng.random()
    if what < 0.3:
        return miscounted(rng, data)
    if what < 0.4:
        return mutate.mutated(rng, data)
    name = rng.choice([key for key in header if key != "__metadata__"])
    if what < 0.5:
        header[rng.choice((name.upper(), f"{name}\x1b[2J\n", "", "x" * 3000, "\ud800"))] = header.pop(name)
    elif what < 0.6:
        header[name]["dtype"] = rng.choice(("F64", "I8", "F4", "BF16", "BOOL", "C64", "x", None, 3, "F8_E4M3"))
    elif what < 0.7:
        header[name]["shape"] = rng.choice(([0], [], [-1, 8], [2**62, 4], [2**32, 2**32], "x", [1.5], [1] * 1000))
    elif what < 0.8:
        header[name]["data_offsets"] = rng.choice(([0, 4], [4, 0], [-4, 0], [0, 2**63], [2**64], None, [0, 10**20]))
    else:
        text = spoilt(rng, header)
        return rng.choice((len(text), 2**63, 10**8)).to_bytes(8, "little") + text + data[8 + length :]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def odd(rng: random.Random, path: Path) -> None:
    """Something else in the place of a file."""
    path.unlink(missing_ok=True)
    what = rng.randrange(8)
    if what == 0:
        path.mkdir()
    elif what == 1:
        os.mkfifo(path)
    elif what == 2:
        path.symlink_to(path)
    elif what == 3:
        path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/dev/stdin", "/proc/self/mem", "/nowhere", "..")))
    elif what == 4:
        path.write_bytes(b"")
    elif what == 5:
        with path.open("wb") as file:
            file.truncate(rng.choice((1 << 20, 200 << 20, 1 << 30)))
    elif what == 6:
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    else:
        path.write_bytes(rng.randbytes(rng.randrange(1, 5000)))


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def reading(path: Path, adapter: Path | None = None, weighty: bool = True) -> Callable[[], object]:
    """Loads a model as the package does, uses its tokenizer, and looks whether its weights are what its shape says."""

    def read() -> None:
        config, chat = load.load_chat(str(path))
        config_to_json(config, "float32")
        prompt = [{"role": "user", "content": "hello  world 12345\n" + "a" * 30 + " é\u200b<|im_end|>"}]
        ids = chat.prompt_ids(prompt)
        assert all(0 <= i < config.vocab_size for i in ids), "an id beyond the vocabulary"
        assert len(ids) < 100_000
        chat.decode(ids)
        assert chat.hashes
        if not weighty:
            return
        model = load.load_model(str(path), chat=(config, chat), adapter=str(adapter or ""))
        shapes = jax.tree.map(lambda spec: full_shape(config, spec), param_specs(config), is_leaf=is_spec)
        assert jax.tree.map(lambda array: array.shape, model.params) == shapes
        hf_save.write_tokenizer(epath.Path(path.parent / "written"), chat.tokenizer)

    return read


def one_file(name: str, change: Callable[[random.Random], bytes], *, weighty: bool = False, **others: bytes) -> Target:
    """A folder in which one file is changed; `others` take the place of its own, where empty none."""

    def target(rng: random.Random, at: Path) -> Callable[[], object]:
        files = {**folder(), **{key.replace("__", "."): data for key, data in others.items()}, name: change(rng)}
        return reading(write(at / "model", {key: data for key, data in files.items() if data}), weighty=weighty)

    return target


def sharded(rng: random.Random, at: Path) -> Callable[[], object]:
    whole = dict(folder())
    data = whole.pop("model.safetensors")
    names = list(weights())
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    files = whole | {
        "model-00001-of-00001.safetensors": data if rng.random() < 0.8 else tensors_spoilt(rng, data),
        "model.safetensors.index.json": spoilt(rng, index),
    }
    return reading(write(at / "model", files))


def gguf_file(rng: random.Random, at: Path) -> Callable[[], object]:
    fields, tensors, what = gguf_fields(), dict(gguf_tensors()), rng.random()
    if what < 0.4:
        try:
            changed = json.loads(spoilt(rng, fields))
            fields = changed if isinstance(changed, dict) else fields
        except (ValueError, RecursionError):
            fields = {}
    elif what < 0.6:
        name = rng.choice(list(tensors))
        shape, kind, data = tensors.pop(name)
        shape = rng.choice((shape, (0, 8), (2**63, 2), (2**32, 2**32), (1,) * 9, (8,), (2**64 - 1,), shape[::-1]))
        tensors[rng.choice((name, name.upper(), "rope_freqs.weight", "\x1b[2J", ""))] = (
            shape,
            rng.choice((0, 1, 2, 8, 30, 5, 99, 2**31)),
            data[: rng.choice((len(data), 4, 0))],
        )
    data = write_gguf(fields, tensors)
    if what >= 0.6:
        data = miscounted(rng, data) if rng.random() < 0.6 else mutate.mutated(rng, data)
    name = rng.choice(("model.gguf", "model.gguf", "m-00001-of-00002.gguf", "m-00001-of-99999.gguf"))
    write(at, {name: data} | ({"m-00002-of-00002.gguf": data} if "00002" in name else {}))
    return reading(at / name)


def adapter(rng: random.Random, at: Path) -> Callable[[], object]:
    config, data, what = (
        json.dumps(ADAPTER | {"base_model_name_or_path": str(at / "model")}).encode(),
        b"",
        rng.random(),
    )
    data = adapter_weights()
    if what < 0.7:
        config = spoilt(rng, json.loads(config))
    else:
        data = tensors_spoilt(rng, data)
    write(at / "model", folder())
    write(at / "adapter", {"adapter_config.json": config, "adapter_model.safetensors": data})
    return reading(at / "adapter") if rng.random() < 0.3 else reading(at / "model", at / "adapter")


def odd_files(rng: random.Random, at: Path) -> Callable[[], object]:
    write(at / "model", folder())
    write(at / "adapter", {"adapter_config.json": json.dumps(ADAPTER).encode()})
    write(at / "adapter", {"adapter_model.safetensors": adapter_weights()})
    extra = ("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "model.json")
    names = [f"model/{name}" for name in (*folder(), *extra)]
    odd(rng, at / rng.choice([*names, "adapter/adapter_config.json", "adapter/adapter_model.safetensors"]))
    return reading(at / "model", at / "adapter")


def name(rng: random.Random, at: Path) -> Callable[[], object]:
    """The name of a model, of any kind but an object store's, which would have to be asked."""
    write(at / "base", folder())
    words = [word for word in mutate.WORDS if "://" not in word or word.startswith(("s3:", "file:"))]
    word = rng.choice(NAMES) if rng.random() < 0.6 else rng.choice(words)
    if rng.random() < 0.7:
        cut = rng.randrange(len(word) + 1)
        word = word[:cut] + rng.choice(("/", "@", "..", "\x00", "\n", " ", "é", "%2e", *words)) + word[cut:]

    return lambda: load.load_chat(word)


def extra(rng: random.Random, at: Path) -> Callable[[], object]:
    """A folder with one file more, which `transformers` looks at."""
    files = {
        "special_tokens_map.json": spoilt(rng, {"bos_token": CONTROL[1], "additional_special_tokens": [CONTROL[0]]}),
        "added_tokens.json": spoilt(rng, {CONTROL[0]: 0, "<new>": 270}),
        "chat_template.jinja": mutate.mutated(rng, TEMPLATE.encode()),
        "chat_template.json": spoilt(rng, {"chat_template": TEMPLATE}),
        "additional_chat_templates/x.jinja": mutate.mutated(rng, TEMPLATE.encode()),
        "model.json": spoilt(rng, {"checkpoint": 3, "hash": "x", "weights": "merged", "date": "2024-01-01"}),
        "provenance.json": spoilt(rng, {"hash": "x", "chat_template": "y", "date": "2024-01-01"}),
    }
    which = rng.choice(list(files))
    return reading(write(at / "model", {**folder(), which: files[which]}), weighty=which == "model.json")


TARGETS: dict[str, Target] = {
    "config": one_file("config.json", lambda rng: spoilt(rng, CONFIG), weighty=True),
    "generation_config": one_file("generation_config.json", lambda rng: spoilt(rng, GENERATION)),
    "tokenizer": one_file("tokenizer.json", lambda rng: spoilt(rng, tokenizer())),
    "tokenizer_config": one_file("tokenizer_config.json", lambda rng: spoilt(rng, tokenizer_config())),
    "weights": one_file(
        "model.safetensors", lambda rng: tensors_spoilt(rng, folder()["model.safetensors"]), weighty=True
    ),
    "sentencepiece": one_file(
        "tokenizer.model",
        lambda rng: rng.choice((miscounted, mutate.mutated))(rng, sentencepiece()),
        tokenizer__json=b"",
    ),
    "sharded": sharded,
    "gguf": gguf_file,
    "adapter": adapter,
    "odd_files": odd_files,
    "name": name,
    "extra": extra,
}

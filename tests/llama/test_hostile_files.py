"""Files of strangers: what they claim is held to what they hold, in one line, at once, without the memory for it."""

import functools
import json
import os
import random
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.mesh import make_mesh
from selfreward_jax.llama import gguf, hf, hub, load, peft
from selfreward_jax.llama.config import LlamaConfig, config_from_hf
from selfreward_jax.llama.patterns import check_pattern
from selfreward_jax.llama.peft import load_adapter
from tests.fuzz import model_files as files

PROMPT = [{"role": "user", "content": "hello 1 " + "a" * 40}]
DEEP = 100_000


def refused(read: Callable[[], Any], *expected: str) -> None:
    """One line, within seconds, and within 200 MiB."""
    peak, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UserError) as caught:
        read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200 << 10
    assert time.process_time() - begun < 5
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    for text in expected:
        assert text in str(caught.value)


def use(folder: Path) -> None:
    _, chat = load.load_chat(str(folder))
    chat.prompt_ids(PROMPT)


@pytest.fixture
def folder(tmp_path) -> Path:
    return files.write(tmp_path / "model", files.folder())


def rewrite(path: Path, change: Callable[[dict], Any]) -> None:
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


# ---------------------------------------------------------------------------------------------------------------------
# config.json

ROPE = files.CONFIG["rope_scaling"]
BAD_FIELDS = [
    ("num_hidden_layers", (0, -1, 10**8, 1e8, float("nan"), float("inf"), "2", True, None, [2], 2.5, 10**400)),
    ("num_attention_heads", (0, -2, 3.5, "2", 10**9)),
    ("num_key_value_heads", (0, -1, 3, "1", 2**31)),
    ("hidden_size", (0, 2**31, "8", None)),
    ("intermediate_size", (0, 2**40, [12])),
    ("vocab_size", (0, -300, 2**31, "300", True)),
    ("head_dim", (0, 1, 3, -4, 2**31, "4")),
    ("max_position_embeddings", (0, -1, 2**31, 1e30, "256", None)),
    ("rms_norm_eps", (0, -1e-5, float("nan"), float("inf"), "1e-500", "nan", "", "0x1", "9" * 999, None, True, 2)),
    ("rope_theta", (0, -5, float("nan"), float("inf"), "x", None, 10**400)),
    ("tie_word_embeddings", ("no", 2, [], 1.5)),
    ("attention_bias", ("false", -1)),
    ("bos_token_id", ("<s>", [1], 1.5, 2**31, True)),
    ("eos_token_id", ("</s>", [[2]], [None], 2.5, [2**31], {})),
    ("layer_types", (5, "full_attention", [["full_attention"]], {"a": 1})),
    ("rope_scaling", ("linear", 5, [1], {"type": ["linear"]}, {"full_attention": {"rope_type": "default"}})),
    ("rope_scaling", [{"type": "linear", "factor": f} for f in (0, -1, float("nan"), float("inf"), "two", None)]),
    ("rope_scaling", [ROPE | {"low_freq_factor": f} for f in (0, 4.0, 8, float("nan"))]),
    ("rope_scaling", [ROPE | {"original_max_position_embeddings": n} for n in (0, -64, 1.5, 2**40)]),
]


@pytest.mark.parametrize(("name", "values"), BAD_FIELDS, ids=[name for name, _ in BAD_FIELDS])
def test_a_field_outside_of_what_it_may_be_is_named(name, values):
    assert config_from_hf(files.CONFIG)
    for value in values:
        refused(functools.partial(config_from_hf, files.CONFIG | {name: value}, "config.json"), "config.json: ")


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 1000000, "rope_scaling": None},
        {"eos_token_id": 2, "pad_token_id": -1},
        {"eos_token_id": None, "bos_token_id": None},
        {"num_key_value_heads": None, "head_dim": None, "rms_norm_eps": 1},
        {"vocab_size": 300.0, "layer_types": None},
        {"tie_word_embeddings": 0, "rms_norm_eps": "1e-05", "eos_token_id": [2.0, 3]},
        {"tie_word_embeddings": None, "max_position_embeddings": 10485760},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": None}},
    ],
    ids=str,
)
def test_what_real_files_say_is_read(fields):
    config = config_from_hf(files.CONFIG | fields)
    assert config.num_kv_heads in (1, 2)
    assert config.head_dim == 4


JSON = {
    "not UTF-8": b'{"a": "\xff"}',
    "nested": b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "5,000 digits": b'{"vocab_size": ' + b"9" * 5000 + b"}",
    "empty": b"",
    "a list": b"[]",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
}


@pytest.mark.parametrize("content", JSON.values(), ids=JSON)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_json_that_can_not_be_read_is_named(name, content, folder):
    (folder / name).write_bytes(content)
    refused(lambda: use(folder), f"{folder / name}: ")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


ODD = {
    "a folder": Path.mkdir,
    "a pipe": make_pipe,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a loop": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
@pytest.mark.parametrize("name", [*files.folder(), "special_tokens_map.json", "model.json"])
def test_what_is_no_file_is_not_waited_for(name, make, folder):
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    may_be_left_out = name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
    if make is ODD["a loop"] and (may_be_left_out or name == "model.json"):
        return  # as good as none
    refused(lambda: load.load_model(str(folder)))


def test_a_file_of_boundless_size_is_not_read(folder):
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    begun = time.monotonic()
    with pytest.raises(UserError, match="more than 128 MiB"):
        use(folder)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_what_describes_a_model_has_a_mebibyte(name, folder):
    rewrite(folder / name, lambda fields: fields.update(x=[{}] * 500_000))
    refused(lambda: load.load_model(str(folder)), f"{folder / name}: more than 1 MiB")


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def test_sizes_are_held_to_the_files_before_they_are_allocated(folder):
    for fields in ({"num_hidden_layers": 9999}, {"hidden_size": 1 << 20}, {"vocab_size": 1 << 24}):
        (folder / "config.json").write_text(json.dumps(files.CONFIG | fields))
        refused(lambda: load.load_model(str(folder)), str(folder))


def header_with(data: bytes, change: Callable[[dict], Any]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


NORM = "model.norm.weight"
HEADERS = {
    "beyond the file": lambda h: h[NORM].update(data_offsets=[0, 2**62]),
    "negative": lambda h: h[NORM].update(data_offsets=[-32, 0]),
    "overlapping": lambda h: h[NORM].update(data_offsets=h["model.embed_tokens.weight"]["data_offsets"]),
    "overflow": lambda h: h[NORM].update(shape=[2**32, 2**32]),
    "other shape": lambda h: h[NORM].update(shape=[9]),
    "unknown type": lambda h: h[NORM].update(dtype="F3"),
    "escapes": lambda h: h.update({"\x1b[2J\n": h.pop(NORM)}),
    "half a character": lambda h: h.update({"\ud800": h.pop(NORM)}),
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_a_header_of_safetensors_that_lies_is_refused(change, folder):
    path = folder / "model.safetensors"
    path.write_bytes(header_with(path.read_bytes(), change))
    refused(lambda: load.load_model(str(folder)), str(folder))


@pytest.mark.parametrize("length", [0, 10**8, 2**31, 2**63, 2**64 - 1])
def test_a_length_of_safetensors_that_lies_is_refused(length, folder):
    path = folder / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(lambda: load.load_model(str(folder)), str(path))


@pytest.mark.parametrize(
    "value",
    ["../model.safetensors", "/etc/passwd", "..", ".", "", "config.json", "a\x00.safetensors", "\ud800.safetensors", 3],
    ids=repr,
)
def test_an_index_that_leads_elsewhere_is_refused(value, folder):
    (folder / hf.WEIGHTS).rename(folder.parent / hf.WEIGHTS)
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": {NORM: value}}))
    refused(lambda: load.load_model(str(folder)), hf.INDEX)


# ---------------------------------------------------------------------------------------------------------------------
# GGUF

HUGE = (2**31, 2**60, 2**63, 2**64 - 1)


def whole_gguf(**fields: Any) -> bytes:
    return files.write_gguf(files.gguf_fields() | fields, files.gguf_tensors())


def read_gguf(path: Path) -> None:
    load.load_model(str(path)).chat.prompt_ids(PROMPT)


def test_the_valid_gguf_file_is_read(tmp_path):
    (tmp_path / "m.gguf").write_bytes(whole_gguf())
    read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("place", ["tensors", "fields", "name", "array", "string", "dimensions"])
def test_a_count_of_a_gguf_file_that_lies_is_refused(place, number, tmp_path):
    data = whole_gguf()
    at, form = {
        "tensors": (8, "<Q"),
        "fields": (16, "<Q"),
        "name": (24, "<Q"),
        "array": (data.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8, "<Q"),
        "string": (data.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 16, "<Q"),
        "dimensions": (data.index(b"token_embd.weight") + len("token_embd.weight"), "<I"),
    }[place]
    new = struct.pack(form, number % (1 << 8 * struct.calcsize(form)))
    if int.from_bytes(new, "little") == 0:
        return
    (tmp_path / "m.gguf").write_bytes(data[:at] + new + data[at + len(new) :])
    refused(lambda: read_gguf(tmp_path / "m.gguf"), str(tmp_path / "m.gguf"))


GGUF_FIELDS = [
    ("general.alignment", (0, 3, "x", 2**32 - 1)),
    ("general.architecture", (5, [], ["llama"])),
    ("llama.block_count", (0, 10**8, "2", [], [2, 3], 2.5, 2**60)),
    ("llama.attention.head_count", (0, 2**31, "x", float("nan"))),
    ("llama.attention.head_count_kv", (0, 3, [1, 2], "1", [[1]])),
    ("llama.context_length", (0, 2**31, "x")),
    ("llama.rope.freq_base", (0.0, -5.0, float("nan"), float("inf"), "x", [1.0])),
    ("llama.rope.scaling.factor", (-1.0, float("nan"), float("inf"), "two")),
    ("llama.attention.layer_norm_rms_epsilon", (0.0, float("nan"), -1.0, "x")),
    ("tokenizer.ggml.tokens", (5, "abc", [1, 2], [[1]], [])),
    ("tokenizer.ggml.token_type", ([1], ["a"], 3)),
    ("tokenizer.ggml.merges", (["a"], ["h e l"], ["no such"], [1], "h e")),
    ("tokenizer.ggml.bos_token_id", (2**31, 299, "x", [1], 1.5)),
    ("tokenizer.ggml.model", (5, ["gpt2"], "bert")),
    ("tokenizer.chat_template", (5, ["x"])),
    ("tokenizer.ggml.add_bos_token", ("x", 2, [True])),
    ("split.count", (2, "x", [1], 2**60)),
    ("split.tensors.count", (3, "x")),
]


@pytest.mark.parametrize(("key", "values"), GGUF_FIELDS, ids=[key for key, _ in GGUF_FIELDS])
def test_a_gguf_field_outside_of_what_it_may_be_is_named(key, values, tmp_path):
    for value in values:
        (tmp_path / "m.gguf").write_bytes(whole_gguf(**{key: value}))
        refused(lambda: read_gguf(tmp_path / "m.gguf"), str(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("shape", "kind"), [((0, 8), 0), ((2**63, 2), 0), ((2**32, 2**32), 0), ((8,), 99), ((2**62,), 8), ((1,) * 9, 0)]
)
def test_a_gguf_tensor_of_another_size_than_it_says_is_refused(shape, kind, tmp_path):
    tensors = dict(files.gguf_tensors())
    tensors["token_embd.weight"] = (shape, kind, tensors["token_embd.weight"][2])
    (tmp_path / "m.gguf").write_bytes(files.write_gguf(files.gguf_fields(), tensors))
    refused(lambda: read_gguf(tmp_path / "m.gguf"), str(tmp_path / "m.gguf"))


def test_rope_divisors_that_are_none_are_refused_quietly(tmp_path, recwarn):
    for value in (0.0, float("nan"), float("inf"), -1.0):
        tensors = dict(files.gguf_tensors()) | {gguf.ROPE_FACTORS: ((2,), 0, struct.pack("<2f", 1.0, value))}
        (tmp_path / "m.gguf").write_bytes(files.write_gguf(files.gguf_fields(), tensors))
        refused(lambda: read_gguf(tmp_path / "m.gguf"), "rope_freqs.weight")
    assert not recwarn.list


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers

SLOW = ["(a+)+(?!a)b", "(a|a)*b", "((a*)*)*c", "a*a*a*a*b", "a?" * 30 + "a" * 30, "(a|a)" * 30, "(.*a){20}", r"(a)\1*b"]
SLOW += [r"[[](a+)+b", "a{1,9}+b", "x{0,1000}x{0,1000}x{0,1000}x{0,1000}y", "a" * 30_000]
SLOW += [
    r"\s*\s*\s*\d",
    r"( *\n *)+x",
    r"(?:\w+_)*x",
    r"(?:[a.]*\.)*x",
    r"(?:\w+\.?)*x",
    r"((a+)+,)+",
    r"(?:a+(b|a)*)+,",
]


@pytest.mark.parametrize("pattern", SLOW, ids=lambda pattern: pattern[:20])
def test_a_pattern_that_may_take_very_long_is_not_used(pattern, folder):
    rule = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    rewrite(folder / "tokenizer.json", lambda t: t.update(pre_tokenizer=rule))
    refused(lambda: use(folder), "could take very long")
    rule = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "b"}
    rewrite(folder / "tokenizer.json", lambda t: t.update(pre_tokenizer=None, normalizer=rule))
    refused(lambda: use(folder), "could take very long")


# Of Llama 3, GPT-2, GPT-4o and Tekken, DeepSeek, DeepSeek LLM, BLOOM; of adapters, the last two of PEFT's users.
KNOWN = [
    gguf.LLAMA3_WORDS,
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿ]+",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"(?=(\d{3})+(?!\d))",
    r"[0-9][0-9][0-9]",
    # tiktoken's of GPT-4, Qwen, and what converters write
    r"(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s",
    gguf.LLAMA3_WORDS.replace("{1,3}", ""),
    r"(?:\r?\n)+",
    r"( *\n *)+",
    r"(?:\r?\n)+x",
    r"(?<word>\p{L}+)",
    r"model\.layers\.([0-9]|1[0-9])\.self_attn\.(q|v)_proj",
    r".*\.(q_proj|v_proj)",
]


@pytest.mark.parametrize("pattern", KNOWN, ids=lambda pattern: pattern[:20])
def test_the_patterns_of_known_models_are_used(pattern):
    check_pattern(pattern, "")


NAMED = [
    r"(?:\w+\.)*q_proj",
    r"(?P<a>model)\.layers.*",
    r"(.*\.)?layers\.(\d+)\.(.+)\.(q|v)_proj",
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:k_proj|v_proj|q_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.mlp\.up_proj)",
    "|".join(rf"model\.layers\.{i}\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj" for i in range(80)),
]


@pytest.mark.parametrize("pattern", NAMED, ids=lambda pattern: pattern[:20])
def test_the_patterns_by_which_adapters_name_matrices_are_used(pattern):
    check_pattern(pattern, "", peft.OPEN, whole=True)


@pytest.mark.parametrize("pattern", [r"( *\n *)+", r"(?P<a>a)(?P=a)", r"(?P>a)", r"(?:\d{1,3})+"])
def test_what_has_to_match_a_whole_path_may_fail_at_its_end(pattern):
    with pytest.raises(UserError, match="could take very long"):
        check_pattern(pattern, "", peft.OPEN, whole=True)


def test_what_the_check_of_patterns_lets_through_ends(folder):
    """Random patterns in the tokenizer library's own engine, on texts that make matchers try: none takes a second."""
    rng, tried = random.Random(0), 0
    pieces = [
        "a",
        "b",
        "[ab]",
        "a*",
        "a+",
        "b?",
        "a{1,3}",
        "(?:ab|a)",
        "(a*)",
        "(a|b)+",
        "|",
        "(?=a)",
        "(?!b)",
        "(a+)?",
        "(?:a+,)*",
        "(?:,[ab]*)+",
        "(a?b*)+",
        "a{1,3}+",
    ]
    while tried < 200:
        pattern = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 9))) + rng.choice(("", "c", "$"))
        try:
            check_pattern(pattern, "")
            split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        except Exception:
            continue
        tried += 1
        for text in ("a" * 60, "ab" * 30, "aab" * 20 + "d", "a,ab," * 20 + "d"):
            begun = time.process_time()
            split.pre_tokenize_str(text)
            assert time.process_time() - begun < 1, pattern


GROWS = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
TOKENIZERS = {
    "boundless growth": (lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [GROWS] * 8}), "normalizer"),
    "growth from nothing": (
        lambda t: t.update(normalizer=GROWS | {"pattern": {"String": ""}, "content": "a" * 2000}),
        "1000 times as long",
    ),
    "growth of answers": (
        lambda t: t.update(decoder={"type": "Sequence", "decoders": [GROWS] * 8}),
        "its decoder makes",
    ),
    "doubling": (
        lambda t: t.update(
            post_processor={
                "type": "Sequence",
                "processors": [{**t["post_processor"], "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2}] * 40,
            }
        ),
        "post_processor",
    ),
    "letters of bytes": (
        lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 10}),
        "its normalizer makes",
    ),
    "letters of letters": (
        lambda t: t.update(
            normalizer={"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 5},
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}] * 5,
            },
        ),
        "its pre_tokenizer makes",
    ),
    "a long beginning": (
        lambda t: t.update(normalizer={"type": "Prepend", "prepend": "a" * 3_000_000}),
        "its normalizer makes",
    ),
    "growth between characters": (
        lambda t: t.update(
            normalizer={
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"Regex": "(?=a)"}, "content": "a"}] * 20,
            }
        ),
        "its normalizer makes",
    ),
    "a thousand ends": (
        lambda t: t.update(
            post_processor={
                "type": "TemplateProcessing",
                "single": [
                    {"Sequence": {"id": "A", "type_id": 0}},
                    *[{"SpecialToken": {"id": "x", "type_id": 0}}] * 10,
                ],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"x": {"id": "x", "ids": [1] * 10_000, "tokens": ["x"] * 10_000}},
            }
        ),
        "its tokenizer makes 100,0",
    ),
    "chance": (lambda t: t["model"].update(dropout=0.5), "dropout 0.5"),
    "id of 2^32": (lambda t: t["model"]["vocab"].update(hello=2**32), "no usable tokenizer"),
    "id of 2^31": (lambda t: t["model"]["vocab"].update(hello=2**31), "beyond the weights' vocabulary of 300"),
    "merge of nothing": (lambda t: t["model"]["merges"].append(["no", "such"]), "no usable tokenizer"),
    "prefix": (lambda t: t["model"].update(continuing_subword_prefix="héé"), "no usable tokenizer"),
    "no model": (lambda t: t.pop("model"), "no usable tokenizer"),
    "unknown unknown": (lambda t: t["model"].update(unk_token="nowhere", vocab={"a": 0}, merges=[]), "tokenizer"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_hostile_tokenizer_is_refused(name, folder):
    change, expected = TOKENIZERS[name]
    rewrite(folder / "tokenizer.json", change)
    refused(lambda: use(folder), expected)


@pytest.mark.parametrize(
    "fields",
    [
        *({"model_max_length": value} for value in ("x", 0, -5, float("nan"), [1], True)),
        {"chat_template": 5},
        {"chat_template": [{"name": "default"}]},
        {"bos_token": 5},
        {"padding_side": "up"},
        {"added_tokens_decoder": {"x": {}}},
    ],
    ids=str,
)
def test_a_configuration_of_a_tokenizer_that_can_not_be_used_is_named(fields, folder):
    rewrite(folder / "tokenizer_config.json", lambda config: config.update(fields))
    refused(lambda: use(folder), str(folder))


def test_a_tokenizer_of_elsewhere_is_not_read(folder, tmp_path):
    """`tokenizer_config.json` could name another file of the machine in the place of the folder's own."""
    other = files.tokenizer() | {"added_tokens": []}
    (tmp_path / "other.json").write_text(json.dumps(other))
    expected = load.load_chat(str(folder))[1].hashes
    rewrite(folder / "tokenizer_config.json", lambda config: config.update(tokenizer_file=str(tmp_path / "other.json")))
    assert load.load_chat(str(folder))[1].hashes == expected


def test_a_sentencepiece_model_of_long_or_double_pieces_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2
    for piece, score in (("hello", -1.0), ("a" * 1_000_000, -1.0), ("b", float("nan"))):
        model = proto.ModelProto.FromString(files.sentencepiece())
        model.pieces.add(piece=piece, score=score, type=1)
        (folder / "tokenizer.model").write_bytes(model.SerializeToString())
        refused(lambda: load.load_chat(str(folder)), str(folder))


# ---------------------------------------------------------------------------------------------------------------------
# Adapters and names

ADAPTERS = [
    ("r", (10**400, float("inf"), float("nan"), 0, -1, "2", True, 2.5, 10**8, None)),
    ("lora_alpha", (10**400, float("nan"), float("inf"), "x", [], 1e300)),
    ("lora_dropout", (float("nan"), 1, -1, "x")),
    ("rank_pattern", ({"(a+)+b": 2}, {"(": 2}, {"q_proj": 10**400}, {"q_proj": "x"}, [1], {"(" * DEEP: 1})),
    ("alpha_pattern", ({"(.*)*x": 2}, {"q_proj": float("inf")}, {"q_proj": None}, "q")),
    ("target_modules", (5, {"q_proj": 1}, [5], [["q_proj"]], "(.*)*x", ".*.*.*.*.*.*q", "(")),
    ("exclude_modules", (5, [None], "(a|a)*x")),
    ("layers_to_transform", ("x", [[1]], 1.5, [99])),
    ("peft_type", (None, 5, ["LORA"])),
]


@pytest.mark.parametrize(("name", "values"), ADAPTERS, ids=[name for name, _ in ADAPTERS])
def test_an_adapter_field_outside_of_what_it_may_be_is_named(name, values, tmp_path):
    config = config_from_hf(files.CONFIG)
    (tmp_path / "adapter_model.safetensors").write_bytes(files.adapter_weights())
    (tmp_path / "adapter_config.json").write_text(json.dumps(files.ADAPTER))
    load_adapter(tmp_path, config, make_mesh())
    for value in values:
        (tmp_path / "adapter_config.json").write_text(json.dumps(files.ADAPTER | {name: value}))
        refused(functools.partial(load_adapter, tmp_path, config, make_mesh()), "adapter_config.json: ")


MANY = {
    "open": {"rank_pattern": {rf".*.*.*.*z{n}\d": 4 for n in range(200)}},
    "choices": {"alpha_pattern": {"(a|a)" * 12 + str(n): 4 for n in range(100)}},
    "plain": {"rank_pattern": {f"q_proj{n}": 4 for n in range(9999)}, "alpha_pattern": {"v_proj": 2}},
    "layers": {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": [r".*.*.*z\d"] * 500},
}


@pytest.mark.parametrize("fields", MANY.values(), ids=MANY)
def test_patterns_that_take_long_together_are_not_used(fields):
    model = LlamaConfig(49152, 576, 1536, 64, 9, 3, 64)
    base = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    refused(lambda: peft.settings_from_peft(base | fields, model, "a"), "patterns could take very long on 64 layers")


def test_an_adapter_may_name_every_matrix():
    model = LlamaConfig(49152, 16384, 53248, 126, 128, 8, 128)
    every = {f"model.layers.{n}.self_attn.{m}_proj": 4 for n in range(126) for m in "qkvo"}
    every |= {f"model.layers.{n}.mlp.{m}_proj": 4 for n in range(126) for m in ("gate", "up", "down")}
    fields = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear", "rank_pattern": every}
    settings, modules = peft.settings_from_peft(fields, model, "a")
    assert (settings.rank, len(modules)) == (4, len(every))


def test_what_describes_an_adapter_has_a_mebibyte(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(files.ADAPTER | {"x": "a" * (1 << 20)}))
    refused(lambda: load_adapter(tmp_path, config_from_hf(files.CONFIG), make_mesh()), "more than 1 MiB")


def test_an_adapter_that_is_its_own_base_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    refused(lambda: load.load_chat(str(tmp_path)), "is an adapter too")


def test_a_revision_leads_out_of_no_cache(tmp_path):
    assert hub.parse("org/name@refs/pr/1") == hub.Name("org/name", "refs/pr/1")
    for revision in ("../../../../etc/passwd", "/etc/passwd", "a/../../b", "gs://x/y", "a b", "a\\b", "a\x00"):
        assert hub.parse(f"org/name@{revision}") is None

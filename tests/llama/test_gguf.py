"""GGUF files: the same parameters as the Hugging Face folder they were made from, exact tokens, clear refusals."""

import dataclasses
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from tokenizers import pre_tokenizers

from selfreward_jax.core.errors import UserError
from selfreward_jax.llama import gguf, hf, hf_save
from selfreward_jax.llama.config import LlamaConfig, RopeConfig, config_from_hf
from selfreward_jax.llama.model import rope_frequencies
from tests.llama.make_golden import BASE, random_weights, smollm_gguf, write_model

SMALL = BASE | {"num_hidden_layers": 2, "vocab_size": 96, "intermediate_size": 128}
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


# ---------------------------------------------------------------------------------------------------------------------
# Small files made as llama.cpp's converter makes them


def interleave(weights: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    return weights.reshape(heads, 2, -1, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def write_gguf(
    path, hf_config=SMALL, kind=GGMLQuantizationType.F32, architecture="llama", tensors=None, split=0, **fields
):
    """A GGUF file of the random model.

    Args:
      kind: type of the matrices.
      tensors: further tensors, by name.
      split: at most so many tensors in one part; 0 for one file.
      fields: metadata to add or (with None) to leave out, dots written as two underscores.
    """
    config, weights = config_from_hf(hf_config), random_weights(hf_config)
    metadata = {
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope.theta,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    metadata |= {key.replace("__", "."): value for key, value in fields.items()}
    writer = GGUFWriter(path, architecture, split_max_tensors=split)
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_array(key, value)
    stems = {name: stem for stem, name in gguf.NAMES.items()}
    layer_stems = {name: stem for stem, name in gguf.LAYER_NAMES.items()}
    for name, array in weights.items():
        stem, suffix = name.rsplit(".", 1)
        if stem in stems:
            target = f"{stems[stem]}.{suffix}"
        else:
            _, _, layer, stem = stem.split(".", 3)
            target = f"blk.{layer}.{layer_stems[stem]}.{suffix}"
            heads = {"self_attn.q_proj": config.num_heads, "self_attn.k_proj": config.num_kv_heads}.get(stem)
            array = interleave(array, heads) if heads else array
        if array.ndim == 1 or kind == GGMLQuantizationType.F32:
            writer.add_tensor(target, array)
        else:
            writer.add_tensor(target, quantize(array, kind), raw_dtype=kind)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def config_of(path, **fields):
    return gguf.read_config(write_gguf(path, **fields))


# ---------------------------------------------------------------------------------------------------------------------
# Sizes and weights


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"num_key_value_heads": 4},
        {"tie_word_embeddings": True},
        {"head_dim": 32},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
    ],
    ids=str,
)
def test_a_gguf_file_gives_what_its_hugging_face_folder_gives(variant, tmp_path):
    hf_config = SMALL | variant
    folder = write_model(tmp_path / "model", hf_config)
    linear = "rope_scaling" in variant
    scaling = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0} if linear else {}
    path = write_gguf(tmp_path / "model.gguf", hf_config, **scaling)
    config = gguf.read_config(path)
    assert config == hf.read_config(folder)
    jax.tree.map(np.testing.assert_array_equal, gguf.load_params(path, config), hf.load_params(folder, config))


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        (GGMLQuantizationType.F16, 2e-3),
        (GGMLQuantizationType.BF16, 1e-2),
        (GGMLQuantizationType.Q8_0, 2e-2),
        (GGMLQuantizationType.Q4_1, 0.2),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_quantised_weights_are_close_in_every_place(kind, tolerance, tmp_path):
    path = write_gguf(tmp_path / "model.gguf", kind=kind)
    folder = write_model(tmp_path / "model", SMALL)
    config = gguf.read_config(path)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance)  # noqa: E731
    jax.tree.map(close, gguf.load_params(path, config), hf.load_params(folder, config))


def test_slices_and_storage_dtype_follow_the_request(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", kind=GGMLQuantizationType.Q8_0)
    config = gguf.read_config(path)
    params = gguf.load_params(path, config, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(jnp.bfloat16)}
    sharding = jax.sharding.NamedSharding(jax.make_mesh((1,), ("x",)), jax.sharding.PartitionSpec())
    shardings = jax.tree.map(lambda _: sharding, params)
    again = gguf.load_params(path, config, dtype=jnp.bfloat16, shardings=shardings)
    jax.tree.map(np.testing.assert_array_equal, again, params)

    with gguf._open(path) as file:
        tensor = next(tensor for tensor in file.tensors if tensor.name == "blk.0.attn_q.weight")
        whole = gguf._read(tensor, 16, "", (slice(0, 64), slice(0, 64)))
        part = gguf._read(tensor, 16, "", (slice(16, 48), slice(8, 24)))
    np.testing.assert_array_equal(part, whole[16:48, 8:24])


@pytest.fixture
def split(tmp_path):
    """The same model as one file and in parts, as gguf's own writer (and llama.cpp's gguf-split) makes them."""
    whole = write_gguf(tmp_path / "whole.gguf")
    write_gguf(tmp_path / "m.gguf", split=8)
    return whole, sorted(tmp_path.glob("m-*"))


def test_a_split_file_is_read_given_any_of_its_parts(split):
    whole, parts = split
    assert [part.name for part in parts] == [f"m-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    config = gguf.read_config(whole)
    expected = gguf.load_params(whole, config)
    for part in parts:
        assert gguf.read_config(part) == config
        jax.tree.map(np.testing.assert_array_equal, gguf.load_params(part, config), expected)


def test_parts_that_are_missing_or_out_of_place_are_named(split):
    _, parts = split
    copy = parts[0].with_name("first.gguf")
    copy.write_bytes(parts[0].read_bytes())
    refused(r"first\.gguf: holds part 1 of 3 of a split model; give all parts the names", copy)
    swap = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    refused(r"m-00001-of-00003\.gguf: holds part 1 of 3", parts[0])
    parts[1].write_bytes(swap)
    parts[1].unlink()
    refused(r"m-00002-of-00003\.gguf: missing, a part of the split model m; download it too", parts[0])
    parts[2].unlink()
    refused(r"m-00002-of-00003\.gguf and 1 more: missing", parts[0])


def test_a_split_file_with_too_few_tensors_is_refused(tmp_path):
    fields = {"split__no": 0, "split__count": 1, "split__tensors__count": 99}
    refused(r"its parts hold 21 tensors, not 99", write_gguf(tmp_path / "m.gguf", **fields))


def refused(message, path):
    with pytest.raises(UserError, match=message) as caught:
        gguf.read_config(path)
    assert "\n" not in str(caught.value)


def test_all_tokens_that_end_a_turn_are_eos(tmp_path):
    config = config_of(tmp_path / "m.gguf", tokenizer__ggml__eot_token_id=9, tokenizer__ggml__eom_token_id=2)
    assert config.eos_token_ids == (2, 9)


@pytest.mark.parametrize(
    ("context", "low", "high", "factor"), [(8192, 1.0, 4.0, 8.0), (8192, 1.0, 4.0, 32.0), (512, 2.0, 16.0, 4.0)]
)
def test_llama3_rope_is_found_behind_its_divisors(context, low, high, factor, tmp_path):
    """llama.cpp stores the divisors of the frequencies; only one rule gives them, up to a common scale."""
    hf_config = SMALL | {"head_dim": 64, "rope_theta": 500000.0}
    plain = config_from_hf(hf_config)
    rule = RopeConfig(500000.0, "llama3", factor, low, high, context)
    wanted = rope_frequencies(dataclasses.replace(plain, rope=rule))
    divisors = np.asarray(rope_frequencies(plain) / wanted, np.float32)
    config = config_of(tmp_path / "m.gguf", hf_config=hf_config, tensors={gguf.ROPE_FACTORS: divisors})
    assert config.rope.type == "llama3"
    np.testing.assert_allclose(rope_frequencies(config), wanted, rtol=1e-4)
    assert config.rope.original_max_position_embeddings == context / low
    gguf.load_params(tmp_path / "m.gguf", config)  # the divisors themselves are no weight


def test_divisors_of_one_are_plain_rope(tmp_path):
    assert config_of(tmp_path / "m.gguf", tensors={gguf.ROPE_FACTORS: np.ones(8, np.float32)}).rope.type == "default"


REFUSED = {
    "architecture": ({"architecture": "qwen2"}, "architecture 'qwen2' is not supported"),
    "experts": ({"llama__expert_count": 8}, r"llama\.expert_count = 8 is not supported"),
    "window": ({"llama__attention__sliding_window": 4096}, r"sliding_window = 4096 is not supported"),
    "yarn": ({"llama__rope__scaling__type": "yarn"}, r"rope\.scaling\.type 'yarn' is not supported"),
    "partial rotation": ({"llama__rope__dimension_count": 8}, r"rope\.dimension_count = 8 is not supported"),
    "layers that differ": (
        {"llama__attention__head_count_kv": [2, 1]},
        r"head_count_kv differs between layers \(\[1, 2\]\)",
    ),
    "no layer count": ({"llama__block_count": None}, r"the field llama\.block_count is missing"),
    "free rope divisors": (
        {"tensors": {gguf.ROPE_FACTORS: np.array([1, 3, 2, 9, 1, 4, 2, 2], np.float32)}},
        "rope_freqs.weight follows no llama3 rule",
    ),
    "rope divisors of another size": (
        {"tensors": {gguf.ROPE_FACTORS: np.ones(5, np.float32)}},
        "rope_freqs.weight has 5 entries, not 8",
    ),
    "query norm": (
        {"tensors": {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}},
        r"blk\.0\.attn_q_norm\.weight is not part of the model",
    ),
    "a layer too few": ({"llama__block_count": 1}, r"layers\.1\..* not part of the model"),
    "a layer too many": ({"llama__block_count": 3}, r"layers\.2\..* missing"),
    "wrong size": ({"llama__feed_forward_length": 64}, r"blk\.0\.ffn_\w+\.weight has shape .* config says \[64, 64\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_model_would_not_honour_is_refused_in_one_line(name, tmp_path):
    options, message = REFUSED[name]
    path = write_gguf(tmp_path / "model.gguf", **options)
    with pytest.raises(UserError, match=message) as caught:
        gguf.load_params(path, gguf.read_config(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_type_that_cannot_be_dequantised_is_named(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", SMALL | {"tie_word_embeddings": True})
    config = dataclasses.replace(gguf.read_config(path), tie_word_embeddings=False)
    write_gguf(path, SMALL | {"tie_word_embeddings": True}, tensors={"output.weight": np.zeros((96, 64), np.int8)})
    with pytest.raises(UserError, match=r"output\.weight has the type I8, which can't be dequantised"):
        gguf.load_params(path, config)


@pytest.mark.parametrize("length", [0, 3, 10, 24, 200, 600, 2500, 100_000])
def test_a_truncated_file_is_named(length, tmp_path):
    path = write_gguf(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"model\.gguf: not a whole GGUF file .*download it again"):
        gguf.read_config(path)


def test_other_files_and_no_file_are_named(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"not a model at all, but long enough to hold a header" * 9)
    with pytest.raises(UserError, match="not a whole GGUF file"):
        gguf.read_config(tmp_path / "x.gguf")
    with pytest.raises(UserError, match="no such file"):
        gguf.read_config(tmp_path / "y.gguf")


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers


def byte_tokenizer(path, pre, merges=("h e", "l l"), tokens=("he", "ll", "hello", "<s>", "<e>"), **fields):
    """A byte-level vocabulary with `tokens` after the 256 bytes; those in angles are control tokens."""
    tokens = [*BYTES, *tokens]
    types = [TokenType.CONTROL if len(token) > 2 and token[0] == "<" else TokenType.NORMAL for token in tokens]
    fields = {
        "tokenizer__ggml__model": "gpt2",
        "tokenizer__ggml__pre": pre,
        "tokenizer__ggml__tokens": tokens,
        "tokenizer__ggml__token_type": [int(kind) for kind in types],
        "tokenizer__ggml__merges": list(merges),
        "tokenizer__ggml__bos_token_id": tokens.index("<s>"),
        "tokenizer__ggml__eos_token_id": tokens.index("<e>"),
        **fields,
    }
    return gguf.load_tokenizer(write_gguf(path, **fields))


def pieces(tokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)


def test_chat_templates_have_the_names_that_the_converter_gives_them(tmp_path):
    named = {"tokenizer__chat_templates": ["rag"], "tokenizer__chat_template__rag": "{{ messages }}"}
    default = {"tokenizer__chat_template": "{{ messages[0].content }}"}
    tokenizer = byte_tokenizer(tmp_path / "two.gguf", "gpt-2", **named, **default)
    assert tokenizer.chat_template == {"rag": "{{ messages }}", "default": "{{ messages[0].content }}"}
    assert byte_tokenizer(tmp_path / "one.gguf", "gpt-2", **named).chat_template == {"rag": "{{ messages }}"}


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["1", "2", "3", "4"]),
        ("gpt-2", ["12", "34"]),
        ("default", ["12", "34"]),
        ("llama-bpe", ["<s>", "12", "3", "4"]),
        ("llama3", ["<s>", "12", "3", "4"]),
    ],
)
def test_the_named_rule_cuts_digits(pre, expected, tmp_path):
    tokens = ("12", "34", "<s>", "<e>")
    assert pieces(byte_tokenizer(tmp_path / "m.gguf", pre, ("1 2", "3 4"), tokens), "1234") == expected


def test_llama3_takes_whole_words_that_are_tokens(tmp_path):
    assert pieces(byte_tokenizer(tmp_path / "a.gguf", "llama-bpe"), "hello") == ["<s>", "hello"]
    assert pieces(byte_tokenizer(tmp_path / "b.gguf", "gpt-2"), "hello") == ["he", "ll", "o"]


def test_the_file_decides_on_bos_and_eos(tmp_path):
    no_bos = {"tokenizer__ggml__add_bos_token": False}
    assert pieces(byte_tokenizer(tmp_path / "a.gguf", "llama-bpe", **no_bos), "hell") == ["he", "ll"]
    both = {"tokenizer__ggml__add_bos_token": True, "tokenizer__ggml__add_eos_token": True}
    assert pieces(byte_tokenizer(tmp_path / "b.gguf", "gpt-2", **both), "hell") == ["<s>", "he", "ll", "<e>"]


def test_control_tokens_stay_whole_and_are_skipped_in_text(tmp_path):
    tokenizer = byte_tokenizer(tmp_path / "m.gguf", "gpt-2", tokenizer__chat_template="{{ messages[0].content }}")
    ids = tokenizer("he<e>he").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["he", "<e>", "he"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hehe"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "<e>")
    assert tokenizer.chat_template == "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer__ggml__pre": "tekken"}, r"tokenizer\.ggml\.pre 'tekken' is not supported; smollm, llama-bpe"),
        ({"tokenizer__ggml__pre": None}, r"the field tokenizer\.ggml\.pre is missing"),
        ({"tokenizer__ggml__model": "t5"}, r"tokenizer\.ggml\.model 't5' is not supported; gpt2 and llama"),
        ({"tokenizer__ggml__tokens": None}, r"the field tokenizer\.ggml\.tokens is missing"),
        ({"tokenizer__ggml__eos_token_id": 999}, r"eos_token_id 999 is outside of the vocabulary"),
    ],
)
def test_tokenizers_that_cannot_be_rebuilt_are_refused(fields, message, tmp_path):
    with pytest.raises(UserError, match=message):
        byte_tokenizer(tmp_path / "m.gguf", "gpt-2", **fields)


PIECES = ["▁", "a", "b", "c", "▁a", "ab", "bc", "abc", "▁ab", "ca", "▁▁", "aa"]


def sentencepiece_tokenizer(path, **fields):
    control = ["<unk>", "<s>", "</s>"]
    tokens = [*control, *(f"<0x{i:02X}>" for i in range(256)), *PIECES]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    types += [TokenType.NORMAL] * len(PIECES)
    fields = {
        "tokenizer__ggml__model": "llama",
        "tokenizer__ggml__tokens": tokens,
        "tokenizer__ggml__scores": [0.0] * 259 + [-float(i) for i in range(len(PIECES))],
        "tokenizer__ggml__token_type": [int(kind) for kind in types],
        "tokenizer__ggml__unknown_token_id": 0,
        **fields,
    }
    return gguf.load_tokenizer(write_gguf(path, **fields))


def sentencepiece_reference(text: str) -> list[str]:
    """SentencePiece's BPE by its definition: join the neighbours whose joint piece scores best, leftmost first."""
    symbols = list("▁" + text.replace(" ", "▁"))
    while pairs := [
        (PIECES.index(left + right), at)
        for at, (left, right) in enumerate(itertools.pairwise(symbols))
        if left + right in PIECES
    ]:
        _, at = min(pairs)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return symbols


def test_sentencepiece_merges_by_score(tmp_path):
    tokenizer = sentencepiece_tokenizer(tmp_path / "m.gguf")
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("abc ", k=draw.randint(1, 12)))
        assert pieces(tokenizer, text) == ["<s>", *sentencepiece_reference(text)], text
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_sentencepiece_falls_back_to_bytes(tmp_path):
    tokenizer = sentencepiece_tokenizer(tmp_path / "m.gguf")
    assert pieces(tokenizer, "é") == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer("aé\n日").input_ids, skip_special_tokens=True) == "aé\n日"


def test_sentencepiece_without_space_prefix(tmp_path):
    tokenizer = sentencepiece_tokenizer(tmp_path / "m.gguf", tokenizer__ggml__add_space_prefix=False)
    assert pieces(tokenizer, "ab a") == ["<s>", "ab", "▁a"]
    assert tokenizer.decode(tokenizer(" a").input_ids, skip_special_tokens=True) == " a"


# ---------------------------------------------------------------------------------------------------------------------
# SmolLM2-135M-Instruct

TEXTS = [
    "The sum of 12345 and 678 is 13023.",
    "  two  spaces\n\n\tand a tab; don't, we'll, I'd",
    "naïve café — Привет мир, 日本語テスト 🎉👩‍👩‍👧",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "def f(x):\n    return x ** 2  # comment\r\n",
    "",
]


@pytest.fixture(scope="module")
def smollm():
    """Path, and the tokenizer, of SmolLM2-135M-Instruct."""
    path = smollm_gguf()
    return path, gguf.load_tokenizer(path)


def test_smollm_sizes(smollm):
    assert gguf.read_config(smollm[0]) == LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        rms_norm_eps=1e-5,
        rope=RopeConfig(theta=100000.0),
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=2,
    )


def test_smollm_texts_come_back_whole(smollm):
    for text in TEXTS:
        assert smollm[1].decode(smollm[1](text).input_ids) == text


def test_smollm_reads_numbers_digit_by_digit(smollm):
    assert pieces(smollm[1], "12345") == ["1", "2", "3", "4", "5"]


@pytest.mark.torch  # early releases of transformers 5 need it to read a GGUF file
def test_smollm_tokens_are_those_of_transformers(smollm):
    import transformers

    path, tokenizer = smollm
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        assert tokenizer(text).input_ids == theirs(text).input_ids
    chat = [{"role": "user", "content": "What is 7 x 6?"}]
    assert tokenizer.apply_chat_template(chat) == theirs.apply_chat_template(chat)


def test_smollm_tokenizer_survives_export(smollm, tmp_path):
    import transformers

    path, tokenizer = smollm
    folder = write_model(tmp_path / "small", SMALL)
    config = hf.read_config(folder)
    hf_save.save_pretrained(tmp_path / "out", config, hf.load_params(folder, config), tokenizer)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "What is 7 x 6?"}]
    for text in TEXTS:
        assert again(text).input_ids == tokenizer(text).input_ids
    assert again.chat_template == tokenizer.chat_template
    rendered = {"tokenize": False, "add_generation_prompt": True}
    assert again.apply_chat_template(chat, **rendered) == tokenizer.apply_chat_template(chat, **rendered)
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (1, 2, 2)

"""Reads Llama models from GGUF files (llama.cpp): sizes, weights (dequantised) and tokenizer.

Weights become the same parameters as from a Hugging Face folder: `llama/hf.py` checks, stacks and places them. What
a GGUF file says otherwise is put right here: other names, sizes in reversed order, and rows of the query and key
projections in the interleaved order of llama.cpp's rotary embedding.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tokenizers
import transformers
from etils import epath
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, TokenType
from gguf.quants import dequantize
from tokenizers import Regex, decoders, models, pre_tokenizers

from selfreward_jax.core.errors import UserError, first_line, in_one_line, shown
from selfreward_jax.core.paths import check_file
from selfreward_jax.llama.config import NUMBERS, LlamaConfig, RopeConfig, check_config, number
from selfreward_jax.llama.gguf_reader import BoundedReader
from selfreward_jax.llama.hf import Index, Tensor, assemble_params, local_copy
from selfreward_jax.llama.model import rope_frequencies
from selfreward_jax.llama.params import Params
from selfreward_jax.llama.tokenizer import sentencepiece_bpe, whole_tokens

NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")  # names that llama.cpp's gguf-split gives


@dataclasses.dataclass(frozen=True)
class _File:
    """An open GGUF file, all its parts, and the path of the first, which error messages name."""

    path: str
    readers: tuple[GGUFReader, ...]

    @property
    def tensors(self) -> Iterator[ReaderTensor]:
        return (tensor for reader in self.readers for tensor in reader.tensors)

    def get(self, key: str, default: Any = None) -> Any:
        return _contents(self.readers[0], key, default)

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise UserError(f"{self.path}: the field {key} is missing; convert the model again with llama.cpp.")
        return value

    def number(self, key: str, limits: str, default: float | None = None) -> Any:
        """A number within its limits in the tables of `llama/config.py`."""
        value = self.need(key) if default is None else self.get(key, default)
        return number(self.path, key, value, limits)

    def size(self, key: str, limits: str, default: int | None = None) -> int:
        """A count; some files give one per layer, which must agree."""
        value = self.need(key) if default is None else self.get(key, default)
        different = set(value) if isinstance(value, list) else {value}
        if len(different) != 1:
            found = shown(sorted(different, key=str))
            raise UserError(f"{self.path}: {key} differs between layers ({found}), which is not supported.")
        return number(self.path, key, different.pop(), limits)

    def token(self, key: str) -> int | None:
        key = f"tokenizer.ggml.{key}_token_id"
        return None if self.get(key) is None else self.number(key, "token id")

    def array(self, key: str, kind: type, default: list[Any] | None = None) -> list[Any]:
        """A list of one kind."""
        value = self.need(key) if default is None else self.get(key, default)
        if not isinstance(value, list) or not all(type(entry) is kind for entry in value):
            raise UserError(f"{self.path}: {key} is {shown(value)}; an array of {kind.__name__} is needed.")
        return value

    def flag(self, key: str, default: bool) -> bool:
        if not isinstance(value := self.get(key, default), bool):
            raise UserError(f"{self.path}: {key} is {shown(value)}; a bool is needed.")
        return value

    def has_tensor(self, name: str) -> bool:
        return any(tensor.name == name for tensor in self.tensors)


def _contents(reader: GGUFReader, key: str, default: Any) -> Any:
    field = reader.get_field(key)
    try:
        return default if field is None else field.contents()
    except UnicodeDecodeError as error:
        raise UserError(f"{reader.data.filename}: {key}: not UTF-8 ({error}); download the file again.") from None


@contextlib.contextmanager
def _open(path: epath.PathLike) -> Iterator[_File]:
    paths = parts(epath.Path(path))
    with contextlib.ExitStack() as opened:
        file = _File(str(paths[0]), tuple(_reader(part, opened) for part in paths))
        count = file.get("split.count", 0) or 1
        numbers = [_contents(reader, "split.no", 0) for reader in file.readers]
        if not all(type(value) is int for value in (count, *numbers)):
            raise UserError(f"{paths[0]}: split.count or split.no is no number; download it again.")
        if (numbers, count) != (list(range(len(paths))), len(paths)):
            raise UserError(
                f"{paths[0]}: holds part {numbers[0] + 1} of {count} of a split model; give all parts the names that"
                f" gguf-split gave them (NAME-00001-of-{count:05d}.gguf and so on)."
            )
        found, wanted = sum(len(reader.tensors) for reader in file.readers), file.get("split.tensors.count")
        if wanted is not None and found != wanted:
            raise UserError(f"{paths[0]}: its parts hold {found} tensors, not {wanted}; download them again.")
        yield file


def parts(path: epath.Path) -> list[epath.Path]:
    """The files of a model: those that gguf-split made, in order, given any of them; else the one.

    Raises:
      UserError: one is missing.
    """
    name = PART.fullmatch(path.name)
    names = [path.name]
    if name:
        names = [f"{name[1]}-{number:05d}-of-{name[3]}.gguf" for number in range(1, int(name[3]) + 1)]
    found = [path.parent / name for name in names]
    if missing := [part for part in found if not part.is_file()]:
        if not name:
            raise UserError(f"{path}: no such file; a GGUF file is needed.")
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]}{others}: missing, a part of the split model {name[1]}; download it too.")
    return found


def _reader(path: epath.Path, opened: contextlib.ExitStack) -> GGUFReader:
    check_file(path)
    try:
        with np.errstate(all="raise"):
            reader = BoundedReader(local_copy(path, opened))
    except (ValueError, IndexError, KeyError, OverflowError, FloatingPointError, OSError, TypeError) as error:
        # The reader has no error of its own: what it trips over depends on where a damaged file ends.
        raise UserError(f"{path}: not a whole GGUF file ({first_line(error)}); download it again.") from None
    if reader.byte_order == "S":
        raise UserError(f"{path}: written for the other byte order; convert the model again on this machine.")
    return reader


def read_license(path: epath.PathLike) -> str:
    """The license that a file names, "" where it names none."""
    with _open(path) as file:
        return str(file.get("general.license", ""))


# ---------------------------------------------------------------------------------------------------------------------
# Sizes


def read_config(path: epath.PathLike) -> LlamaConfig:
    """Reads the sizes of the model.

    Raises:
      UserError: a missing, damaged or incomplete file, or a feature that the forward pass would not honour.
    """
    with _open(path) as file:
        architecture = file.need("general.architecture")
        if architecture != "llama":
            raise UserError(
                f"{path}: architecture {shown(architecture)} is not supported; llama is (dense Mistral too)."
            )
        for key in ("llama.expert_count", "llama.attention.sliding_window"):
            if file.get(key):
                raise UserError(
                    f"{path}: {key} = {shown(file.get(key))} is not supported; only dense, full attention is."
                )
        heads = file.size("llama.attention.head_count", "num_attention_heads")
        hidden = file.size("llama.embedding_length", "hidden_size")
        head_dim = file.size("llama.attention.key_length", "head_dim", hidden // heads)
        for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
            if file.size(key, "head_dim", head_dim) != head_dim:
                raise UserError(f"{path}: {key} = {file.get(key)} is not supported where a head's size is {head_dim}.")
        ids = [file.token(name) for name in ("eos", "eot", "eom")]
        config = LlamaConfig(
            vocab_size=file.size("llama.vocab_size", "vocab_size", _vocabulary(file)),
            hidden_size=hidden,
            intermediate_size=file.size("llama.feed_forward_length", "intermediate_size"),
            num_layers=file.size("llama.block_count", "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=file.size("llama.attention.head_count_kv", "num_key_value_heads", heads),
            head_dim=head_dim,
            rms_norm_eps=_float(file.number("llama.attention.layer_norm_rms_epsilon", "rms_norm_eps")),
            rope=_rope(file),
            max_position_embeddings=file.size("llama.context_length", "max_position_embeddings"),
            tie_word_embeddings=not file.has_tensor("output.weight"),
            attention_bias=any(file.has_tensor(f"blk.0.{name}.bias") for name in LAYER_NAMES if "attn_" in name),
            mlp_bias=any(file.has_tensor(f"blk.0.{name}.bias") for name in LAYER_NAMES if "ffn_" in name),
            bos_token_id=file.token("bos"),
            eos_token_ids=tuple(dict.fromkeys(token for token in ids if token is not None)),
            pad_token_id=file.token("padding"),
        )
        check_config(config, str(path))
        if file.has_tensor(ROPE_FACTORS):
            config = dataclasses.replace(config, rope=_rope_from_factors(config, file))
        return config


def _vocabulary(file: _File) -> int:
    """Rows of the embedding, for files that don't give `llama.vocab_size`."""
    shapes = [tensor.shape for tensor in file.tensors if tensor.name == "token_embd.weight"]
    if not shapes:
        raise UserError(f"{file.path}: no tensor token_embd.weight; the file holds no model.")
    return int(shapes[0][-1])


def _float(value: float) -> float:
    """The number that was meant: GGUF keeps 1e-5 as float32, which is 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope(file: _File) -> RopeConfig:
    theta = _float(file.number("llama.rope.freq_base", "rope_theta", 10000.0))
    kind = file.get("llama.rope.scaling.type", "linear")
    key = next((k for k in ("llama.rope.scaling.factor", "llama.rope.scale_linear") if file.get(k)), None)
    factor = _float(file.number(key, "factor")) if key else 1.0
    if kind not in ("none", "linear"):
        raise UserError(f"{file.path}: llama.rope.scaling.type {shown(kind)} is not supported; none and linear are.")
    if kind == "none" or factor == 1:
        return RopeConfig(theta=theta)
    return RopeConfig(theta=theta, type="linear", factor=factor)


def _rope_from_factors(config: LlamaConfig, file: _File) -> RopeConfig:
    """Finds the `llama3` rule behind the divisors of the frequencies that llama.cpp stores in its place.

    Long wavelengths are divided by `factor`, short ones by 1. Between them 1 / divisor is linear in the frequency,
    and the line fixes the rule up to one common scale of its three numbers, which `low_freq_factor` 1 settles.
    """
    tensor = next(tensor for tensor in file.tensors if tensor.name == ROPE_FACTORS)
    divisors = np.asarray(tensor.data, np.float64)
    if not np.all((divisors >= 1) & (divisors <= NUMBERS["factor"][1])):
        raise UserError(f"{file.path}: {ROPE_FACTORS} holds what is no divisor of a frequency.")
    plain = dataclasses.replace(config, rope=RopeConfig(config.rope.theta))
    frequency = np.asarray(rope_frequencies(plain), np.float64)
    if divisors.shape != frequency.shape:
        raise UserError(f"{file.path}: {ROPE_FACTORS} has {divisors.size} entries, not {frequency.size}.")
    if np.all(divisors == 1):
        return config.rope
    factor = _float(divisors.max())
    published = RopeConfig(config.rope.theta, "llama3", factor, 1.0, 4.0, 8192)
    for rule in filter(None, (published, _fit_llama3(published, frequency, divisors))):
        ours = np.asarray(rope_frequencies(dataclasses.replace(config, rope=rule)), np.float64)
        if config.rope.type == "default" and np.allclose(ours, frequency / divisors, rtol=1e-4, atol=0):
            return rule
    raise UserError(f"{file.path}: {ROPE_FACTORS} follows no llama3 rule; this rope scaling is not supported.")


def _fit_llama3(rule: RopeConfig, frequency: np.ndarray, divisors: np.ndarray) -> RopeConfig | None:
    between = (divisors > 1) & (divisors < divisors.max())
    if between.sum() < 2:
        return None
    smooth = (1 / divisors[between] - 1 / rule.factor) / (1 - 1 / rule.factor)
    slope, offset = np.polyfit(frequency[between] / (2 * math.pi), smooth, 1)
    if slope <= 0 or offset >= 0:
        return None
    high, context = 1 - 1 / offset, -slope / offset
    return dataclasses.replace(rule, high_freq_factor=round(high, 3), original_max_position_embeddings=round(context))


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def load_params(path: epath.PathLike, config: LlamaConfig, *, dtype=None, shardings=None) -> Params:
    """Reads and dequantises the weights.

    Args:
      path: the GGUF file.
      config: what `read_config` gave.
      dtype: storage dtype of the arrays; None is float32, which holds what every quantisation stands for.
      shardings: as in `hf.load_params`.

    Raises:
      UserError: a damaged file, a quantisation that can't be undone, or tensors that don't fit the config.
    """
    with _open(path) as file:
        tensors = {}
        for tensor in file.tensors:
            if tensor.name == ROPE_FACTORS:
                continue  # part of the config
            where = f"{path}: {tensor.name}"
            interleaved = re.search(r"\.attn_[qk]\.", tensor.name) is not None
            read = functools.partial(_read, tensor, config.head_dim if interleaved else None, where)
            tensors[_hf_name(tensor.name)] = Tensor(where, tuple(tensor.shape.tolist()[::-1]), "F32", read)
        return assemble_params(config, tensors, where=str(path), dtype=dtype, shardings=shardings)


def _hf_name(name: str) -> str:
    """The Hugging Face name of a tensor; an unknown name stays, and is refused as such."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    layer, stem, suffix = match.groups() if match else (None, None, None)
    if layer is not None and stem in LAYER_NAMES:
        return f"model.layers.{layer}.{LAYER_NAMES[stem]}.{suffix}"
    return f"{NAMES[stem]}.{suffix}" if layer is None and stem in NAMES else name


def _read(tensor, head_dim: int | None, where: str, index: Index) -> np.ndarray:
    """A slice of a tensor, float32 in Hugging Face layout.

    Args:
      tensor: a `gguf.ReaderTensor`.
      head_dim: of queries and keys, whose rows llama.cpp interleaves within each head; else None.
      index: its rows must cover whole heads where `head_dim` is given.
    """
    matrix = tensor.data.ndim > 1  # quantised blocks run along a row, so rows can be picked before dequantising
    rows = _dequantise(tensor.data[index[0]] if matrix else tensor.data, tensor.tensor_type, where)
    rows = rows[(slice(None), *index[1:])] if matrix else rows[index]
    return rows if head_dim is None else deinterleave(rows, head_dim)


def _dequantise(data: np.ndarray, kind: GGMLQuantizationType, where: str) -> np.ndarray:
    try:
        return dequantize(data, kind)
    except NotImplementedError:
        raise UserError(f"{where} has the type {kind.name}, which can't be dequantised; use another file.") from None


def deinterleave(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Undoes the order in which llama.cpp's converter puts the rows of query and key projections.

    Rotary pairs are neighbours there, (2i, 2i + 1); in Hugging Face files they are (i, i + head_dim / 2).

    Args:
      rows: [heads * head_dim, ...], a matrix or a bias.
    """
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer


def load_tokenizer(path: epath.PathLike) -> transformers.PreTrainedTokenizerFast:
    """Builds the tokenizer from the vocabulary in the file, with its chat template and special tokens.

    Raises:
      UserError: a damaged file, or a kind of tokenizer that can't be rebuilt exactly.
    """
    with _open(path) as file, in_one_line(f"{path}: no usable tokenizer"):
        tokens, kind = file.array("tokenizer.ggml.tokens", str), file.need("tokenizer.ggml.model")
        types = file.array("tokenizer.ggml.token_type", int, []) or [TokenType.NORMAL] * len(tokens)
        if kind == "gpt2":
            tokenizer, adds_bos = _byte_level(file, tokens)
            tokenizer.add_tokens(whole_tokens(tokens, types))
        elif kind == "llama":
            scores = file.array("tokenizer.ggml.scores", float)
            prefix = file.flag("tokenizer.ggml.add_space_prefix", True)
            unknown = _named_tokens(file, tokens).get("unk_token")
            tokenizer, adds_bos = sentencepiece_bpe(tokens, scores, types, unknown, prefix), True
        else:
            raise UserError(f"{path}: tokenizer.ggml.model {shown(kind)} is not supported; gpt2 and llama are.")
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            chat_template=_templates(file),
            add_bos_token=file.flag("tokenizer.ggml.add_bos_token", adds_bos),
            add_eos_token=file.flag("tokenizer.ggml.add_eos_token", False),
            model_max_length=file.size("llama.context_length", "max_position_embeddings"),
            clean_up_tokenization_spaces=False,
            **_named_tokens(file, tokens),
        )


def _templates(file: _File) -> str | dict[str, str] | None:
    """The chat template, or several by name: the converter writes the default one without a name."""
    names = file.array("tokenizer.chat_templates", str, [])
    texts = {name: file.get(f"tokenizer.chat_template.{name}") for name in names}
    default, named = file.get("tokenizer.chat_template"), {name: text for name, text in texts.items() if text}
    if not all(text is None or isinstance(text, str) for text in (default, *named.values())):
        raise UserError(f"{file.path}: tokenizer.chat_template is no text; download the file again.")
    return (named | ({"default": default} if default else {})) if named else default


def _named_tokens(file: _File, tokens: list[str]) -> dict[str, str]:
    named = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        number = file.token(key)
        if number is None:
            continue
        if not 0 <= number < len(tokens):
            raise UserError(f"{file.path}: tokenizer.ggml.{key}_token_id {number} is outside of the vocabulary.")
        named[f"{name}_token"] = tokens[number]
    return named


def _byte_level(file: _File, tokens: list[str]) -> tuple[tokenizers.Tokenizer, bool]:
    """Byte-level BPE, and whether texts begin with BOS where the file doesn't say.

    `tokenizer.ggml.pre` names the rule that cuts text into words before merging; merging under another rule gives
    other tokens, so unknown names are refused.
    """
    pre = file.need("tokenizer.ggml.pre")
    llama3 = pre in ("llama-bpe", "llama3", "llama-v3")
    if llama3:
        words = [pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")]
    elif pre == "smollm":
        words = [pre_tokenizers.Digits(individual_digits=True)]
    elif pre in ("gpt-2", "default"):
        words = []
    else:
        known = "smollm, llama-bpe, llama3, llama-v3, gpt-2 and default"
        raise UserError(f"{file.path}: tokenizer.ggml.pre {shown(pre)} is not supported; {known} are.")
    merges = [tuple(merge.split(" ")) for merge in file.array("tokenizer.ggml.merges", str)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    # Llama 3 takes a word that is itself a token whole, even where merging would not get there.
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=llama3))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not llama3)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*words, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, llama3

"""Tokenizers of Hugging Face folders, as `tokenizer.json` (or SentencePiece's `tokenizer.model`) says.

`transformers` builds the tokenizer of some classes (`LlamaTokenizer`, also where `tokenizer.json` is byte-level) anew
from the vocabulary alone, and differently from version to version. So the class that `tokenizer_config.json` names has
no say here: the file that says how texts are cut is taken as it stands, and the configuration adds what it is silent
about: the names of special tokens, the chat template, whether BOS is set.
"""

import base64
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tokenizers
from etils import epath
from tokenizers import AddedToken, decoders, models, normalizers, processors

from selfreward_jax.core.errors import UserError, in_one_line, shown
from selfreward_jax.core.paths import matching
from selfreward_jax.core.progress import say
from selfreward_jax.llama.hf import read_bytes, read_json, some
from selfreward_jax.llama.patterns import check_pattern

TOKENIZER = "tokenizer.json"
SENTENCEPIECE = "tokenizer.model"
CONFIG = "tokenizer_config.json"
FILES = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*chat_templates/*.jinja")

# What `tokenizer_config.json` may not say: where the tokenizer lies. It lies in the folder.
ELSEWHERE = ("tokenizer_file", "vocab_file", "merges_file", "gguf_file", "tokenizer_object", "fast_tokenizer_files")
MOST_GROWTH = 1000  # times, that a tokenizer's rules may lengthen a text; those that are known do it some 30 times
PROBE = "Why, hé\u0301 said: 12 漢字\n\n  \U0001f600."  # a text that is cut once, and the most ids that it may become
MOST_PROBE = 1000
MOST_PIECE = 256  # characters; SentencePiece learns up to 16

# Types of pieces, the same in SentencePiece's and in GGUF files.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def load_tokenizer(folder: epath.Path) -> Any:
    """The tokenizer of a folder, a `transformers.PreTrainedTokenizerFast`.

    Raises:
      UserError: there is none, or none that can be read exactly.
    """
    from transformers import PreTrainedTokenizerFast  # takes seconds, so only when it is needed

    whole, pieces = folder / TOKENIZER, folder / SENTENCEPIECE
    if not whole.exists() and not pieces.exists():
        raise UserError(
            f"{folder}: neither {TOKENIZER} nor {SENTENCEPIECE} is there; download the model's tokenizer files, or make"
            " the first with transformers' save_pretrained."
        )
    given = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    _check_given(given, str(folder / CONFIG))
    defaults: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as name,
        in_one_line(f"{folder}: no usable tokenizer", lambda text: text.replace(name, str(folder))),
    ):
        local = epath.Path(name)
        for pattern in FILES:
            for file in matching(folder, pattern):
                copy = local / file.relative_to(folder)
                copy.parent.mkdir(exist_ok=True)
                copy.write_bytes(read_bytes(file))
        if given:
            (local / CONFIG).write_text(json.dumps({k: v for k, v in given.items() if k not in ELSEWHERE}))
        if whole.exists():
            _check_rules(read_json(whole), str(whole))
        else:
            made, named = _from_sentencepiece(pieces, given)
            made.save(str(local / TOKENIZER))
            defaults = {name: token for name, token in named.items() if given.get(name) is None}
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name, local_files_only=True, **defaults)
        if (found := len(tokenizer.backend_tokenizer.encode(PROBE))) > MOST_PROBE:
            raise UserError(f"{folder}: its tokenizer makes {found:,} ids of a text of {len(PROBE)} characters.")
    own = tokenizer.chat_template
    if not all(text is None or isinstance(text, str) for text in (own.values() if isinstance(own, dict) else [own])):
        raise UserError(f"{folder}: chat_template is {shown(own)}; a text is needed, or several by name.")
    return tokenizer


def _check_given(given: Mapping[str, Any], where: str) -> None:
    """Refuses what would only show, as another error, when the first text is cut."""
    most = given.get("model_max_length")
    if most is not None and (type(most) not in (int, float) or not most >= 1):
        raise UserError(f"{where}: model_max_length is {shown(most)}; a number of tokens is needed.")


def _check_rules(state: Mapping[str, Any], where: str) -> None:
    """Refuses a `tokenizer.json` whose rules could take all time or memory, or that cuts a text by chance."""
    growth = {"encoding": 1.0, "decoding": 1.0}
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        way = "decoding" if part == "decoder" else "encoding"
        for rule in _rules(state.get(part)):
            pattern = rule.get("pattern")
            if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
                check_pattern(pattern["Regex"], where)
            growth[way] *= _growth(rule)
            if not growth[way] <= MOST_GROWTH:
                raise UserError(f"{where}: its {part} makes texts more than {MOST_GROWTH} times as long.")
    model = state.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        raise UserError(f"{where}: dropout {shown(model['dropout'])} cuts the same text now so, now so; remove it.")


def _rules(node: Any) -> Iterator[dict[str, Any]]:
    """All rules that one consists of, itself first."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            for inside in ("normalizers", "pretokenizers", "processors", "decoders"):
                waiting += node[inside] if isinstance(node.get(inside), list) else []


def _growth(rule: Mapping[str, Any]) -> float:
    """How many times as long a rule of `tokenizer.json` may make a text."""
    if rule.get("type") == "ByteLevel":
        return 2.0  # of every byte beyond ASCII, a letter beyond ASCII
    if rule.get("type") == "Prepend" and isinstance(rule.get("prepend"), str):
        return 1.0 + len(rule["prepend"])
    if rule.get("type") == "Precompiled" and isinstance(rule.get("precompiled_charsmap"), str):
        table = base64.b64decode(rule["precompiled_charsmap"])
        texts = table[4 + int.from_bytes(table[:4], "little") :]
        return max(map(len, texts.split(b"\0")))
    if rule.get("type") == "TemplateProcessing":
        texts = [rule[name] for name in ("single", "pair") if isinstance(rule.get(name), list)]
        return max((sum("Sequence" in piece for piece in text if isinstance(piece, dict)) for text in texts), default=1)
    pattern, content = rule.get("pattern"), rule.get("content")
    if rule.get("type") == "Replace" and isinstance(content, str) and isinstance(pattern, dict):
        plain = pattern.get("String")
        # An expression may find nothing, between any two characters.
        return max(1.0, len(content) / len(plain) if plain else len(content) + 1)
    return 1.0


def within_vocabulary(tokenizer: Any, size: int, template: str, where: str) -> Any:
    """The tokenizer without added tokens whose ids the weights have no row for, such as a padding token.

    Their texts are then ordinary texts. (Rows that the tokenizer has no token for stay; such an id reads as "".)

    Args:
      size: rows of the embedding.
      template: the chat template's source.
      where: the model's name, for messages.

    Raises:
      UserError: one of them is part of the vocabulary proper, begins or ends texts, or is written by the template.
    """
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= size}
    if not beyond:
        return tokenizer
    added = {str(token) for number, token in tokenizer.added_tokens_decoder.items() if number >= size}
    named = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    used = {v for k, v in named.items() if k in ("bos_token", "eos_token", "unk_token") or k in template}
    in_order = sorted(beyond, key=lambda token: beyond[token])
    if needed := [token for token in in_order if token not in added - used or token in template]:
        raise UserError(
            f"{where}: the tokenizer's {some(needed)} beyond the weights' vocabulary of {size}; take the tokenizer that"
            " belongs to the weights, or resize their embedding (transformers: model.resize_token_embeddings)."
        )
    say(f"{where}: {some(in_order)} beyond the weights' vocabulary of {size}, and left out of the tokenizer")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < size]
    return type(tokenizer)(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(state)),
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
        **{k: v for k, v in named.items() if v not in added},
    )


def _from_sentencepiece(path: epath.Path, given: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """A SentencePiece model as the same tokenizer of `tokenizers`, and what it calls its special tokens.

    Args:
      given: `tokenizer_config.json`, which says whether BOS (by default, as of Llama) and EOS are set.

    Raises:
      UserError: the file is none, or of a kind whose texts would be cut otherwise.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    made = f"make {TOKENIZER} with transformers' save_pretrained"
    proto: Any = sentencepiece_model_pb2
    model = proto.ModelProto()
    try:
        model.ParseFromString(read_bytes(path))
    except DecodeError:
        model.Clear()
    if not model.pieces:
        raise UserError(f"{path}: not a SentencePiece model; download it again, or {made}.")
    rules, trained = model.normalizer_spec, model.trainer_spec
    if trained.model_type != trained.BPE or trained.treat_whitespace_as_suffix or not trained.byte_fallback:
        raise UserError(f"{path}: of SentencePiece models, BPE with byte fallback is read; {made}.")
    if rules.precompiled_charsmap or rules.remove_extra_whitespaces or not rules.escape_whitespaces:
        raise UserError(f"{path}: changes texts before it cuts them ({rules.name}), which is not supported; {made}.")
    tokens, types = [piece.piece for piece in model.pieces], [piece.type for piece in model.pieces]
    if len(set(tokens)) < len(tokens):
        raise UserError(f"{path}: holds a piece twice; download it again.")
    names = {"bos_token": trained.bos_id, "eos_token": trained.eos_id, "unk_token": trained.unk_id}
    named = {name: tokens[number] for name, number in names.items() if 0 <= number < len(tokens)}
    built = sentencepiece_bpe(
        tokens, [piece.score for piece in model.pieces], types, named.get("unk_token"), rules.add_dummy_prefix
    )
    around = ["$A"]
    if given.get("add_bos_token", True) and "bos_token" in named:
        around = [named["bos_token"], *around]
    if given.get("add_eos_token", False) and "eos_token" in named:
        around = [*around, named["eos_token"]]
    ids = [(token, tokens.index(token)) for token in around if token != "$A"]
    built.post_processor = processors.TemplateProcessing(single=" ".join(around), special_tokens=ids)
    return built, named


def sentencepiece_bpe(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], unknown: str | None, prefix: bool
) -> tokenizers.Tokenizer:
    """SentencePiece BPE: merges follow from the pieces' scores; unknown characters fall back to bytes.

    The space before a text is prepended by a normaliser, as SentencePiece does it, even where the text already begins
    with one. (`pre_tokenizers.Metaspace` would not add a second.)

    Args:
      tokens, scores, types: of the pieces, by id.
      unknown: the token for what can't be written otherwise.
      prefix: whether a text gets a space before it.
    """
    vocabulary = {token: number for number, token in enumerate(tokens)}
    normal = {token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    if any(len(token) > MOST_PIECE or math.isnan(score) for token, score in normal.items()):
        raise ValueError(f"pieces of more than {MOST_PIECE} characters, or without a score")
    merges = merges_from_scores(normal)
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    text = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*text, decoders.Strip(" ", 1, 0)] if prefix else text)
    tokenizer.add_tokens(whole_tokens(tokens, types))
    return tokenizer


def whole_tokens(tokens: Sequence[str], types: Sequence[int]) -> list[AddedToken]:
    """The pieces that are found in a text before it is cut."""
    return [
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]


def merges_from_scores(scores: dict[str, float]) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE vocabulary: every way to cut a piece into two pieces, best score first."""
    merges = [
        (score, left, right)
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if (left := piece[:cut]) in scores and (right := piece[cut:]) in scores
    ]
    merges.sort(key=lambda merge: (-merge[0], -len(merge[1])))
    return [(left, right) for _, left, right in merges]

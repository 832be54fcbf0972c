"""Tokenizers of Hugging Face folders, as `tokenizer.json` (or SentencePiece's `tokenizer.model`) says.

`transformers` builds the tokenizer of some classes (`LlamaTokenizer`, also where `tokenizer.json` is byte-level) anew
from the vocabulary alone, and differently from version to version. So the class that `tokenizer_config.json` names has
no say here: the file that says how texts are cut is taken as it stands, and the configuration adds what it is silent
about: the names of special tokens, the chat template, whether BOS is set.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from etils import epath
from tokenizers import AddedToken, decoders, models, normalizers, processors

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.paths import matching
from selfreward_jax.core.progress import say
from selfreward_jax.llama.hf import read_json, some

TOKENIZER = "tokenizer.json"
SENTENCEPIECE = "tokenizer.model"
CONFIG = "tokenizer_config.json"
FILES = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*chat_templates/*.jinja")

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
    defaults: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        local = epath.Path(name)
        for pattern in FILES:
            for file in matching(folder, pattern):
                copy = local / file.relative_to(folder)
                copy.parent.mkdir(exist_ok=True)
                copy.write_bytes(file.read_bytes())
        if not whole.exists():
            given = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
            built, named = _from_sentencepiece(pieces, given)
            built.save(str(local / TOKENIZER))
            defaults = {name: token for name, token in named.items() if given.get(name) is None}
        try:
            return PreTrainedTokenizerFast.from_pretrained(name, local_files_only=True, **defaults)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].replace(name, str(folder))
            raise UserError(f"{folder}: no usable tokenizer ({reason}).") from None


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
        model.ParseFromString(path.read_bytes())
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
    merges = merges_from_scores(
        {token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    )
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

"""Tokenizers cut texts as their files say, whatever class they name and whatever version of transformers reads them."""

import json

import pytest
import sentencepiece
import tokenizers
from etils import epath

from selfreward_jax.core.errors import UserError
from selfreward_jax.llama.load import load_chat, load_model
from selfreward_jax.llama.tokenizer import load_tokenizer
from tests import tiny
from tests.core import small_tokenizers

TEXTS = [
    "Hello world, the answer to the question",
    " the price",
    "\nthe note",
    "  two  spaces\tand a tab",
    "é😀 \u0301x",
    "don't 1234",
    "<s>[INST] the [/INST]</s> the",
    "<|begin_of_text|>the<|eot_id|> of",
    "a<unk> b",
    " ",
    "",
]


def edit(path, **fields):
    """Sets fields of a JSON file; None takes them away."""
    value = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: x for key, x in value.items() if x is not None}))


# ---------------------------------------------------------------------------------------------------------------------
# tokenizer.json


@pytest.mark.parametrize("settings", [{"legacy": True}, {"legacy": False}, {"add_prefix_space": True}, {}], ids=str)
@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "LlamaTokenizer", "PreTrainedTokenizerFast", None])
@pytest.mark.parametrize("kind", ["llama3", "chatml", "llama2", "base"])
def test_ids_are_those_of_tokenizer_json_whatever_class_is_named(kind, name, settings, tmp_path):
    """DeepSeek-R1-Distill-Llama names `LlamaTokenizerFast`, which transformers 5.0 to 5.3 rebuild as SentencePiece."""
    getattr(small_tokenizers, kind)().save_pretrained(tmp_path)
    edit(tmp_path / "tokenizer_config.json", tokenizer_class=name, add_bos_token=True, add_eos_token=False, **settings)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    own, found = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), load_tokenizer(epath.Path(tmp_path))
    for text in TEXTS:
        ids = own.encode(text).ids
        assert found(text).input_ids == ids, text
        assert found(text, add_special_tokens=False).input_ids == own.encode(text, add_special_tokens=False).ids, text
        decoded = found.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert decoded == own.decode(ids, skip_special_tokens=True), text
    assert found.chat_template == getattr(small_tokenizers, kind)().chat_template


def test_a_folder_without_a_tokenizer_and_a_damaged_one_are_named(tmp_path):
    folder = tiny.make_model(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{")
    refused(r"tokenizer\.json: not valid JSON \(", folder)
    (folder / "tokenizer.json").unlink()
    refused(r"neither tokenizer\.json nor tokenizer\.model is there; download", folder)
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # tiktoken's, as in Llama 3's folder `original`
    refused(r"tokenizer\.model: not a SentencePiece model", folder)


def refused(message, folder):
    with pytest.raises(UserError, match=message) as caught:
        load_chat(str(folder))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# tokenizer.model


def train(folder, **settings):
    """A SentencePiece model trained as Llama 2's was, with its parameters but for the number of pieces."""
    options = {
        "vocab_size": 340,
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
    }
    folder.mkdir(exist_ok=True)
    lines = iter(small_tokenizers.CORPUS * 4)
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=file, **options | settings)
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("config", [None, {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>"}])
def test_a_sentencepiece_model_alone_gives_its_own_ids(config, prefix, tmp_path):
    theirs = train(tmp_path, add_dummy_prefix=prefix)
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = load_tokenizer(epath.Path(tmp_path))
    for text in TEXTS:
        if "<" in text:
            continue  # SentencePiece never finds control tokens in a text; chat templates need them found
        assert found(text, add_special_tokens=False).input_ids == theirs.encode(text), text
        assert found.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text)) == text
    assert (found.bos_token, found.eos_token, found.unk_token) == ("<s>", "</s>", "<unk>")
    assert found("the").input_ids == [theirs.bos_id(), *theirs.encode("the")]
    assert found("<s>the</s>", add_special_tokens=False).input_ids == [1, *theirs.encode("the"), 2]


def test_what_is_set_around_a_text_follows_the_configuration(tmp_path):
    theirs = train(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false, "add_eos_token": true}')
    assert load_tokenizer(epath.Path(tmp_path))("the").input_ids == [*theirs.encode("the"), theirs.eos_id()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "unigram", "vocab_size": 320}, "BPE with byte fallback is read"),
        ({"byte_fallback": False, "vocab_size": 100}, "BPE with byte fallback is read"),
        ({"normalization_rule_name": "nmt_nfkc"}, r"changes texts before it cuts them \(nmt_nfkc\)"),
        ({"remove_extra_whitespaces": True}, "changes texts before it cuts them"),
    ],
)
def test_other_sentencepiece_models_are_refused(settings, message, tmp_path):
    train(tmp_path, **settings)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(epath.Path(tmp_path))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# More tokens than rows of the embedding, and fewer


def with_added(folder, *tokens, size=None, **named):
    """The tiny model with added tokens, behind a vocabulary of `size` (by default the tokenizer's own)."""
    tokenizer = small_tokenizers.chatml()
    folder = tiny.make_model(folder, vocab_size=size or len(tokenizer))
    file = folder / "tokenizer.json"
    added = json.loads(file.read_text())["added_tokens"]
    added += [added[0] | {"id": len(tokenizer) + n, "content": token} for n, token in enumerate(tokens)]
    edit(file, added_tokens=added)
    edit(folder / "tokenizer_config.json", **named)
    return folder


def test_added_tokens_without_a_row_are_ordinary_text(tmp_path, capsys):
    folder = with_added(tmp_path / "model", "[PAD]", "<extra>", pad_token="[PAD]")
    config, chat = load_chat(str(folder))
    assert "[PAD], <extra> are beyond the weights' vocabulary of 361, and left out" in " ".join(
        capsys.readouterr().err.split()
    )
    plain = small_tokenizers.chatml()
    text = "the [PAD] of <extra>"
    assert chat.tokenizer(text).input_ids == plain(text).input_ids
    assert max(chat.tokenizer.get_vocab().values()) < config.vocab_size
    assert chat.eos_ids == (plain.eos_token_id,) and chat.pad_id < config.vocab_size
    messages = [{"role": "user", "content": text}]
    assert chat.tokenizer.apply_chat_template(messages, tokenize=False) == plain.apply_chat_template(
        messages, tokenize=False
    )


def test_added_tokens_with_a_row_stay(tmp_path):
    folder = with_added(tmp_path / "model", "[PAD]", "<extra>", size=len(small_tokenizers.chatml()) + 1)
    _, chat = load_chat(str(folder))
    assert chat.tokenizer("[PAD]").input_ids == [len(small_tokenizers.chatml())]
    assert len(chat.tokenizer("<extra>").input_ids) > 1


@pytest.mark.parametrize(
    ("tokens", "size", "named", "message"),
    [
        (["<end>"], None, {"eos_token": "<end>"}, "<end> is beyond the weights' vocabulary of 361"),
        (["<end>"], None, {"chat_template": "{{ messages[0].content }}<end>"}, "<end> is beyond"),
        (["[PAD]"], None, {"chat_template": "{{ messages[0].content + pad_token }}", "pad_token": "[PAD]"}, "PAD"),
        ([], 350, {}, r"and 8 more are beyond the weights' vocabulary of 350"),
    ],
)
def test_tokens_that_texts_need_must_have_a_row(tokens, size, named, message, tmp_path):
    if "chat_template" in named:
        template = named["chat_template"]
        folder = with_added(tmp_path / "model", *tokens, **{k: v for k, v in named.items() if k != "chat_template"})
        (folder / "chat_template.jinja").write_text(template)
    else:
        folder = with_added(tmp_path / "model", *tokens, **named)
        edit(folder / "config.json", vocab_size=size or 361)
    refused(message, folder)


def test_rows_without_a_token_read_as_nothing(tmp_path):
    """A padded vocabulary: the last rows belong to no token, and an id of theirs that is drawn has no text."""
    model = load_model(str(tiny.make_model(tmp_path / "model")))
    known = model.chat.text_ids("the note")
    assert model.config.vocab_size == len(model.chat.tokenizer) + 3
    last = model.config.vocab_size - 1
    assert model.chat.decode([*known, last, *known]) == "the notethe note"

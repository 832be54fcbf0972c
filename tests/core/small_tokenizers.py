"""Tokenizers of a few hundred entries, built like those of the models that users bring, and their chat templates."""

import copy
import functools
import json

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Please write a short note about the weather in the north and the price of the bread.",
    "### Request:\n### Answer:\nThe answer to the question is that there is no such thing, as the other one said.",
    "Score: 0 Score: 1 Score: 2 Score: 3 Score: 4 Score: 5 system user assistant [INST] [/INST]",
]

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.first %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set turns = messages %}{% set system = '' %}{% endif %}"
    "{% for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

MISTRAL_V1 = (  # no blank between the request and the answer, as in Mistral-7B-Instruct-v0.1
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token + ' ' }}"
    "{% endif %}{% endfor %}"
)
MISTRAL_V3 = (  # [INST] and [/INST] are control tokens
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% else %}{{ ' ' + message['content'] | trim + eos_token }}"
    "{% endif %}{% endfor %}"
)
ZEPHYR = (  # an end of turn after every message, which is the end of a text
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
DATED = (  # asks for today's date as Llama 3.2 does
    "{{ bos_token }}{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + today + '<|eot_id|>' }}"
) + LLAMA3.replace("{% if loop.first %}{% set content = bos_token + content %}{% endif %}", "")
REASONER = (  # keeps of an answer what follows its reasoning, and begins one when it asks, as DeepSeek-R1 does
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[U]' + message['content'] }}"
    "{% else %}{{ '[A]' + message['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[A]' }}{% endif %}"
)


def _special(names: list[str]) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in names]


def _byte_level(special: list[str]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 100 + len(special),
        special_tokens=_special(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@functools.cache
def chatml() -> PreTrainedTokenizerFast:
    """Like SmolLM2: BOS is `<|im_start|>`, which only the template writes, and `<|im_end|>` ends both turn and text."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(special),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
    )


@functools.cache
def llama3() -> PreTrainedTokenizerFast:
    """Like Llama 3.1: both the tokenizer and the template write BOS, and a turn ends with another token than a text."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"]
    special += ["<|eot_id|>", "<|python_tag|>", "<|reserved_special_token_0|>"]
    tokenizer = _byte_level(special)
    bos = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos[0]} $A", pair=f"{bos[0]} $A {bos[0]}:1 $B:1", special_tokens=[bos]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos[0], eos_token="<|end_of_text|>", chat_template=LLAMA3
    )


def _sentencepiece(template: str | None, prefix: str = "legacy", more: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Pieces as SentencePiece learns them, in one of the ways in which `tokenizers` writes them down.

    Args:
      prefix: "legacy": a blank is put before every stretch of text, by the normaliser; else the `prepend_scheme` of the
        pre-tokeniser: "always", "first" or "never".
      more: control tokens beside `<unk>`, `<s>` and `</s>`.
    """
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *more, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(learned["vocab"], key=learned["vocab"].get)
    merges = [tuple(merge) for merge in learned["merges"]]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if prefix == "legacy":
        tokenizer.normalizer = normalizer
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    strip = [] if prefix == "never" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens(_special(pieces[: 3 + len(more)]))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


@functools.cache
def llama2() -> PreTrainedTokenizerFast:
    """Like Llama 2 Chat: SentencePiece pieces with bytes for what they lack, `<s>` before a text, `</s>` after it."""
    return _sentencepiece(LLAMA2)


@functools.cache
def base() -> PreTrainedTokenizerFast:
    """Like Llama 2: the same tokenizer without a chat template."""
    return _sentencepiece(None)


@functools.cache
def mistral_v1() -> PreTrainedTokenizerFast:
    return _sentencepiece(MISTRAL_V1)


@functools.cache
def mistral_v3() -> PreTrainedTokenizerFast:
    return _sentencepiece(MISTRAL_V3, "first", ("[INST]", "[/INST]"))


@functools.cache
def zephyr() -> PreTrainedTokenizerFast:
    """Like TinyLlama and Zephyr."""
    return _sentencepiece(ZEPHYR)


@functools.cache
def always() -> PreTrainedTokenizerFast:
    """SentencePiece with a blank before every stretch of text, by the pre-tokeniser."""
    return _sentencepiece(ZEPHYR, "always")


@functools.cache
def never() -> PreTrainedTokenizerFast:
    """SentencePiece without a blank before a text."""
    return _sentencepiece(LLAMA2, "never")


@functools.cache
def gpt2() -> PreTrainedTokenizerFast:
    """Byte-level, one token for begin and end, which it doesn't set itself, and no template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(["<|endoftext|>"]), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


def with_template(tokenizer: PreTrainedTokenizerFast, template) -> PreTrainedTokenizerFast:
    """A copy with another chat template, or several by name."""
    made = copy.deepcopy(tokenizer)
    made.chat_template = template
    return made

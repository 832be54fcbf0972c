"""From messages to token ids and back, with exactly one BOS and one EOS where they belong.

A conversation is rendered by the tokenizer's chat template (or a plain one for base models). Contents are
neutralised before they are rendered: a control token's text that a user or a model wrote stays visible text and can
never become that control token. Sampled responses are kept as ids and are never tokenised again.
"""

import copy
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from selfreward_jax.core.errors import UserError

Message = Mapping[str, str]

# Splits a control string so that no tokenizer recognises it, while a reader hardly sees the difference.
ZERO_WIDTH_SPACE = "\u200b"


def neutralise(text: str, control_strings: Sequence[str]) -> str:
    """Puts a zero-width space after the first character of each control string that occurs in `text`.

    Also of those that overlap or lie within another. A single character can't be split, so it is left alone.
    """
    pattern = "|".join(re.escape(s) for s in control_strings if len(s) > 1)
    if not pattern:
        return text
    return re.sub(f"(?={pattern}).", lambda match: match[0] + ZERO_WIDTH_SPACE, text, flags=re.DOTALL)


def plain_template() -> str:
    """The template for base models that bring none of their own."""
    return (resources.files("selfreward_jax") / "templates" / "plain.jinja").read_text()


class Chat:
    """A tokenizer together with the template that its model is trained and asked with.

    Attributes:
      eos_ids: ids that end a response, the end of a turn first; the model's own among them.
      bos_id: id that stands before a text, or None.
      adds_bos: whether the tokenizer itself sets it before a text.
      pad_id: any valid id; masks come from lengths, so its value has no influence.
    """

    def __init__(self, tokenizer, *, template: str = "", eos_ids: Sequence[int] = (), bos_id: int | None = None):
        """Args:
        tokenizer: a transformers fast tokenizer.
        template: "" for the tokenizer's own (a plain one if it has none), "plain", or Jinja source.
        eos_ids: the model's end ids from its configuration.
        bos_id: the model's begin id, used where the tokenizer names none.
        """
        tokenizer = copy.deepcopy(tokenizer)
        if template == "plain" or not (template or tokenizer.chat_template):
            tokenizer.chat_template = plain_template()
        elif template:
            tokenizer.chat_template = template
        if isinstance(tokenizer.chat_template, dict):
            tokenizer.chat_template = tokenizer.chat_template.get("default") or plain_template()
        self.tokenizer = tokenizer
        self.bos_id = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else bos_id
        self.adds_bos = self.bos_id is not None and tokenizer("x").input_ids[:1] == [self.bos_id]
        # Some tokenizers add runs of blanks as tokens; those control nothing.
        self._control = sorted({str(t) for t in tokenizer.added_tokens_decoder.values() if str(t).strip()})
        end = self._end_of_turn()
        ends = ([] if end is None else [end]) + list(eos_ids)
        ends += [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        if not ends:
            raise UserError("tokenizer: no EOS id is known; set eos_token in tokenizer_config.json.")
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(int(i) for i in ends))
        self.text_eos_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else self.eos_ids[0]
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_ids[0]

    def _end_of_turn(self) -> int | None:
        """The control token that the template puts after an assistant's answer, or None."""
        probe = "\ue000"
        text = self._render([{"role": "user", "content": "x"}, {"role": "assistant", "content": probe}], False)
        if probe not in text:
            raise UserError("chat template: an assistant's content does not appear in what it renders.")
        after = self._encode(text.rsplit(probe, 1)[1])
        special = set(self.tokenizer.added_tokens_decoder) - {self.bos_id}
        if self.tokenizer.eos_token_id is not None:
            special.add(self.tokenizer.eos_token_id)
        return next((i for i in after if i in special), None)

    def _render(self, messages: Sequence[Message], generation: bool, unfinished: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                tokenize=False,
                add_generation_prompt=generation,
                continue_final_message=unfinished,
            )
        except Exception as error:  # templates raise their own exceptions
            raise UserError(f"chat template: can't render {[m['role'] for m in messages]} ({error}).") from None

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def neutral(self, text: str) -> str:
        """`text` without anything that this tokenizer would read as a control token."""
        return neutralise(text, self._control)

    def render(self, messages: Sequence[Message], generation: bool = True) -> str:
        """A conversation as its template writes it, up to where the assistant's answer begins.

        Args:
          generation: False: up to the end of the last message, which the assistant has begun.
        """
        return self._render(
            [{**m, "content": self.neutral(m["content"])} for m in messages], generation, not generation
        )

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant's answer begins, with one BOS if the tokenizer has one."""
        ids = self._encode(self.render(messages))
        if self.adds_bos and ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]
        return ids

    def text_ids(self, text: str) -> list[int]:
        """Ids of plain text: no BOS, no EOS, no control tokens."""
        return self._encode(self.neutral(text))

    def response_ids(self, text: str) -> list[int]:
        """Ids of an answer that a person wrote, with the end of turn: what training on it should teach."""
        return [*self.text_ids(text), self.eos_ids[0]]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled ids, with everything from the first end id on, and control tokens, left out."""
        end = next((n for n, i in enumerate(ids) if i in self.eos_ids), len(ids))
        return self.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the tokenizer and of the chat template, for provenance."""
        own = json.loads(self.tokenizer.backend_tokenizer.to_str())
        return {
            "tokenizer": sha256_json(own),
            "chat_template": hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest(),
        }


def sha256_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

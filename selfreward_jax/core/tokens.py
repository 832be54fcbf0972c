"""From messages to token ids and back, with exactly one BOS and one EOS where they belong.

A conversation is rendered by the tokenizer's chat template (or a plain one for base models). Contents are
neutralised before they are rendered: a control token's text that a user or a model wrote stays visible text and can
never become that control token. Sampled responses are kept as ids and are never tokenised again.

A text that stands behind another is never tokenised alone, since many tokenizers write it otherwise at the beginning
of a text. Both are tokenised as one text, and the first token in which that differs from the prompt alone begins the
answer: where prompt and answer merge into one token, that token is the answer's.
"""

import copy
import datetime
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from selfreward_jax.core.errors import UserError, in_one_line, shorten
from selfreward_jax.core.rendering import TemplateError, render

Message = Mapping[str, str]

# Behind a message that is to go on: a template that strips blanks takes its last one.
_MARK = "\ue000 "

# Splits a control string so that no tokenizer recognises it, while a reader hardly sees the difference.
ZERO_WIDTH_SPACE = "\u200b"

# What a template that asks for today's date is told, so that a prompt doesn't depend on the day: the date that Llama
# 3.1's own template names.
DATE = "2024-07-26"


def _breaks(text: str, control_strings: Sequence[str]) -> list[int]:
    """Where control strings begin in `text`, also those that overlap or lie within another.

    A single character can't be split, so it is left alone.
    """
    pattern = "|".join(re.escape(s) for s in control_strings if len(s) > 1)
    return [match.start() for match in re.finditer(f"(?={pattern})", text)] if pattern else []


def neutralise(text: str, control_strings: Sequence[str]) -> str:
    """Puts a zero-width space after the first character of each control string that occurs in `text`."""
    cuts = [0, *(start + 1 for start in _breaks(text, control_strings)), len(text)]
    return ZERO_WIDTH_SPACE.join(text[start:end] for start, end in itertools.pairwise(cuts))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two texts begin with together."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _plain(token: Any) -> Any:
    return [*map(str, token)] if isinstance(token, list | tuple) else str(token)


def _rest(before: Sequence[int], whole: list[int]) -> list[int] | None:
    return whole[len(before) :] if common_prefix(before, whole) == len(before) else None


def _as_on(date: str) -> str:
    """Jinja source in which `strftime_now` is the beginning of that day, and not the clock's now."""
    day = datetime.datetime.fromisoformat(date)
    told = "".join(f" | replace('%{c}', {day.strftime(f'%{c}')!r})" for c in "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ")
    numbers = {"d": day.day, "e": day.day, "m": day.month, "y": day.year % 100, "j": day.timetuple().tm_yday}
    numbers |= {"H": 0, "k": 0, "I": 12, "l": 12, "M": 0, "S": 0}
    bare = "".join(f" | replace('%-{code}', '{n}')" for code, n in numbers.items())
    parts = "{% for part in format.split('%%') %}{{ '%' if not loop.first }}{{ part" + bare + told + " }}{% endfor %}"
    return "{% macro strftime_now(format) %}" + parts + "{% endmacro %}\n"


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
      date: what a template that asks for today's date is told, "" if it doesn't ask.
    """

    def __init__(
        self,
        tokenizer,
        *,
        template: str = "",
        eos_ids: Sequence[int] = (),
        bos_id: int | None = None,
        date: str = DATE,
    ):
        """Args:
        tokenizer: a transformers fast tokenizer.
        template: "" for the tokenizer's own (a plain one if it has none; of several the one named default), the name
          of one of its own, "plain", or Jinja source.
        eos_ids: the model's end ids from its configuration.
        bos_id: the model's begin id, used where the tokenizer names none.
        date: for a template that asks for today's date, YYYY-MM-DD.

        Raises:
          UserError: several templates, none of them named default, and no choice; no end id is known; a template that
            leaves an assistant's answer out.
        """
        try:
            datetime.date.fromisoformat(date)
        except ValueError:
            raise UserError(f"config.model.date: {date!r} is no date; give YYYY-MM-DD.") from None
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = choose_template(tokenizer.chat_template, template)
        self.date = date if "strftime_now" in tokenizer.chat_template else ""
        self._plain = tokenizer.chat_template == plain_template()
        self._source = (_as_on(self.date) if self.date else "") + tokenizer.chat_template
        self.tokenizer = tokenizer
        self._named_tokens = {name: _plain(token) for name, token in tokenizer.special_tokens_map.items()}
        self.bos_id = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else bos_id
        with in_one_line("tokenizer: can't cut a text"):
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
        return self._render_all([messages], generation, unfinished)[0]

    def _render_all(
        self, conversations: Sequence[Sequence[Message]], generation: bool, unfinished: bool = False, told: bool = False
    ) -> list[str]:
        shared = {**self._named_tokens, "tools": None, "documents": None, "add_generation_prompt": generation}
        shown = [_marked(messages) if unfinished else messages for messages in conversations]
        try:
            texts = render(self._source, shared, [[dict(m) for m in messages] for messages in shown])
            return [_up_to_mark(text, n) for n, text in enumerate(texts)] if unfinished else texts
        except TemplateError as error:
            wrong, reason = conversations[error.number], " ".join(str(error).split()).rstrip(".")[:300]
            which = f"prompt {shorten(wrong[-1]['content'])}: " if told else ""
            raise UserError(f"{which}chat template: can't render {[m['role'] for m in wrong]} ({reason}).") from None

    def _encode(self, text: str) -> list[int]:
        with in_one_line("tokenizer: can't cut a text"):
            return self.tokenizer(text, add_special_tokens=False).input_ids

    def neutral(self, text: str) -> str:
        """`text` without anything that this tokenizer would read as a control token."""
        return neutralise(text, self._control)

    def _neutral(self, messages: Sequence[Message]) -> list[Message]:
        return [{**m, "content": self.neutral(m["content"])} for m in messages]

    def render(self, messages: Sequence[Message], generation: bool = True) -> str:
        """A conversation as its template writes it, up to where the assistant's answer begins.

        Args:
          generation: False: up to the end of the last message, which the assistant has begun.
        """
        return self._render(self._neutral(messages), generation, not generation)

    def _conversation_ids(self, text: str) -> list[int]:
        """Ids of what the template wrote; a model's own has the last word on its BOS, as with transformers."""
        return self._with_bos(self._encode(text))

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.adds_bos and self._plain and ids[:1] != [self.bos_id]
        return [self.bos_id, *ids] if bos else ids  # type: ignore[list-item]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant's answer begins, with the BOS that its template writes.

        Before the plain template, which writes none, stands one if the tokenizer sets one before texts.
        """
        return self._conversation_ids(self.render(messages))

    def prompts_ids(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        """As `prompt_ids`, of many conversations, in much less time; an error names the one that can't be rendered."""
        texts = self._render_all([self._neutral(messages) for messages in conversations], True, told=True)
        with in_one_line("tokenizer: can't cut a text"):
            ids = self.tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        return [self._with_bos(some) for some in ids]

    def begun_ids(self, messages: Sequence[Message], begun: str) -> list[int]:
        """Ids of a conversation whose answer the assistant has begun with the text `begun`."""
        text = self.render(messages)
        whole = self.render([*messages, {"role": "assistant", "content": begun}], False)
        return self._conversation_ids(whole if whole.startswith(text) else text + self.neutral(begun))

    def begin_ids(self, messages: Sequence[Message], begun: str) -> list[int] | None:
        """Ids with which an answer begins behind those of `prompt_ids`, None where the two merge."""
        return _rest(self.prompt_ids(messages), self.begun_ids(messages, begun))

    def answer_ids(self, messages: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
        """Ids of a conversation and of an answer that a person wrote, up to its end of turn.

        Together they are what the template makes of the conversation with the answer, which may strip blanks around
        it. A template that keeps less of an answer than its text (its reasoning, for instance), or that asks otherwise
        than it tells, is not followed: then the answer stands as given behind the prompt.

        Returns:
          The prompt's ids, which are those of `prompt_ids` unless its end merges with the answer; the answer's.
        """
        prompt, (response,) = self.answers_ids(messages, [answer])
        return prompt, response

    def answers_ids(self, messages: Sequence[Message], answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """As `answer_ids`, of several answers behind the same ids."""
        neutral, said = self._neutral(messages), [self.neutral(answer) for answer in answers]
        text = self._render(neutral, True)
        asked = self._conversation_ids(text)
        told = self._render_all([[*neutral, {"role": "assistant", "content": answer}] for answer in said], False)
        wholes = [self._whole_ids(text, asked, *both) for both in zip(said, told, strict=True)]
        shared = min((common_prefix(asked, whole) for whole in wholes), default=len(asked))
        return asked[:shared], [whole[shared:] for whole in wholes]

    def _whole_ids(self, text: str, asked: Sequence[int], answer: str, whole: str) -> list[int]:
        """Ids of a prompt's `text`, `asked` alone, with an answer behind; `whole` is what the template makes of it."""
        rest = whole[len(text) :] if whole.startswith(text) else ""
        lead = len(rest) - len(rest.lstrip())
        if rest[lead:].startswith(answer.strip()):
            ids = self._conversation_ids(whole)
            begin = common_prefix(asked, ids)
            if self.eos_ids[0] in ids[begin:]:
                return ids[: ids.index(self.eos_ids[0], begin) + 1]
            blanks = len(answer) - len(answer.rstrip())
            end = lead + len(answer.strip())
            answer = rest[: end + blanks] if rest[end : end + blanks].isspace() else rest[:end]
        return [*self._conversation_ids(text + answer), self.eos_ids[0]]

    def raw_ids(self, prompt: str, response: str) -> tuple[list[int], list[int]]:
        """Ids of BOS + prompt + response + EOS, without a template, cut where the response begins.

        Raises:
          UserError: no token stands before the response.
        """
        first = [] if self.bos_id is None else [self.bos_id]
        # A control string that goes across the seam is broken up as well.
        broken = _breaks(prompt + response, self._control)
        whole, seam = self.neutral(prompt + response), len(prompt) + sum(start < len(prompt) for start in broken)
        asked, ids = self._encode(whole[:seam]), self._encode(whole)
        begin = common_prefix(asked, ids)
        if not first and not begin:
            raise UserError("this tokenizer has no BOS, and no token of the prompt stands apart before the response")
        return [*first, *ids[:begin]], [*ids[begin:], self.text_eos_id]

    def text_ids(self, text: str) -> list[int]:
        """Ids of a text with nothing before it: no BOS, no EOS, no control tokens."""
        return self._encode(self.neutral(text))

    def ids_behind(self, before: str, text: str) -> list[int] | None:
        """Ids that `text` has behind `before`, None where the two merge."""
        return _rest(self._encode(before), self._encode(before + text))

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
            "chat_template": hashlib.sha256(self._source.encode()).hexdigest(),
        }


def renderable(chat: Chat) -> Callable[[Sequence[Message]], None]:
    """A check that the template renders conversations, once for each order of roles, on which templates depend.

    It raises `UserError` for one that can't be rendered.
    """

    @functools.cache
    def check(roles: tuple[str, ...]) -> None:
        chat.answer_ids([{"role": role, "content": "x"} for role in roles], "x")

    return lambda messages: check(tuple(m["role"] for m in messages))


def _marked(messages: Sequence[Message]) -> list[Message]:
    return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + _MARK}]


def _up_to_mark(text: str, number: int) -> str:
    """A conversation up to the end of its last message, as transformers continues one."""
    end = text.rfind(_MARK.rstrip())
    if end < 0:
        raise TemplateError("the last message doesn't appear in it", number)
    return text[:end] if text[end:].startswith(_MARK) else text[:end].rstrip()


def choose_template(own: str | Mapping[str, str] | None, wanted: str) -> str:
    """The Jinja source of a template, given what a tokenizer brings and what is asked for."""
    if wanted == "plain" or not (wanted or own):
        return plain_template()
    if isinstance(own, Mapping):
        name = wanted or "default"
        if name in own:
            return own[name]
        if not wanted:
            raise UserError(
                f"chat template: the model brings several ({', '.join(own)}), and none of them is named default;"
                " choose one: --config.model.chat_template=NAME, or --chat_template=NAME."
            )
    return wanted or str(own)


def sha256_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

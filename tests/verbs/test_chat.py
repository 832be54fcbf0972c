"""A talk with a model, over standard input and output."""

import jax
import numpy as np
import pytest

from selfreward_jax import cli
from selfreward_jax.chat import converse
from selfreward_jax.llama.load import load_model
from selfreward_jax.llama.model import forward
from tests.refused import assert_refused_at_once


def talk(model, lines: list[str], **options) -> list[str]:
    """What is said when these lines are typed, and then the end of the input."""
    typed = iter(lines)
    said: list[str] = []

    def ask(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    settings = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 8, "seed": 0} | options
    converse(model, ask=ask, tell=said.append, **settings)
    assert next(typed, None) is None, "it stopped before the last line"
    return said[1:]  # the first is the greeting


@pytest.fixture(scope="module")
def trained(finished):
    return load_model(str(finished / "m3"))


@pytest.mark.slow
def test_chat_answers_each_line_that_is_not_empty(trained):
    said = talk(trained, ["What is it?", "", "   ", "Is it so?"])
    assert len(said) == 2
    assert all(text.strip() for text in said)


def test_chat_remembers_until_new(data):
    model = load_model(str(data / "model"))  # random, so every word of the past tells
    first, second, again = talk(model, ["What is it?", "What is it?", "/new", "What is it?"])
    assert first == again != second
    said = first.removesuffix("\n").removesuffix(" [...]")
    messages = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "What is it?"},
    ]
    expected = model.chat.decode(greedy_ids(model, model.chat.prompt_ids(messages), 8))
    assert second.removesuffix("\n").removesuffix(" [...]") == expected


def greedy_ids(model, ids: list[int], n: int) -> list[int]:
    """The most probable continuation, by one whole forward pass per token."""
    run = jax.jit(forward, static_argnums=0)
    made: list[int] = []
    while len(made) < n and (not made or made[-1] not in model.chat.eos_ids):
        made.append(int(run(model.config, model.params, np.array([[*ids, *made]]))[0, -1].argmax()))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("word", ["/exit", "/quit"])
def test_chat_ends_with_a_word(word, trained):
    typed = iter([word])
    converse(trained, temperature=0, top_p=1, max_new_tokens=8, seed=0, ask=lambda _: next(typed), tell=lambda _: None)
    assert next(typed, "nothing more was asked") == "nothing more was asked"


@pytest.mark.slow
def test_chat_ends_with_ctrl_c(trained):
    def ask(prompt: str) -> str:
        raise KeyboardInterrupt

    converse(trained, temperature=0, top_p=1, max_new_tokens=8, seed=0, ask=ask, tell=lambda _: None)


@pytest.mark.slow
def test_chat_says_that_a_line_is_too_long_and_goes_on(trained):
    too_long, answer = talk(trained, ["zqj " * 2000, "What is it?"])
    assert "tokens" in too_long
    assert answer == talk(trained, ["What is it?"])[0]


@pytest.mark.slow
def test_chat_marks_an_answer_that_was_cut(trained):
    (answer,) = talk(trained, ["What is it?"], max_new_tokens=1)
    assert answer.endswith(" [...]\n")


def test_chat_refuses_more_tokens_than_the_context(capsys, data):
    words = ["chat", f"--model={data / 'model'}", "--max_new_tokens=2048"]
    assert_refused_at_once(capsys, words, "--max_new_tokens=2048", "2048 tokens")


@pytest.mark.slow
def test_chat_with_a_workdir_takes_its_newest_model(capsys, finished, monkeypatch):
    def ask(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setitem(converse.__kwdefaults__, "ask", ask)
    assert cli.main(["chat", f"--workdir={finished}"]) == 0
    assert str(finished / "m3") in capsys.readouterr().out


def test_chat_prints_text_that_no_terminal_obeys(capsys, data, monkeypatch, tmp_path):
    (tmp_path / "m\x1b]0;title\x07\x9b31m").symlink_to(data / "model")

    def ask(prompt: str) -> str:
        raise EOFError

    monkeypatch.setitem(converse.__kwdefaults__, "ask", ask)
    assert cli.main(["chat", f"--model={tmp_path}/m\x1b]0;title\x07\x9b31m"]) == 0
    said = capsys.readouterr().out
    assert "\u241b]0;title\u2407[U+009B]31m" in said and not {"\x1b", "\x07", "\x9b"} & set(said)

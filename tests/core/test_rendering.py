# ruff: noqa: E501 (templates stand as they are)
"""Chat templates write what transformers writes, and none can hold or fill the process that asks for it."""

import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

from selfreward_jax.core import rendering
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt, Interrupted, at_once, on_signals
from selfreward_jax.core.rendering import TemplateError, render
from selfreward_jax.core.tokens import Chat
from tests import tiny
from tests.core import small_tokenizers

ASKED = [{"role": "user", "content": "x" * 40}]
REPEAT = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
HOSTILE = {
    "a long text": "{{ 'a' * 2000000000 }}",
    "a long list": "{{ ([1] * 1000000000) | length }}",
    "nested ranges": REPEAT + "{% endfor %}{% endfor %}{% endfor %}",
    "nested ranges that write": REPEAT + "x{% endfor %}{% endfor %}{% endfor %}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by +": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling a list": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "squares": "{% set ns = namespace(x=7) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a power, not shown": "{% set x = 7 ** (7 ** 12) %}a",
    "a power's digits": "{{ (10 ** 2000000) | string | length }}",
    "center": "{{ 'a' | center(3000000000) }}",
    "ljust": "{{ 'a'.ljust(3000000000) }}",
    "zfill": "{{ '1'.zfill(3000000000) }}",
    "a width": "{{ '%3000000000d' % 1 }}",
    "a format": "{{ '{:3000000000}'.format(1) }}",
    "a filter's format": "{{ '%3000000000s' | format('x') }}",
    "indent": "{{ 'a\nb' | indent(2000000000) }}",
    "batch": "{{ [1] | batch(2000000000, 'x') | list | length }}",
    "replace": "{{ ('a' * 300000).replace('a', 'b' * 300000) }}",
    "join": "{{ range(99999) | join('b' * 99999) }}",
    "tojson": "{{ [[1]] | tojson(indent=2000000000) }}",
    "recursion": "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "recursion twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "a recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "a loop over characters": "{% for a in 'x' * 9999999 %}{% for b in 'x' * 9999999 %}{% endfor %}{% endfor %}",
    "nested brackets": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "nested lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "nested blocks": "{% if 1 %}" * 3000 + "x" + "{% endif %}" * 3000,
    "a long source": "{% if a %}b{% endif %}" * 200000,
    "sums": "{{ range(99999) | map('string') | map('center', 99999) | list | length }}",
    "sort": "{% for i in range(99999) %}{% set x = range(99999) | sort(reverse=true) %}{% endfor %}",
    "lorem": "{{ lipsum(n=100000, min=1000, max=2000) }}",
    "only for long messages": "{% if messages[0].content | length > 39 %}{{ 'a' * 2000000000 }}{% endif %}",
    "its own error, long": "{{ raise_exception('e' * 100000000) }}",
    "all at once": "{{ 'a' * 20000000 }}",
}


def chat_with(template: str) -> Chat:
    """A chat whose template writes any conversation but one that holds forty times x, for which it is `template`."""
    safe = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    whole = "{% if messages[0].content != 'x' * 40 %}" + safe + "{% else %}" + template + "{% endif %}"
    return Chat(small_tokenizers.chatml(), template=whole)


def seconds() -> float:
    """Of the processor, here and in processes that have ended; of a clock, others on the machine would take some."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(x.ru_utime + x.ru_stime for x in used)


def own_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused_within_two_seconds_and_costs_no_memory_here(name):
    before, began = own_peak(), seconds()
    with pytest.raises(UserError, match="^chat template: ") as refused:
        chat_with(HOSTILE[name]).prompt_ids(ASKED)
    assert seconds() - began < 2
    assert own_peak() - before < 200 << 20
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
    assert render("{{ messages[0].content }}", {}, [ASKED]) == ["x" * 40]  # the next one is rendered as ever


TALK = [
    {"role": "system", "content": " Be <brief> & kind. "},
    {"role": "user", "content": 'Wie heißt "du"?\n'},
    {"role": "assistant", "content": "  A name.\n\n"},
    {"role": "user", "content": "x\ud83d 😀</s>"},
]
WRITES = {
    "ChatML": small_tokenizers.CHATML,
    "trimmed": "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m.content | trim }}{{ eos_token }}\n{% endfor %}",
    "blocks' lines": "{% for m in messages %}\n    {% if loop.first %}\n  first\n    {% endif %}\n{{ m.content }}\n{% endfor %}\n",
    "JSON": "{# content #}{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ {'b': 'é', 'a': 1} | tojson(sort_keys=true) }}",
    "break": "{% for m in messages %}{% if loop.index0 == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}{{ messages[-1].content }}",
    "continue": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}\n{{ m.content }}{% set x = 1 %}{% endgeneration %}\n{% else %}{{ m.content }}{{ x }}{% endif %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}{{ m.content }}{% endfor %}{{ ns.n }}",
    "macro": "{%- macro turn(m, n=1) -%}\n<{{ m.role }}{{ n }}>{{ m.content }}\n{%- endmacro -%}{% for m in messages %}{{ turn(m, loop.index) }}{% endfor %}",
    "dict": "{% set d = dict(a=1) %}{% for m in messages %}{{ d.a }}{{ m.content }}{% endfor %}",
    "undefined": "{{ nothing }}{% if tools is none and documents is none and not date_string is defined %}none{% endif %}{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}",
    "asks": "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<asks>{% endif %}",
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("how", ["asked", "told", "begun"])
def test_a_template_writes_what_it_writes_with_transformers(name, how):
    tokenizer = small_tokenizers.llama2()
    chat = Chat(tokenizer, template=WRITES[name])
    said = TALK if how == "asked" else TALK[:3]
    wanted = tokenizer.apply_chat_template(
        said,
        chat_template=WRITES[name],
        tokenize=False,
        add_generation_prompt=how == "asked",
        continue_final_message=how == "begun",
    )
    assert chat._render(said, how == "asked", how == "begun") == wanted


def test_many_are_rendered_as_each_alone_and_an_error_names_its_conversation():
    chat = Chat(small_tokenizers.llama2(), template=WRITES["asks"])
    many = [[{"role": "user", "content": f"{n} " * n}] for n in range(1, 200)]
    assert chat.prompts_ids(many) == [chat.prompt_ids(one) for one in many]
    assert chat.prompts_ids([]) == []
    picky = "{% if messages[0].content == '150' %}{{ raise_exception('no ' + 'more') }}{% endif %}" + WRITES["asks"]
    chat = Chat(small_tokenizers.llama2(), template=picky)
    with pytest.raises(UserError, match=r"^prompt '150': chat template: can't render \['user'\] \(no more\)\.$"):
        chat.prompts_ids([[{"role": "user", "content": str(n)}] for n in range(200)])


def test_of_many_the_one_that_takes_too_long_is_named():
    template = "{% if messages[0].content == '70' %}" + HOSTILE["nested ranges"] + "{% endif %}" + WRITES["asks"]
    with pytest.raises(TemplateError, match="processor time") as refused:
        render(template, {}, [[{"role": "user", "content": str(n)}] for n in range(100)])
    assert refused.value.number == 70


FORKED = """
import os
from selfreward_jax.core.rendering import render
asked = [{"role": "user", "content": "x"}]
assert render("{{ messages[0].content }}", {}, [asked]) == ["x"]
child = os.fork()
assert render("{{ messages[0].role }}", {}, [asked]) == ["user"]
if child:
    assert os.waitpid(child, 0)[1] == 0
    assert render("{{ messages[0].content }}", {}, [asked]) == ["x"]
"""


def test_a_process_that_was_forked_renders_for_itself():
    """In one without JAX, whose threads don't outlive a fork."""
    ended = subprocess.run([sys.executable, "-c", FORKED], cwd=tiny.ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


def test_a_signal_ends_a_rendering_in_its_midst_and_the_next_is_not_given_its_text():
    interrupt = Interrupt()
    slow = "{% for i in range(30000) %}{% for j in range(30000) %}{% endfor %}{% endfor %}late"
    with on_signals(interrupt):
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Interrupted):
            render(slow, {}, [ASKED])
        with pytest.raises(Interrupted), at_once():  # what is begun after a signal ends as well
            pass
    assert interrupt.requested
    assert render("{{ messages[0].content }}", {}, [ASKED]) == ["x" * 40]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_ended_by_others_is_begun_anew(number):
    for _ in range(2):
        assert render("{{ messages[0].content }}", {}, [ASKED]) == ["x" * 40]
        child = rendering._renderer()._child
        assert child
        child.send_signal(number)
        if number == signal.SIGKILL:
            child.wait()
    assert render("{{ messages[0].content }}", {}, [ASKED]) == ["x" * 40]

"""Command lines and configurations: flags, overrides, files that hold a configuration, and files of templates."""

import argparse
import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfreward_jax import flags
from selfreward_jax.configs import base
from selfreward_jax.core.config import leaves, load_config
from selfreward_jax.methods.judge_function import checked_score, load_function
from tests import tiny
from tests.fuzz.artefacts import a_run
from tests.fuzz.data_rows import ALPACA, DEMONSTRATIONS, IFEVAL, QUESTIONS, RANKED
from tests.fuzz.harness import command
from tests.fuzz.mutate import NUMBERS, WORDS, as_lines, mutated

Thunk = Callable[[], object]
FIELDS = tuple(leaves(base.get_config()))
CONFIGS = (
    "raise SystemExit(3)", "import sys; sys.exit()", "class E(BaseException): pass\nraise E",
    "print('x' * 100)\n", "1 / 0", "def f(): return f()\nf()", "get_config = 3", "def get_config(): return None",
    "def get_config(): return {}", "def get_config(): raise ValueError('a\\nb')", "def get_config(): yield 1",
    "def get_config(x): return x", "import nothing_of_this_name", "def get_config(: pass", "\x00", "",
    "def get_config(): return get_config()", "raise Exception()", "raise GeneratorExit", "import os; os.chdir('/')",
    "class C:\n  def __repr__(self): raise ValueError\ndef get_config(): return C()",
)  # fmt: skip
VALUES = (
    "10 ** 5000", "-1", "float('nan')", "float('inf')", "object()", "None", "True", "(1, 2)", "[]", "{}", "'a\\nb'",
    "'\\ud800'", "2 ** 70", "1e400", "lambda: 1", "b'x'", "b", "'\\0'", "...", "set()", "type", "{'a': b}", "1j", "'1'",
)  # fmt: skip


def override(rng: random.Random) -> str:
    name, default = rng.choice(FIELDS)
    if rng.random() < 0.15:
        name = rng.choice(
            (name + ".x", name.partition(".")[0], name[1:], name.upper(), "", "x.y", "__class__", "items")
        )
    text = rng.choice(NUMBERS if isinstance(default, int | float | tuple) and rng.random() < 0.8 else WORDS)
    return rng.choice(("--config.{}={}",) * 8 + ("--config.{} {}", "--config.{}", "--config{}={}")).format(name, text)


def overrides(rng: random.Random, folder: Path) -> Thunk:
    given = [override(rng) for _ in range(rng.choice((1, 1, 2)))]
    return functools.partial(load_config, tiny.BASE, given)


def config_file(rng: random.Random, folder: Path) -> Thunk:
    path = folder / "config.py"
    if rng.random() < 0.4:
        text = rng.choice(CONFIGS)
    else:
        name = rng.choice(FIELDS)[0]
        place = rng.choice((f"c.{name}", f"c.{name.partition('.')[0]}", "c.new", f"c['{name}']"))
        text = "from selfreward_jax.configs import base as b\ndef get_config():\n  c = b.get_config()\n"
        text += f"  {rng.choice(('', 'c.unlock()', 'c.lock()'))}\n"
        text += "  with c.unlocked(), c.ignore_type():\n"
        text += f"    {place} = {rng.choice(VALUES)}\n  return c\n"
    code = text.encode(errors="surrogatepass")
    path.write_bytes(mutated(rng, code) if rng.random() < 0.2 else code)
    given = [override(rng)] if rng.random() < 0.1 else []
    words = ["plan", f"--config={path}{rng.choice(('', '', '', ':x'))}", "--topology=cpu:1", *given]
    return rng.choice((functools.partial(load_config, str(path), given), command(words)))


def judge_function(rng: random.Random, folder: Path) -> Thunk:
    path = folder / "mine.py"
    bodies = ("return 3", "return 'x'", "raise ValueError('a\\nb')", "return float('nan')", "import sys; sys.exit(1)",
              "return 10**400", "return [1]", "1/0", "return score(prompt, response)")  # fmt: skip
    text = f"def score(prompt, response):\n  {rng.choice(bodies)}\n" if rng.random() < 0.6 else rng.choice(CONFIGS)
    path.write_bytes(mutated(rng, text.encode()) if rng.random() < 0.2 else text.encode())
    name = f"{path}:score" if rng.random() < 0.8 else rng.choice(WORDS) + rng.choice(("", ":score", ".py:score"))
    return lambda: checked_score(load_function(name), ({"role": "user", "content": "x"},), "y")


def _verb_flags() -> dict[str, list[argparse.Action]]:
    found = {}
    for name, verb in flags.VERBS.items():
        parser = argparse.ArgumentParser(add_help=False)
        verb.arguments(parser)
        found[name] = parser._actions
    return found


VERB_FLAGS = _verb_flags()
del VERB_FLAGS["eval harness"]  # which reads thousands of lm-eval's own files before anything else
FILES: dict[str, list[Any]] = {
    "--data": RANKED, "--prompts": ALPACA, "--questions": QUESTIONS, "--responses": DEMONSTRATIONS[:1],
    "--input": DEMONSTRATIONS, "--ift": DEMONSTRATIONS, "--exclude": ALPACA,
}  # fmt: skip


def command_line(rng: random.Random, folder: Path) -> Thunk:
    """A verb with all that it needs but a model, and a flag or two that are wrong."""
    verb = rng.choice(sorted(VERB_FLAGS))
    words = {"sides": ["no/a", "no/b"]} if verb == "eval winrate" and rng.random() < 0.8 else {}
    run = None
    for action in VERB_FLAGS[verb]:
        flag = action.option_strings[0] if action.option_strings else action.dest
        if flag in FILES and (action.required or rng.random() < 0.5):
            path = folder / f"{action.dest}.jsonl"
            rows = IFEVAL if verb == "eval ifeval" and flag == "--data" else FILES[flag]
            path.write_bytes(as_lines(rng, rows) if rng.random() < 0.3 else tiny.write_jsonl(path, rows).read_bytes())
            words[flag] = [f"{flag}={path}"] if action.nargs is None else [flag, str(path)]
        elif flag == "--workdir" and (action.required or rng.random() < 0.3):
            run = run or a_run(folder)
            words[flag] = [f"--workdir={run}"]
        elif action.required or rng.random() < 0.2:
            given = {"--model": "no/model", "--output": str(folder / "out"), "--topology": "cpu:1", "--tasks": "x"}
            given |= {"--config": "no.py" if verb == "sandbox" else tiny.BASE}
            words[flag] = [f"{flag}={given.get(flag, rng.choice(WORDS + NUMBERS))}"]
    for _ in range(rng.choice((1, 1, 2))):
        action = rng.choice(VERB_FLAGS[verb])
        flag = action.option_strings[0] if action.option_strings else action.dest
        text = rng.choice(NUMBERS if action.type and rng.random() < 0.8 else WORDS)
        words[flag] = [f"{flag}={text}"] if flag.startswith("--") else [text]
    line = [*verb.split(), *(word for given in words.values() for word in given)]
    if verb == "sandbox":  # it needs no model, and would train one
        words["--config"] = ["--config=no.py"]
    if "--config" in words or rng.random() < 0.2:
        line += ["--config.model.path=no/model", *([override(rng)] if rng.random() < 0.5 else [])]
    if rng.random() < 0.05:
        line.insert(rng.randrange(len(line) + 1), rng.choice(WORDS))
    if rng.random() < 0.03:
        line = [rng.choice(WORDS) for _ in range(rng.randrange(4))]
    return command(line)


TARGETS = {
    "overrides": overrides,
    "config_file": config_file,
    "judge_function": judge_function,
    "command_line": command_line,
    "command_line_too": command_line,
    "command_line_as_well": command_line,
}

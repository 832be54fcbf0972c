"""`~` is the home folder wherever a path may stand, and no folder is named so; all rows go through one reader."""

import argparse
import gzip
import importlib.util
from pathlib import Path

import pytest

from selfreward_jax import cli
from selfreward_jax.core.config import load_config
from selfreward_jax.core.paths import local_path
from selfreward_jax.llama.load import load_chat
from tests import tiny
from tests.refused import assert_refused, assert_refused_at_once

# A whole command of each verb. Files lie in the home folder; each test puts something else in one place.
RUN = ["--config=~/config.py", "--workdir=~/run", *[f"--config.{n}={v}" for n, v in tiny.SETTINGS.items()]]
RUN += ["--config.model.path=~/model", "--config.seeds.ift=~/ift.jsonl", "--config.seeds.eft=~/eft.jsonl"]
RUN += ["--config.prompts.source=~/prompts.jsonl", "--config.judge.template=~/judge.txt"]
RANKED = ["--model=~/model", "--data=~/ranked.jsonl", "--output=~/out", "--config=~/config.py"]
COMMANDS = {
    **dict.fromkeys(("run", "sft", "prompts", "respond", "judge", "pairs", "dpo"), RUN),
    "eval alpaca": ["--model=~/model", "--prompts=~/prompts.jsonl", "--output=~/out", "--config=~/config.py"],
    "eval mt_bench": ["--model=~/model", "--questions=~/mt.jsonl", "--output=~/out", "--config=~/config.py"],
    "eval ifeval": ["--data=~/ifeval.jsonl", "--responses=~/answers.jsonl", "--output=~/out", "--config=~/config.py"],
    "eval judge": RANKED,
    "eval winrate": ["~/answers.jsonl", "~/model", "--judge=~/model", "--output=~/out", "--config=~/config.py"],
    "seeds": [*RANKED, "--eft_rows=2", "--eft_validation_rows=0", "--ift_rows=1"],
    "plan": ["--config=~/config.py", "--topology=cpu:1"],
    "report": ["--workdir=~/done", "--output=~/report.html"],
    "score": ["--model=~/model", "--input=~/ift.jsonl", "--output=~/scored.jsonl"],
    "export": ["--model=~/model", "--output=~/exported"],
    "sandbox": ["--config=~/config.py", "--workdir=~/sandbox"],
    "chat": ["--model=~/model"],
}
GONE, TAKEN, BROKEN = "~/gone", "~/taken", "~/broken.py"
INSTEAD = {  # where a flag goes with other flags than those above
    ("eval ifeval", "--model"): ["--data=~/ifeval.jsonl", "--output=~/out"],
    ("eval judge", "--workdir"): ["--data=~/ranked.jsonl"],
    ("eval judge", "--reference"): [*RANKED, "--reward=implicit"],
    ("eval winrate", "--workdir"): ["--prompts=~/prompts.jsonl"],
    ("chat", "--workdir"): [],
    ("seeds", "--ift"): RANKED,
}
# Their value goes the way of another's, after minutes (or with lm-eval); the functions that read them have their tests.
ELSEWHERE = {("plan", "--output"), ("sandbox", "--workdir"), ("eval mt_bench", "--judge")}


def path_flags(parser: argparse.ArgumentParser, verb: str = "") -> list[tuple[str, str]]:
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                found += path_flags(sub, f"{verb} {word}".strip())
        elif action.metavar in ("DIR", "FILE", "RUN", "A B"):
            found.append((verb, action.option_strings[0] if action.option_strings else "A B"))
    return found


FLAGS = [f for f in path_flags(cli.parser()) if f not in ELSEWHERE and f[0] != "eval harness"]


@pytest.fixture
def home(data, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "home"
    (folder / "taken").mkdir(parents=True)
    (folder / "taken" / "mine.txt").write_text("mine")
    (folder / "broken.py").write_text("raise ValueError('read at home')")
    (folder / "config.py").write_text(Path(tiny.BASE).read_text())
    for name in ("model", "ift.jsonl", "eft.jsonl", "prompts.jsonl", "judge.txt"):
        (folder / name).symlink_to(data / name)
    ranked = {"prompt": "Why?", "responses": [{"text": "So.", "rank": 0}, {"text": "No.", "rank": 1}]}
    tiny.write_jsonl(folder / "ranked.jsonl", [ranked | {"prompt": f"Why {n}?"} for n in range(9)])
    tiny.write_jsonl(folder / "answers.jsonl", [{"prompt": "Why?", "response": "So."}])
    question = {"question_id": 1, "category": "math", "turns": ["Why?", "How?"]}
    tiny.write_jsonl(folder / "mt.jsonl", [question])
    asked = {"key": 1, "prompt": "Why?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    tiny.write_jsonl(folder / "ifeval.jsonl", [asked])
    (folder / "done").mkdir()
    (folder / "done" / "config.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(folder))
    return folder


def without_literal_tilde() -> bool:
    return not [p for p in Path.cwd().rglob("*") if "~" in p.name]


def command(verb: str, flag: str, value: str) -> list[str]:
    words = [w for w in INSTEAD.get((verb, flag), COMMANDS[verb]) if w.partition("=")[0] != flag]
    words = [value if w == "~/model" else w for w in words] if flag == "A B" else [*words, f"{flag}={value}"]
    return [*verb.split(), *words]


@pytest.mark.parametrize(("verb", "flag"), FLAGS, ids=[f"{verb} {flag}" for verb, flag in FLAGS])
def test_every_flag_that_takes_a_path_means_the_home_folder(verb, flag, home, capsys):
    value = {"--config": BROKEN, "--output": TAKEN, "--workdir": TAKEN}.get(flag, GONE)
    if flag == "--output" and verb in ("report", "score"):
        value = f"{GONE}/file"
    at_home = str(home / Path(value).parts[1])
    assert_refused(capsys, command(verb, flag, value), "read at home" if value == BROKEN else at_home)
    assert without_literal_tilde() and (home / "taken" / "mine.txt").read_text() == "mine"


ROWS = [
    ("eval alpaca", "--prompts"), ("eval mt_bench", "--questions"), ("eval ifeval", "--data"), ("score", "--input"),
    ("eval ifeval", "--responses"), ("eval judge", "--data"), ("eval winrate", "A B"), ("eval winrate", "--prompts"),
    ("seeds", "--data"), ("seeds", "--ift"), ("seeds", "--exclude"),
    *[("run", f"--config.{name}") for name in ("seeds.ift", "seeds.eft", "prompts.source")],
]  # fmt: skip


@pytest.mark.parametrize(("verb", "flag"), ROWS, ids=[f"{verb} {flag}" for verb, flag in ROWS])
def test_every_flag_that_takes_rows_takes_them_in_every_form(verb, flag, home, capsys):
    """What no reader but the one of all forms would say, of a file in a folder that `datasets` splits."""
    (home / "rows").mkdir()
    (home / "rows" / "test.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n3\n"))
    words = command(verb, flag, "hf:~/rows:test")
    assert_refused(capsys, words, f"{home / 'rows' / 'test.csv.gz'}:", "1 cells where the header has 2 columns")


FIELDS = {
    "model.path": GONE,
    "model.adapter": GONE,
    "model.chat_template": GONE,
    "seeds.ift": "~/gone.jsonl",
    "seeds.eft": "~/gone.jsonl",
    "prompts.source": "~/gone.jsonl",
    "judge.template": GONE,
    "judge.function": "~/gone.py:f",
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_the_configuration_that_is_a_path_does_too(field, home, capsys):
    words = [*RUN, f"--config.{field}={FIELDS[field]}"]
    words += ["--config.judge.method=function"] * (field == "judge.function")
    assert_refused(capsys, ["run", *words], str(home / "gone"))
    assert without_literal_tilde()


def test_what_is_written_to_the_home_folder_lies_there(home, capsys):
    for verb in ("score", "export"):
        assert cli.main([verb, *COMMANDS[verb]]) == 0
    assert len((home / "scored.jsonl").read_text().splitlines()) == 32
    assert load_chat("~/exported")[0] == load_chat(str(home / "model"))[0]
    assert without_literal_tilde()


def test_a_path_keeps_a_links_name_and_goes_up_from_where_it_leads(tmp_path, monkeypatch):
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "inner")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "real"))
    assert local_path("link") == tmp_path / "link" and local_path("~/inner") == tmp_path / "real" / "inner"
    assert local_path("link/../x") == tmp_path / "real" / "x" and local_path(".") == tmp_path
    assert str(local_path("gs://bucket/~/x")) == "gs://bucket/~/x"


def test_an_unknown_users_home_is_one_line(data, capsys):
    words = ["score", f"--model={data / 'model'}", "--input=~nobody-of-this-name/x", "--output=x"]
    assert_refused(capsys, words, "~nobody-of-this-name/x: there is no such user's home folder here")


def test_a_configuration_at_home_takes_its_argument(home):
    lines = ["from configs import base", "def get_config(x):", " c = base.get_config()", " c.seed = int(x)"]
    (home / "mine.py").write_text("\n".join([*lines, " return c"]))
    assert load_config("~/mine.py:7").seed == 7


ADDRESS = "https://huggingface.co/org/name"


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--model", ADDRESS, f"{ADDRESS}: addresses of this kind aren't read; download it"),
        ("--input", f"{ADDRESS}/x.jsonl", "addresses of this kind aren't read"),
        ("--output", "ftp://a/b", "ftp://a/b: addresses of this kind aren't read"),
        ("--input", "", "no data set is named"),
        ("--output", "", "a path is empty"),
        ("--output", "~/taken", "a folder; name a file"),
        ("--input", "a\nb", "a b: no such file"),
    ],
)
def test_what_is_no_path_is_one_line(flag, value, expected, home, capsys):
    assert_refused_at_once(capsys, command("score", flag, value), expected)


def test_a_store_whose_package_is_missing_is_one_line(home, capsys):
    if importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is there")
    assert_refused_at_once(capsys, command("score", "--input", "s3://bucket/x.jsonl"), "pip install s3fs")


def test_preferences_at_an_address_are_one_line(home, capsys):
    words = [*RUN, f"--config.dpo.data={ADDRESS}"]
    assert_refused(capsys, ["run", *words], f"{ADDRESS}: addresses of this kind aren't read")


def test_a_reference_is_looked_at_before_any_row_is_scored(home, capsys):
    assert_refused_at_once(capsys, command("score", "--reference", "nope/x"), "nope/x")
    words = [*command("score", "--reference", "~/model"), "--chat_template=nope.jinja"]
    assert_refused_at_once(capsys, words, "nope.jinja")
    assert not (home / "scored.jsonl").exists()


def test_with_raw_a_column_system_is_not_passed_over(home, capsys):
    row = {"prompt": "Why?", "response": "So.", "system": "Be kind."}
    rows = tiny.write_jsonl(home / "rows.jsonl", [row])
    words = [*command("score", "--input", str(rows)), "--raw"]
    assert_refused_at_once(capsys, words, "rows.jsonl:1: with --raw, system would not be read")


def test_a_templates_own_refusal_is_one_line(home, capsys):
    (home / "no.jinja").write_text("{{ raise_exception('This model\\n  takes no turn.') }}")
    (home / "one.jsonl").write_text('{"prompt": "a", "response": "b"}')
    words = [*COMMANDS["score"], "--chat_template=~/no.jinja", "--input=~/one.jsonl"]
    assert_refused_at_once(capsys, ["score", *words], "~/no.jinja", "This model takes no turn)")

"""A fixed two thousand inputs (`make fuzz N=20000` runs as many as asked), and what such inputs have found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from selfreward_jax import cli
from selfreward_jax.configs import base
from selfreward_jax.core.config import load_config, to_dict
from selfreward_jax.core.errors import UserError, one_line
from selfreward_jax.core.paths import local_path
from selfreward_jax.core.readers import fingerprint, read_rows
from selfreward_jax.core.rows import Judgement, Pair, Response, from_dict
from selfreward_jax.core.stored import loads, read_json
from selfreward_jax.methods.judge_function import checked_score, load_function
from selfreward_jax.verbs.runs import config_of_run
from tests import tiny
from tests.refused import assert_refused_at_once


@pytest.mark.slow
def test_two_thousand_inputs_are_read_or_refused_in_one_line(data, finished):
    words = [sys.executable, "-m", "tests.fuzz.harness", "--n=2000"]
    env = tiny.environment() | {"SELFREWARD_FUZZ_DATA": str(finished.parent)}
    done = subprocess.run(words, cwd=tiny.ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", ["a\nb", "a\x00b\x1b[2J", "\ud800", "x" * 10_000, "a\u2028b\u202eb"])
def test_a_message_is_one_line_that_can_be_printed(text):
    said = str(UserError(f"{text}: no such file."))
    assert said.isprintable()
    assert len(said) < 1000
    assert said.endswith("no such file.")
    assert str(UserError(said)) == said == one_line(said)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_what_is_no_file_is_not_read(kind, tmp_path):
    path = {"fifo": tmp_path / "rows.jsonl", "device": Path("/dev/zero"), "folder": tmp_path}[kind]
    if kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(UserError, match="not a file|no .* file in"):
        fingerprint(path)
    if kind != "folder":
        with pytest.raises(UserError, match="not a file"):
            load_config(str(path))
        with pytest.raises(UserError, match="not a file"):
            read_rows(path, dict, "rows")


@pytest.mark.parametrize(
    ("path", "said"),
    [("file:///x", "without file://"), ("s3://b/x", "pip install s3fs"), ("x://y", "aren't read"), ("a\0b", "NUL")],
)
def test_an_address_that_can_not_be_reached_says_why(path, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # wherever it is installed
    with pytest.raises(UserError, match=said):
        local_path(path)


RESPONSE = {
    "id": "a", "prompt_id": "b", "index": 0, "token_ids": [1, 2], "text": "x", "stop_reason": "eos", "logp": -1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", 5), ("index", True), ("index", 1.0), ("index", 10**30), ("token_ids", [1.5]), ("token_ids", "12"),
        ("token_ids", [-1]), ("token_ids", [2**33]), ("token_ids", [None]), ("text", None), ("logp", float("nan")),
        ("logp", float("inf")), ("logp", "1"), ("logp", None), ("logp", 10**400),
    ],
)  # fmt: skip
def test_a_row_has_values_of_its_types(name, value):
    assert from_dict(Response, RESPONSE).token_ids == (1, 2)
    with pytest.raises(ValueError, match=f"^{name} must be "):
        from_dict(Response, RESPONSE | {name: value})


def test_rows_may_hold_what_their_types_allow():
    judged = {"id": "a", "response_id": "b", "index": 0, "text": "x", "score": None, "stop_reason": "eos"}
    assert from_dict(Judgement, judged | {"score_probs": [0.5, 0.5]}).score_probs == (0.5, 0.5)
    with pytest.raises(ValueError, match="score_probs"):
        from_dict(Judgement, judged | {"score_probs": [0.5, "x"]})
    with pytest.raises(ValueError, match="prompt"):
        from_dict(Pair, dict.fromkeys(Pair.__dataclass_fields__, "") | {"prompt": [{"role": 1}], "weight": 1})


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "9" * 5000, '{"a": 1' + "0" * 30 + "}", "{"])
def test_json_that_no_parser_takes_is_a_line(text, tmp_path):
    (tmp_path / "facts.json").write_text(text)
    with pytest.raises(UserError, match=r"facts\.json: not valid JSON \(.*\); restore it\.$"):
        read_json(local_path(tmp_path / "facts.json"))


def test_numbers_in_texts_stay_what_they_are():
    hashed = {"sha256": "1" * 64, "n": 2**63 - 1}
    assert loads(json.dumps(hashed)) == hashed


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.json", lambda text: "[" * 100_000),
        ("config.json", lambda text: text.replace('"seed": ', '"seed": "x", "was": ', 1)),
        ("config.json", lambda text: json.dumps(json.loads(text) | {"judge": 3})),
        ("manifest.jsonl", lambda text: text.replace('"metrics": {', '"metrics": 3, "x": {', 1)),
        ("manifest.jsonl", lambda text: text.replace('"steps": ', '"steps": [], "x": ', 1)),
        ("m2/metrics.jsonl", lambda text: text.replace('"loss": ', '"loss": "high", "x": ', 1)),
        ("m2/metrics.jsonl", lambda text: text.replace('"step": ', '"x": ', 1)),
        ("m2/pairs.jsonl", lambda text: text.replace('"score_chosen": ', '"score_chosen": "5", "x": ', 1)),
        ("m2/judgements.jsonl", lambda text: text.replace('"score": ', '"score": NaN, "index": ', 1)),
        ("m2/dropped.jsonl", lambda text: '{"prompt_id": "a", "response_id": [], "reason": "x"}\n'),
        ("m2/responses.jsonl", lambda text: text.encode().replace(b'"text": "', b'"text": "\xff', 1)),
        ("m2/metrics.jsonl", lambda text: b"\xff\n"),
        ("manifest.jsonl", lambda text: b"\xff\n"),
    ],
)
@pytest.mark.slow
def test_a_report_of_a_damaged_run_names_the_file(name, damage, finished, tmp_path, capsys):
    run = tmp_path / "run"
    for path in finished.rglob("*.json*"):
        if "checkpoints" not in path.parts:
            (made := run / path.relative_to(finished)).parent.mkdir(parents=True, exist_ok=True)
            made.write_bytes(path.read_bytes())
    text = damage((run / name).read_text())
    (run / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused_at_once(capsys, ["report", f"--workdir={run}"], str(run / name))
    if name != "manifest.jsonl":  # as it was written, for all that is known, and still nothing that can be used
        tiny.forget(run, name)
        assert_refused_at_once(capsys, ["report", f"--workdir={run}"], str(run / name))


@pytest.mark.parametrize(
    "text",
    ["raise SystemExit(3)", "class E(BaseException): pass\nraise E", "def f(): f()\nf()", "raise ValueError", "1 / 0"],
)
def test_python_of_a_user_may_raise_what_it_likes(text, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert_refused_at_once(capsys, ["plan", f"--config={path}", "--topology=cpu:1"], "mine.py")
    with pytest.raises(UserError, match=r"mine\.py:score: can't be imported: \w+: .*mine\.py:\d"):
        load_function(f"{path}:score")
    with pytest.raises(UserError, match=r"ZeroDivisionError: .* at .*:\d+$"):
        checked_score(lambda prompt, response: 1 / 0, (), "x")


@pytest.mark.parametrize("value", ["10 ** 5000", "float('nan')", "object()", "'\\ud800'"])
def test_a_configuration_of_any_values_is_refused_in_one_line(value, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from selfreward_jax.configs import base\ndef get_config():\n  c = base.get_config()\n"
        f"  with c.ignore_type():\n    c.dpo.beta = {value}\n  return c\n"
    )
    with pytest.raises(UserError, match=r"config\.dpo\.beta: |int too large"):
        load_config(str(path))


def test_a_flag_that_is_given_two_dashes_has_no_value(capsys, tmp_path):
    assert_refused_at_once(capsys, ["report", f"--workdir={tmp_path}", "--seed=--"], "--seed=--")


@pytest.mark.parametrize("value", ["a\nb", "9" * 5000, "[1,", "nan", "1e999", "\udcff"])
def test_an_override_of_any_text_is_refused_in_one_line(value, capsys):
    words = ["plan", f"--config={tiny.BASE}", "--topology=cpu:1", f"--config.respond.n={value}"]
    assert cli.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_stored_configuration_with_a_name_that_is_none_is_one_line(tmp_path):
    stored = to_dict(base.get_config()) | {"a.b": 1}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"config\.json: not as it was written \(.*a\.b"):
        config_of_run(epath.Path(tmp_path))

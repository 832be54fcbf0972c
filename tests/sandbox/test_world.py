"""The made world's truth, its people, and its files."""

import dataclasses
import random

import pytest
from etils import epath

from selfreward_jax import cli
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.rows import as_messages
from selfreward_jax.core.seeds import load_eft, load_ift
from selfreward_jax.methods.judging import JudgeTemplate, parse_score
from selfreward_jax.sandbox import world
from selfreward_jax.sandbox.seeds import WorldSettings, make_tokenizer, make_world
from selfreward_jax.sandbox.world import Task, human_answer, human_judgement, random_task, read_task, true_score
from tests.tiny import read_jsonl, snapshot

SMALL = WorldSettings(ift_rows=60, eft_rows=300, list_rows=5, held_out=20, hidden=32, layers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("world")
    make_world(epath.Path(path), SMALL, seed=3)
    return path


@pytest.mark.parametrize(
    "kind, right",
    [("copy", "abcde"), ("reverse", "gfedc"), ("rotate", "bcdea"), ("swap", "badce"), ("next", "bcdef")],
)
def test_every_kind_asks_for_five_letters(kind, right):
    assert Task(kind, "abcdefg").answer == right


def test_the_letter_after_the_last_is_the_first():
    assert Task("next", "jjjaa").answer == "aaabb"


def test_each_right_place_is_a_point_and_flourishes_are_none():
    task = Task("copy", "abcde")
    scores = [true_score(task, text) for text in ("abcde", "abcde!!!", "abc", "edcba", "xbcdx", "", "!!!!!")]
    assert scores == [5, 5, 3, 1, 3, 0, 0]


def test_a_text_that_asks_for_nothing_of_this_world_has_no_score():
    assert read_task("reverse bdace") == Task("reverse", "bdace")
    for text in ("reverse bdac", "reverse bdacex", "sort bdace", "reverse bdace please", "reverse bdacebda"):
        assert read_task(text) is None and world.score(as_messages(text), "bdace") is None
    assert world.score(as_messages("reverse bdace"), "ecadx") == 4.0


def test_hands_slip_as_often_as_they_should():
    rng = random.Random(0)
    tasks = [Task("copy", "abcde")] * 2000
    scores = [true_score(t, human_answer(t, 0.45, rng)) for t in tasks]
    assert sum(scores) / 2000 == pytest.approx(5 * 0.55, abs=0.08)


def test_without_noise_a_person_judges_by_the_truth_and_a_bias_pays_for_flourishes():
    rng = random.Random(0)
    for _ in range(50):
        task = random_task(rng)
        answer = human_answer(task, 0.5, rng)
        assert parse_score(human_judgement(task, answer, 0.0, 0.0, rng)) == true_score(task, answer)
    wrong = "?????!!"
    assert parse_score(human_judgement(Task("copy", "abcde"), wrong, 0.0, 1.0, rng)) == 2
    assert human_judgement(Task("copy", "abcde"), "abxde", 0.0, 0.0, rng) == "aa+bb+cx-dd+ee+\nScore: 4"


def test_a_person_scores_an_answer_in_the_same_way_again_with_noise_and_bias():
    def score(response, asked="copy abcde", seed=0, noise=0.2, bias=0.0):
        return world.score_of_a_person(as_messages(asked), response, noise=noise, bias=bias, seed=seed)

    tasks = [random_task(random.Random(n)) for n in range(400)]
    found = [score(t.answer, t.text) for t in tasks]
    assert found == [score(t.answer, t.text) for t in tasks] != [score(t.answer, t.text, seed=1) for t in tasks]
    assert sum(found) / 400 == pytest.approx(4.0, abs=0.15)
    assert [score(text, noise=0.0, bias=1.0) for text in ("?????", "?????!!", "abcde!!")] == [0, 2, 5]
    assert score("abcde", asked="sing a song") is None


def test_noise_turns_marks_around():
    rng = random.Random(0)
    found = [parse_score(human_judgement(Task("copy", "abcde"), "abcde", 0.2, 0.0, rng)) for _ in range(1000)]
    assert sum(found) / 1000 == pytest.approx(4.0, abs=0.1)


def test_the_files_are_seeds_that_a_run_reads(folder):
    template = JudgeTemplate(str(folder / "judge.txt"))
    assert len(load_ift(str(folder / "ift.jsonl"))) == SMALL.ift_rows + SMALL.list_rows
    assert len(load_eft(str(folder / "eft.jsonl"), template.messages, parse_score)) == SMALL.eft_rows


def test_no_task_is_learnt_from_and_measured_on(folder):
    sets = [
        {row["prompt"] for row in read_jsonl(folder / f"{name}.jsonl")}
        for name in ("eft", "tasks", "held_out", "judged")
    ]
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_every_score_has_its_share_of_the_judgements(folder):
    scores = [parse_score(row["judgement"]) for row in read_jsonl(folder / "eft.jsonl")]
    assert {scores.count(n) > 0.05 * len(scores) for n in range(6)} == {True}


def test_the_same_seed_makes_the_same_world_and_another_seed_another(folder, tmp_path):
    make_world(epath.Path(tmp_path / "same"), SMALL, seed=3)
    make_world(epath.Path(tmp_path / "other"), SMALL, seed=4)
    same, other = snapshot(tmp_path / "same"), snapshot(tmp_path / "other")
    assert same == snapshot(folder)
    assert all(same[name] != other[name] for name in ("ift.jsonl", "eft.jsonl", "held_out.jsonl"))


def test_the_tokenizer_loses_nothing_and_has_a_token_a_letter():
    tokenizer = make_tokenizer()
    text = 'reverse bdace\nee+cx-\nScore: 4 !"~ list tasks 12.'
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert len(tokenizer.encode("reverse bdace", add_special_tokens=False)) == 1 + 1 + 5


def test_a_folder_keeps_its_world(folder):
    with pytest.raises(UserError, match=r"begun with another world \(judge_bias: 0.0 -> 1.0\); choose a new folder"):
        make_world(epath.Path(folder), dataclasses.replace(SMALL, judge_bias=1.0), seed=3)


def test_one_model_can_not_be_compared(tmp_path, capsys):
    words = ["sandbox", f"--workdir={tmp_path}", "--config.loop.iterations=1"]
    assert cli.main(words) == 2 and "at least 2" in capsys.readouterr().err

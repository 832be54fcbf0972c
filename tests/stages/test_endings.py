"""What becomes of texts that the limit cut or a stop string ended, in every stage that reads them."""

import pytest

from selfreward_jax.core.rows import Judgement, Prompt, Response
from selfreward_jax.core.tokens import Chat
from selfreward_jax.engine.generate import Completion, Request
from selfreward_jax.methods.answer_metrics import answer_metrics
from selfreward_jax.methods.judging import JudgeTemplate
from selfreward_jax.stages import prompts, verdicts
from selfreward_jax.stages.judge import judgement_row
from selfreward_jax.stages.pairs import make_pairs
from selfreward_jax.stages.run import ModelRef
from tests.core.small_tokenizers import chatml


def ended(text: str, reason: str, rest: str = "", read: tuple[float, ...] | None = None) -> Completion:
    return Completion(Request("q", (1,)), 0, (2, 3), text, reason, 0.0, 3, rest, read)


@pytest.mark.parametrize(
    ("text", "rest", "ending", "prompt", "reason"),
    [
        (" Name a bird", "?", "stop", "Name a bird?", None),
        (" Name a bird.", "", "eos", "Name a bird.", None),
        (" Name a bird that", "", "length", "Name a bird that", "truncated"),
        (" Name a bird. 2. Name a", "", "length", "Name a bird.", None),  # whole: the next one had begun
        (" ", "", "length", "", "empty"),
        ("", "", "stop", "", "empty"),
    ],
)
def test_a_new_prompt_that_the_limit_cut_is_rejected_as_truncated(text, rest, ending, prompt, reason):
    made = prompts._candidate(ended(text, ending, rest))
    assert made == {"text": prompt, "tokens": 3, "raw": text + rest, "reason": reason}


@pytest.mark.parametrize(
    ("text", "whole", "cut"),
    [
        ("Good.\nScore: 4", 4, None),  # 45? 4 out of 10?
        ("Good.\nScore: 4\n", 4, 4),
        ("Score: 4\nSo it is, and", 4, 4),
        ("Score: 2\nOn second thought:\nFinal score: 3", 3, None),
        ("Score: 4\nWell. Score: 4", 4, 4),
        ("Well", None, None),
    ],
)
def test_a_cut_judgement_has_a_score_only_if_nothing_that_was_cut_could_change_it(text, whole, cut):
    for ending, score in (("eos", whole), ("stop", whole), ("length", cut)):
        assert judgement_row("m", "sampled", JudgeTemplate(), ended(text, ending)).score == score


def test_where_scores_are_read_a_cut_judgement_has_one_after_the_reasons_it_got_to():
    made = judgement_row(
        "m", "completion", JudgeTemplate(), ended("Good, bec", "length", read=(-9.0, -9, -9, -9, -1, -9))
    )
    assert (made.text, made.score, made.stop_reason) == ("Good, bec\nScore: 4", 4, "length")


@pytest.mark.parametrize(
    ("text", "whole", "cut"),
    [
        ("So [[A]]", "A", "A"),
        ("Verdict: A", "A", None),
        ("Verdict: A\n", "A", "A"),
        ("Verdict: B.", "B", None),
        ("[[A]] or [[B", "A", None),
    ],
)
def test_a_cut_verdict_counts_only_if_nothing_that_was_cut_could_change_it(text, whole, cut):
    for ending, verdict in (("eos", whole), ("length", cut)):
        assert verdicts._sampled_row("sampled", {"q": ("p", "a")}, ended(text, ending)).verdict == verdict


CHAT = Chat(chatml())
PROMPT = Prompt("p", ({"role": "user", "content": "Name a bird."},), "file")


def answer(name: str, text: str, ending: str) -> Response:
    ids = CHAT.text_ids(text)
    return Response(name, "p", 0, tuple([*ids, CHAT.eos_ids[0]] if ending == "eos" else ids), text, ending, 0.0)


ANSWERS = [answer("a", "A duck", "eos"), answer("b", "A du", "length"), answer("c", "A cat", "stop")]
ANSWERS += [answer("d", "", "stop")]


def pairs_of(scores: dict[str, float], keep_truncated: bool):
    judgements = [Judgement(f"j{name}", name, 0, "", score, "eos") for name, score in scores.items()]
    ref = ModelRef("m1", "hash")
    return make_pairs(
        CHAT, [PROMPT], ANSWERS, judgements, model=ref, reference=ref, rule="best_worst", min_parsed=1,
        min_margin=0.0, keep_truncated=keep_truncated,
    )  # fmt: skip


def test_an_answer_that_a_stop_string_ended_teaches_the_end_of_turn_in_its_place():
    end = CHAT.eos_ids[0]
    (pair,), drops, best = pairs_of({"a": 0, "c": 5, "d": 3}, keep_truncated=False)
    assert pair.chosen_token_ids == (*CHAT.text_ids("A cat"), end) and pair.chosen[0]["content"] == "A cat"
    assert pair.rejected_token_ids == (*CHAT.text_ids("A duck"), end)
    assert best[0]["completion_token_ids"] == pair.chosen_token_ids
    assert [(d.response_id, d.reason) for d in drops] == [("b", "truncated")]
    (pair,), _, _ = pairs_of({"a": 5, "d": 0}, keep_truncated=False)
    assert pair.rejected_token_ids == (end,)


def test_a_cut_answer_that_is_kept_teaches_no_end():
    (pair,), drops, _ = pairs_of({"a": 0, "b": 5}, keep_truncated=True)
    assert pair.chosen_token_ids == tuple(CHAT.text_ids("A du"))
    assert {(d.response_id, d.reason) for d in drops} == {("c", "not_judged"), ("d", "not_judged")}


def test_the_metrics_tell_how_answers_and_judgements_ended():
    judgements = [Judgement(str(n), "a", n, "", 1.0, ending) for n, ending in enumerate(("eos", "length", "eos"))]
    found = answer_metrics(ANSWERS, judgements, min_parsed=1)
    assert (found["gen/truncated_frac"], found["gen/stopped_frac"]) == (0.25, 0.5)
    assert found["judge/truncated_frac"] == pytest.approx(1 / 3)

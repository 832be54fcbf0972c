"""Which prompts are shown."""

import random

from selfreward_jax.core.rows import Judgement, Prompt, Response
from selfreward_jax.report.samples import Judged, as_json, choose
from tests.report.facts import pair


def judged(n: int, margin: float | None = 2.0, scores: tuple[float | None, ...] = (3.0, 3.0, 3.0)) -> Judged:
    prompt = Prompt(f"p{n}", ({"role": "user", "content": f"prompt {n}"},), "file")
    answers = [Response(f"{side}{n}", prompt.id, i, (1, 2), side, "eos", -1.0) for i, side in enumerate("ab")]
    own = [Judgement(f"j{i}", f"a{n}", i, f"Score: {s}", s, "eos") for i, s in enumerate(scores)]
    found = None if margin is None else pair(n, margin)
    return Judged(prompt, answers, {f"a{n}": own, f"b{n}": own}, found, "" if found else "tie", {})


def chosen(rows: list[Judged], n: int, seed: int = 0) -> dict[str, list[str]]:
    """Ids of the prompts by why they are shown."""
    found: dict[str, list[str]] = {}
    for x, why in choose(rows, n, random.Random(seed)):
        found.setdefault(why, []).append(x.prompt.id)
    return found


def test_where_there_are_few_all_are_shown():
    rows = [judged(n) for n in range(3)]
    assert chosen(rows, 3) == {"": ["p0", "p1", "p2"]}


def test_half_are_drawn_at_random_and_no_prompt_twice():
    rows = [judged(n, margin=n / 10) for n in range(40)]
    found = chosen(rows, 10)
    assert len(found["drawn at random"]) == 5
    assert len({id for ids in found.values() for id in ids}) == sum(map(len, found.values())) == 10


def test_the_seed_decides_what_is_drawn():
    rows = [judged(n) for n in range(40)]
    assert chosen(rows, 10) == chosen(rows, 10)
    assert chosen(rows, 10)["drawn at random"] != chosen(rows, 10, seed=1)["drawn at random"]


def test_the_others_are_the_extremes():
    rows = [judged(n) for n in range(40)]
    rows[7] = judged(7, margin=4.0)
    rows[8] = judged(8, margin=0.5)
    rows[9] = judged(9, scores=(0.0, 5.0, None))
    rows[10] = judged(10, margin=None)
    found = chosen(rows, 8)
    assert not {"p7", "p8", "p9", "p10"} & set(found["drawn at random"])
    assert found["largest margin"] == ["p7"]
    assert found["smallest margin"] == ["p8"]
    assert found["judgements differ most"] == ["p9"]
    assert found["no pair"] == ["p10"]


def test_where_there_are_too_few_extremes_more_are_drawn():
    rows = [judged(n, margin=None) for n in range(40)]
    assert sum(map(len, chosen(rows, 10).values())) == 10


def test_a_sample_says_which_answer_was_chosen_and_what_its_judgements_say():
    row = as_json(judged(3, margin=1.0, scores=(2.0, 3.0, None)), "largest margin", "M1 → M2", min_parsed=2)
    assert [a["role"] for a in row["answers"]] == ["chosen", "rejected"]
    assert row["answers"][0]["score"] == 2.5
    assert [j["score"] for j in row["answers"][0]["judgements"]] == [2.0, 3.0, None]
    assert (row["prompt"], row["outcome"], row["margin"]) == ("prompt 3", "pair", 1.0)


def test_an_answer_with_too_few_scores_has_none():
    row = as_json(judged(3, scores=(2.0, None, None)), "", "M1 → M2", min_parsed=2)
    assert row["answers"][0]["score"] is None

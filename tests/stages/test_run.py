"""A whole run, M0 to M3, on a tiny model: what lies in its folder, and that all of it hangs together."""

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from selfreward_jax import cli
from selfreward_jax.core.rows import Pair
from selfreward_jax.core.tokens import Chat
from selfreward_jax.llama.load import load_chat, load_model
from selfreward_jax.methods.judging import parse_score
from tests import tiny

pytestmark = pytest.mark.slow

ITERATIONS = (2, 3)
IN_ITERATION = ("prompts", "responses", "judgements", "pairs", "dropped", "positives", "reference_logps", "metrics")
IN_MODEL = ("model.json", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
IN_TRAINING = ("metrics.jsonl", "throughput.jsonl", "training.json")

# Files that say how training went or can be made from others; the manifest lists all the rest.
NOT_IN_THE_MANIFEST = {
    "manifest.jsonl",
    "report.html",
    *(f"m{t}/{name}" for t in (1, 2, 3) for name in (*IN_MODEL[1:], *IN_TRAINING[1:])),
}


@pytest.fixture(scope="session")
def chat(data) -> Chat:
    return load_chat(str(data / "model"))[1]


def rows(run: Path, t: int, name: str) -> list[dict]:
    return tiny.read_jsonl(run / f"m{t}" / f"{name}.jsonl")


def manifest(run: Path) -> dict[str, dict]:
    return {row["artefact"]: row for row in tiny.read_jsonl(run / "manifest.jsonl")}


def visible(run: Path) -> dict[str, bytes]:
    """The files of a run without those that Orbax numbers and names at random, and TensorBoard's."""
    return {
        name: content
        for name, content in tiny.snapshot(run).items()
        if "checkpoints" not in Path(name).parts and "tb" not in Path(name).parts
    }


# ---------------------------------------------------------------------------------------------------------------------
# What lies in the folder


def test_every_file_of_the_design_is_there_and_no_other(finished):
    expected = {"config.json", "manifest.jsonl", "metrics.jsonl", "summary.json", "report.html", "m0/model.json"}
    expected |= {f"m{t}/{name}" for t in (1, 2, 3) for name in (*IN_MODEL, *IN_TRAINING)}
    expected |= {f"m{t}/{name}.jsonl" for t in ITERATIONS for name in IN_ITERATION}
    expected |= {"m3/eval/responses.jsonl", "m3/eval/judgements.jsonl"}
    assert visible(finished).keys() == expected


def test_the_manifest_lists_every_artefact_with_the_hash_of_its_bytes(finished):
    listed = {name: row["sha256"] for name, row in manifest(finished).items()}
    found = {name: hashlib.sha256(content).hexdigest() for name, content in visible(finished).items()}
    assert listed == {name: digest for name, digest in found.items() if name not in NOT_IN_THE_MANIFEST}


def test_the_manifest_lists_every_artefact_once(finished):
    names = [row["artefact"] for row in tiny.read_jsonl(finished / "manifest.jsonl")]
    assert len(names) == len(set(names))


def test_the_manifest_says_which_seed_and_versions_made_the_run(finished):
    entry = manifest(finished)["config.json"]
    assert entry["seed"] == tiny.SEED
    assert {"jax", "flax", "optax", "transformers", "python", "selfreward_jax"} <= entry["versions"].keys()


def test_the_models_in_the_manifest_are_those_in_the_folders(finished):
    for t in (1, 2, 3):
        model = load_model(str(finished / f"m{t}"))
        assert manifest(finished)[f"m{t}/model.json"]["hash"] == model.hash
        assert json.loads((finished / f"m{t}" / "model.json").read_text())["hash"] == model.hash


def test_every_model_differs_from_the_one_before(finished):
    hashes = [json.loads((finished / f"m{t}" / "model.json").read_text())["hash"] for t in range(4)]
    assert len(set(hashes)) == 4


def test_a_finished_run_says_so_and_changes_no_byte(finished, data, capsys):
    before = tiny.snapshot(finished)
    assert cli.main(tiny.arguments("run", finished, data)) == 0
    captured = capsys.readouterr()
    assert "all is done already" in captured.err
    assert "M3" in captured.out
    assert tiny.snapshot(finished) == before


def test_the_workdir_alone_is_enough_to_go_on(finished, capsys):
    before = tiny.snapshot(finished)
    assert cli.main(["run", f"--workdir={finished}"]) == 0
    assert "all is done already" in capsys.readouterr().err
    assert tiny.snapshot(finished) == before


def test_the_configuration_of_the_run_is_the_one_that_was_asked_for(finished, data):
    assert json.loads((finished / "config.json").read_text()) == json.loads(
        json.dumps(tiny.make_config(data).to_dict())
    )


# ---------------------------------------------------------------------------------------------------------------------
# Rows


@pytest.mark.parametrize("t", ITERATIONS)
def test_every_prompt_has_all_its_answers_and_every_answer_all_its_judgements(t, finished):
    prompts, responses, judgements = (rows(finished, t, name) for name in ("prompts", "responses", "judgements"))
    assert len(prompts) == tiny.SETTINGS["prompts.count"]
    n = tiny.SETTINGS["respond.n"]
    expected = [(p["id"], index) for p in prompts for index in range(n)]
    assert [(r["prompt_id"], r["index"]) for r in responses] == expected
    expected = [(r["id"], index) for r in responses for index in range(3)]
    assert [(j["response_id"], j["index"]) for j in judgements] == expected


def test_ids_are_unique_in_the_whole_run(finished):
    ids = [
        row["id"]
        for name in ("m2/prompts", "m2/responses", "m2/judgements", "m2/pairs", "m3/prompts", "m3/responses",
                     "m3/judgements", "m3/pairs", "m3/eval/responses", "m3/eval/judgements")
        for row in tiny.read_jsonl(finished / f"{name}.jsonl")
    ]  # fmt: skip
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("t", ITERATIONS)
def test_the_tiny_model_learns_to_judge(t, finished):
    """Were no score readable, all other tests of pairs would hold for no pair."""
    scores = [j["score"] for j in rows(finished, t, "judgements")]
    assert sum(s is not None for s in scores) > len(scores) / 2
    assert len(set(scores)) > 2
    assert len(rows(finished, t, "pairs")) >= 2


@pytest.mark.parametrize("t", ITERATIONS)
def test_a_response_is_the_text_of_its_tokens(t, finished, chat):
    for row in rows(finished, t, "responses"):
        assert row["text"] == chat.decode(row["token_ids"])
        assert row["logp"] < 0
        assert (row["token_ids"][-1] in chat.eos_ids) == (row["stop_reason"] == "eos")


@pytest.mark.parametrize("t", ITERATIONS)
def test_pairs_have_the_columns_of_trl(t, finished):
    for pair in rows(finished, t, "pairs"):
        assert [m["role"] for m in pair["prompt"]] == ["user"]
        assert [m["role"] for m in pair["chosen"]] == [m["role"] for m in pair["rejected"]] == ["assistant"]
        assert pair.keys() == {f.name for f in dataclasses.fields(Pair)}
        assert {"prompt", "chosen", "rejected", "score_chosen", "score_rejected", "margin"} <= pair.keys()


@pytest.mark.parametrize("t", ITERATIONS)
def test_a_pair_is_made_of_a_best_and_a_worst_answer_to_its_prompt(t, finished, chat):
    prompts = {p["id"]: p for p in rows(finished, t, "prompts")}
    responses = {r["id"]: r for r in rows(finished, t, "responses")}
    judgements = rows(finished, t, "judgements")
    for pair in rows(finished, t, "pairs"):
        assert pair["prompt"] == prompts[pair["prompt_id"]]["messages"]
        assert pair["prompt_token_ids"] == chat.prompt_ids(pair["prompt"])
        means = {}
        for id, response in responses.items():
            scores = [j["score"] for j in judgements if j["response_id"] == id and j["score"] is not None]
            if response["prompt_id"] == pair["prompt_id"] and len(scores) >= 2 and response["stop_reason"] == "eos":
                means[id] = sum(scores) / len(scores)
        for side, extreme in (("chosen", max), ("rejected", min)):
            response = responses[pair["provenance"][side]["response"]]
            assert response["prompt_id"] == pair["prompt_id"]
            assert pair[side] == [{"role": "assistant", "content": response["text"]}]
            assert pair[f"{side}_token_ids"] == response["token_ids"]
            assert pair[f"score_{side}"] == means[response["id"]] == extreme(means.values())
        assert pair["margin"] == pair["score_chosen"] - pair["score_rejected"] > 0


@pytest.mark.parametrize("t", ITERATIONS)
def test_the_provenance_of_a_pair_names_its_judgements_and_models(t, finished):
    judgements = {j["id"]: j for j in rows(finished, t, "judgements")}
    before = manifest(finished)[f"m{t - 1}/model.json"]["hash"]
    for pair in rows(finished, t, "pairs"):
        origin = pair["provenance"]
        assert (origin["model"], origin["model_hash"]) == (f"m{t - 1}", before)
        assert (origin["reference"], origin["reference_hash"]) == (f"m{t - 1}", before)
        for side in ("chosen", "rejected"):
            own = [judgements[id] for id in origin[side]["judgements"]]
            assert len(own) == 3
            assert all(j["response_id"] == origin[side]["response"] for j in own)
            assert origin[side]["scores"] == [j["score"] for j in own]


@pytest.mark.parametrize("t", ITERATIONS)
def test_every_prompt_makes_a_pair_or_is_dropped_with_a_reason(t, finished):
    paired = [p["prompt_id"] for p in rows(finished, t, "pairs")]
    dropped = [d["prompt_id"] for d in rows(finished, t, "dropped") if d["response_id"] is None]
    assert sorted(paired + dropped) == sorted(p["id"] for p in rows(finished, t, "prompts"))
    assert all(d["reason"] for d in rows(finished, t, "dropped"))


def test_a_prompt_file_is_split_among_the_iterations_without_overlap(finished, data):
    asked = [row["prompt"] for row in tiny.read_jsonl(data / "prompts.jsonl")]
    second, third = ([p["messages"][0]["content"] for p in rows(finished, t, "prompts")] for t in ITERATIONS)
    assert second == asked[:4]
    assert third == asked[4:8]


def test_the_reference_scores_each_side_of_each_pair_as_it_was_sampled(finished):
    """M1 gave the answers and is the reference, so it scores them as it did when it gave them."""
    sampled = {r["id"]: r["logp"] for r in rows(finished, 2, "responses")}
    found = {(row["pair_id"], row["side"]): row["logp"] for row in rows(finished, 2, "reference_logps")}
    pairs = rows(finished, 2, "pairs")
    assert len(found) == 2 * len(pairs)
    for pair in pairs:
        for side in ("chosen", "rejected"):
            assert found[pair["id"], side] == pytest.approx(sampled[pair["provenance"][side]["response"]], abs=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Training


def test_sft_learns(finished):
    losses = [row["loss"] for row in rows(finished, 1, "metrics")]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("t", ITERATIONS)
def test_dpo_begins_at_ln_2_and_sees_every_pair_once(t, finished):
    log = rows(finished, t, "metrics")
    pairs = rows(finished, t, "pairs")
    assert [row["step"] for row in log] == list(range(1, len(pairs) + 1))
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert log[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert log[-1]["loss"] != pytest.approx(math.log(2), abs=1e-5)
    tokens = sum(2 * len(p["prompt_token_ids"]) + len(p["chosen_token_ids"] + p["rejected_token_ids"]) for p in pairs)
    assert log[-1]["num_tokens"] == tokens


def test_the_summary_has_a_row_for_each_model(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert [(row["model"], row["stage"]) for row in summary] == [("M1", "sft"), ("M2", "dpo"), ("M3", "dpo")]
    for t, row in enumerate(summary, 1):
        assert row["hash"] == manifest(finished)[f"m{t}/model.json"]["hash"]
        log = rows(finished, t, "metrics")
        assert row["train"]["steps"] == len(log)
        assert row["train"]["first"]["loss"] == pytest.approx(
            sum(r["loss"] for r in log[:3]) / 3 if t == 1 else log[0]["loss"]
        )
    assert summary[0]["data"] == {"ift_rows": 32, "ift_dropped_too_long": 0, "eft_rows": 32, "eft_dropped_too_long": 0}
    assert [row.get("prompts/kept") for row in summary] == [None, *(len(rows(finished, t, "prompts")) for t in (2, 3))]
    assert [row["data"].get("pairs") for row in summary] == [None, *(len(rows(finished, t, "pairs")) for t in (2, 3))]


def test_the_summary_counts_the_answers_and_scores_of_each_model(finished):
    summary = json.loads((finished / "summary.json").read_text())
    folders = ("m2", "m3", "m3/eval")  # where M1, M2 and M3 answered
    for row, folder in zip(summary, folders, strict=True):
        responses = tiny.read_jsonl(finished / folder / "responses.jsonl")
        scores = [j["score"] for j in tiny.read_jsonl(finished / folder / "judgements.jsonl")]
        assert row["gen/responses"] == len(responses)
        assert row["gen/len_mean"] == pytest.approx(sum(len(r["token_ids"]) for r in responses) / len(responses))
        assert row["judge/judgements"] == len(scores)
        assert row["judge/parse_rate"] == pytest.approx(sum(s is not None for s in scores) / len(scores))
        assert row["judge/score_hist"] == [scores.count(float(s)) for s in range(6)]


# ---------------------------------------------------------------------------------------------------------------------
# Other ways to go


@pytest.fixture
def variant(data, finished, tmp_path) -> Callable[..., Path]:
    """Goes on from the finished run's M1 with some fields changed."""

    def make(*, status: int = 0, **changes) -> Path:
        run = tmp_path / "variant"
        run.mkdir()
        for name in ("m0", "m1"):
            shutil.copytree(finished / name, run / name)
        entries = [row for row in tiny.read_jsonl(finished / "manifest.jsonl") if row["artefact"][:2] in ("m0", "m1")]
        tiny.write_manifest(run, entries)
        shutil.copy(finished / "config.json", run / "config.json")
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        assert cli.main([*tiny.arguments("run", run, data, changes), "--resume=force"]) == status
        same = "m1/model.json"
        assert (run / same).read_bytes() == (finished / same).read_bytes()
        return run

    return make


def test_a_fixed_reference_is_used_and_recorded(variant, finished):
    run = variant(dpo__reference="m1")
    first = manifest(run)["m1/model.json"]["hash"]
    for t in ITERATIONS:
        entry = manifest(run)[f"m{t}/model.json"]
        assert entry["reference"] == entry["inputs"]["reference"] == {"name": "m1", "hash": first}
        assert {p["provenance"]["reference_hash"] for p in rows(run, t, "pairs")} == {first}
    # M2 has the same reference either way; M3's training now begins where its policy and M1 differ.
    assert manifest(run)["m2/model.json"]["hash"] == manifest(finished)["m2/model.json"]["hash"]
    assert rows(run, 3, "metrics")[0]["loss"] != pytest.approx(math.log(2), abs=1e-5)


def test_training_from_m1_each_time_is_done_and_recorded(variant):
    run = variant(dpo__init_from="m1")
    first = manifest(run)["m1/model.json"]["hash"]
    assert manifest(run)["m3/model.json"]["inputs"]["init_from"] == {"name": "m1", "hash": first}
    # The reference is still M2, so policy and reference differ at the first step.
    assert manifest(run)["m3/model.json"]["reference"]["name"] == "m2"
    assert rows(run, 3, "metrics")[0]["loss"] != pytest.approx(math.log(2), abs=1e-5)


def test_a_base_reference_is_used_and_recorded(variant):
    run = variant(dpo__reference="m0", loop__iterations=2)
    base = manifest(run)["m0/model.json"]["hash"]
    assert manifest(run)["m2/model.json"]["reference"] == {"name": "m0", "hash": base}
    assert rows(run, 2, "metrics")[0]["loss"] != pytest.approx(math.log(2), abs=1e-3)


def test_sft_on_positives_learns_from_the_seeds_and_answers_of_full_score(variant):
    changes = {"judge__samples": 1, "judge__min_parsed": 1, "loop__iterations": 2}
    run = variant(dpo__data="positives", respond__n=9, **changes)
    positives = rows(run, 2, "positives")
    full = [j["response_id"] for j in rows(run, 2, "judgements") if j["score"] == 5]
    assert [p["provenance"]["answer"]["response"] for p in positives] == full
    assert positives, "no answer had the full score, so nothing was tested"
    entry = manifest(run)["m2/model.json"]
    assert entry["inputs"]["stage"] == "sft"
    assert entry["inputs"]["init_from"]["name"] == "m1"
    assert entry["data"]["positives"] == len(positives)
    assert entry["data"]["ift_rows"] == entry["data"]["eft_rows"] == 32
    steps = math.ceil((64 + len(positives)) / 16) * tiny.SETTINGS["sft.epochs"]
    assert len(rows(run, 2, "metrics")) == steps
    assert not (run / "m2" / "reference_logps.jsonl").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert [row["stage"] for row in summary] == ["sft", "sft"]


PERMISSIVE = {
    "prompts__source": "self_instruct",
    "prompts__rouge_threshold": 1.0,
    "prompts__min_words": 1,
    "prompts__max_new_tokens": 16,
    "prompts__temperature": 1.6,
    "prompts__top_p": 1.0,
}


@pytest.mark.parametrize("generator", ["base", "current"])
def test_self_instruct_keeps_new_prompts_of_the_generator(generator, variant, data):
    run = variant(**PERMISSIVE, prompts__generator=generator)
    seeds = {row["prompt"] for row in tiny.read_jsonl(data / "ift.jsonl")}
    texts = []
    for t in ITERATIONS:
        name = "m0" if generator == "base" else f"m{t - 1}"
        source = f"self_instruct:{name}:{manifest(run)[f'{name}/model.json']['hash']}"
        kept = rows(run, t, "prompts")
        assert len(kept) == 4
        assert {p["source"] for p in kept} == {source}
        assert manifest(run)[f"m{t}/prompts.jsonl"]["inputs"]["model"] == source.split(":")[2]
        texts += [p["messages"][0]["content"] for p in kept]
        rejected = rows(run, t, "rejected_prompts")
        counts = manifest(run)[f"m{t}/prompts.jsonl"]["metrics"]
        assert counts["prompts/kept"] == 4
        assert sum(n for key, n in counts.items() if key.startswith("prompts/rejected_")) == len(rejected)
    assert len(set(texts)) == 8, "an iteration repeated a prompt"
    assert not seeds & set(texts)


# Room for no answer and its end, and enough for answers to differ.
SHORT = {"respond__max_new_tokens": 4, "respond__min_new_tokens": 4, "loop__iterations": 2}


def test_answers_cut_by_the_limit_make_no_pair_and_a_run_without_pairs_says_why(variant, capsys):
    run = variant(**SHORT, status=2)
    assert rows(run, 2, "pairs") == []
    cut = [r["id"] for r in rows(run, 2, "responses") if r["stop_reason"] == "length"]
    assert [d["response_id"] for d in rows(run, 2, "dropped") if d["reason"] == "truncated"] == cut
    assert len(cut) == 12
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("selfreward: ")]
    assert f"{run / 'm2' / 'pairs.jsonl'}: no pairs to learn from" in line


def test_answers_cut_by_the_limit_make_pairs_if_they_are_kept(variant):
    run = variant(**SHORT, respond__truncated="keep")
    pairs = rows(run, 2, "pairs")
    assert pairs
    assert all(len(p["chosen_token_ids"]) == len(p["rejected_token_ids"]) == 4 for p in pairs)


def test_completed_judgements_all_have_the_score_that_their_text_ends_in(variant):
    run = variant(judge__method="completion", loop__iterations=2, dpo__data="positives")
    judgements = rows(run, 2, "judgements")
    assert len(judgements) == 3 * len(rows(run, 2, "responses"))
    for j in judgements:
        assert j["score"] == parse_score(j["text"]) == max(range(6), key=lambda n, j=j: j["score_probs"][n])
        assert j["text"].splitlines()[-1] == f"Score: {j['score']:g}"
    assert len({tuple(j["score_probs"]) for j in judgements}) > 1


def test_expected_scores_need_no_sampling_and_tell_answers_apart(variant):
    run = variant(judge__method="expected", judge__rationale=False, loop__iterations=2)
    judgements, responses = rows(run, 2, "judgements"), rows(run, 2, "responses")
    assert [j["response_id"] for j in judgements] == [r["id"] for r in responses]
    for j in judgements:
        assert j["score"] == pytest.approx(sum(n * p for n, p in enumerate(j["score_probs"])), abs=1e-3)
        assert sum(j["score_probs"]) == pytest.approx(1, abs=1e-4) and j["stop_reason"] == "read"
    texts = {r["id"]: r["text"] for r in responses}
    assert len({j["score"] for j in judgements}) >= len(set(texts.values())) / 2
    assert rows(run, 2, "pairs"), "one judgement an answer is enough where there can be no more"


def test_expected_scores_after_reasons_are_made_for_every_sample(variant):
    run = variant(judge__method="expected", loop__iterations=2, dpo__data="positives")
    judgements = rows(run, 2, "judgements")
    assert len(judgements) == 3 * len(rows(run, 2, "responses"))
    assert all(0 <= j["score"] <= 5 and len(j["score_probs"]) == 6 for j in judgements)


def test_sft_on_positives_needs_neither_a_pair_nor_a_positive(variant, data):
    changes = {**SHORT, "dpo__data": "positives", "loop__score_last": False}
    run = variant(**changes)
    assert rows(run, 2, "pairs") == rows(run, 2, "positives") == []
    assert manifest(run)["m2/model.json"]["data"]["positives"] == 0
    before = tiny.snapshot(run)
    assert cli.main(["dpo", f"--workdir={run}", "--iteration=2"]) == 0
    assert tiny.snapshot(run) == before


# ---------------------------------------------------------------------------------------------------------------------
# Stage by stage


def test_stages_one_by_one_make_the_same_files_and_models_as_run(data, finished, tmp_path):
    run = tmp_path / "run"
    assert cli.main(tiny.arguments("sft", run, data)) == 0
    for t in ITERATIONS:
        for verb in ("prompts", "respond", "judge", "pairs", "dpo"):
            assert cli.main([*tiny.arguments(verb, run, data), f"--iteration={t}"]) == 0
    found, expected = visible(run), visible(finished)
    assert found.keys() == expected.keys()
    speeds = {f"m{t}/throughput.jsonl" for t in (1, 2, 3)}  # the clock's
    assert {name for name in found if found[name] != expected[name]} <= {*speeds, "report.html"}
    named = {run: found["report.html"].decode(), finished: expected["report.html"].decode()}
    one, other = (page.replace(f"{path.name} · ", "").replace(f"<h1>{path.name}<", "") for path, page in named.items())
    assert one.replace("--workdir=run ", "--workdir=tiny-run ") == other
    for t in (1, 2, 3):
        assert load_model(str(run / f"m{t}")).hash == load_model(str(finished / f"m{t}")).hash

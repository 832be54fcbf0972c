"""Which chat template a model on disk is asked with, and which date that is told."""

import json
from pathlib import Path

import pytest

from selfreward_jax import cli
from selfreward_jax.core.errors import UserError
from selfreward_jax.llama.load import load_chat
from tests import tiny
from tests.core import small_tokenizers

ASKED = [{"role": "user", "content": "What is it?"}]


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Path:
    """A model with templates by name, as transformers writes them."""
    templates = {"default": small_tokenizers.CHATML, "rag": small_tokenizers.ZEPHYR}
    tokenizer = small_tokenizers.with_template(small_tokenizers.chatml(), templates)
    return tiny.make_model(tmp_path_factory.mktemp("several") / "model", tokenizer=tokenizer)


@pytest.mark.parametrize("form", ["files", "list"])
def test_a_template_is_chosen_by_its_name(form, several, tmp_path):
    folder = several
    if form == "list":  # as older releases wrote them
        folder = tmp_path / "model"
        folder.mkdir()
        for file in several.iterdir():
            if file.is_file() and file.suffix != ".jinja":
                (folder / file.name).write_bytes(file.read_bytes())
        facts = json.loads((several / "tokenizer_config.json").read_text())
        facts["chat_template"] = [
            {"name": "default", "template": small_tokenizers.CHATML},
            {"name": "rag", "template": small_tokenizers.ZEPHYR},
        ]
        (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    assert load_chat(str(folder))[1].render(ASKED).startswith("<|im_start|>system")
    assert load_chat(str(folder), "rag")[1].render(ASKED).startswith("<|user|>")
    assert load_chat(str(folder), "plain")[1].render(ASKED).startswith("### Request:")


def test_a_name_that_the_model_does_not_bring_is_told_with_those_it_does(several):
    with pytest.raises(UserError, match=r"chat_template: tools: no such file; .*the model's own \(default, rag\)"):
        load_chat(str(several), "tools")


def test_where_none_is_the_default_the_command_line_asks_for_a_choice(tmp_path, capsys):
    templates = {"tools": small_tokenizers.CHATML, "rag": small_tokenizers.ZEPHYR}
    model = tiny.make_model(
        tmp_path / "model", tokenizer=small_tokenizers.with_template(small_tokenizers.chatml(), templates)
    )
    rows = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "What is it?", "response": "bread"}])
    words = ["score", f"--model={model}", f"--input={rows}", f"--output={tmp_path / 'out.jsonl'}"]
    assert cli.main(words) == 2
    assert "several (" in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert cli.main([*words, "--chat_template=rag"]) == 0


@pytest.mark.slow
def test_the_date_of_a_run_goes_with_its_models(data, tmp_path):
    """Whoever asks M1 later asks it with the date that it was trained with."""
    tokenizer = small_tokenizers.with_template(small_tokenizers.llama3(), small_tokenizers.DATED)
    model = tiny.make_model(tmp_path / "model", tokenizer=tokenizer, max_position_embeddings=4096)
    changes = {"model.path": str(model), "model.date": "2031-02-01", "sft.epochs": 1}
    assert cli.main(tiny.arguments("sft", tmp_path / "run", data, changes)) == 0
    for name in ("m0", "m1"):
        assert json.loads((tmp_path / "run" / name / "model.json").read_text())["date"] == "2031-02-01"
    told = load_chat(str(tmp_path / "run" / "m1"))[1]
    assert "Today Date: 01 Feb 2031" in told.render(ASKED)
    assert "Today Date: 26 Jul 2024" in load_chat(str(model))[1].render(ASKED)
    recorded = json.loads((tmp_path / "run" / "m0" / "model.json").read_text())["chat_template"]
    assert recorded == told.hashes["chat_template"]
